"""Writing files so that nobody ever sees half of one: the only place in charlm that does it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside ``path`` that nobody else uses."""
    return path.with_name(f".new-{uuid4().hex}")


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone (mode 0700), whatever the umask.

    Raises:
        OSError: it cannot be made.
    """
    if not path.parent.exists():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def whole_file(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Write a file atomically; makes its folder.

    The file is written under a temporary name, flushed, renamed, and the folder flushed: at any moment, also after a power
    failure, a reader finds either the old file whole or the new one whole. If the block raises, nothing changes. A symbolic
    link at ``path`` is replaced, never followed.

    Args:
        path: the file.
        mode: its permissions, whatever the umask; ``None``: the umask decides.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power failure, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
