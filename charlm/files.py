"""Writing files so that nobody ever sees half of one: the only place in charlm that does it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

_TEMPORARY = re.compile(r"\.new-[0-9a-f]{32}")


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside ``path`` that nobody else uses."""
    return path.with_name(f".new-{uuid4().hex}")


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder: files with a name of :func:`temporary_sibling`; links stay.

    The caller makes sure that nobody writes there now.
    """
    for path in [entry for entry in folder.iterdir() if _TEMPORARY.fullmatch(entry.name)]:
        with suppress(OSError):
            is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
            for file in path.iterdir() if is_folder else [path]:
                if stat.S_ISREG(os.lstat(file).st_mode):
                    file.unlink()
            if is_folder:
                path.rmdir()


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


def is_free(path: Path, marks: Sequence[bytes]) -> bool:
    """Whether a file may be written without destroying somebody else's.

    Args:
        marks: how charlm's own files of this kind begin.

    Returns:
        Nothing is there, or a regular file (no link, no device) that is empty or begins with one of the marks.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with path.open("rb") as file:
            head = file.read(max(map(len, marks)))
    except FileNotFoundError:
        return True
    return not head or any(head.startswith(mark) for mark in marks)


@contextmanager
def whole_path(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """As :func:`whole_file`, for a writer that wants a path and may make files of its own beside it.

    Yields a path in a hidden folder beside ``path``, whose folder must exist.

    Args:
        keep: in the same folder; the file that was at ``path`` gets this name, once the new one is complete.

    Raises:
        OSError: it cannot be written.
    """
    hidden = temporary_sibling(path)
    hidden.mkdir(mode=0o700)
    try:
        new = hidden / path.name
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and os.path.lexists(path):
            give_name(path, keep)
        new.replace(path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    flush_folder(path.parent)


def give_name(path: Path, name: Path) -> None:
    """Give a file a second name in its folder, so that it has its first one at every moment until it is replaced."""
    link = temporary_sibling(name)
    try:
        os.link(path, link)
        link.replace(name)
        link.unlink(missing_ok=True)  # a rename between two names of one file does nothing
    except OSError:  # a file system without hard links
        path.replace(name)


def is_utf8(path: str) -> bool:
    """Whether a path can be written as text: in Python the bytes of another name become lone surrogates."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_json(value: Any) -> str:
    """JSON that can be encoded as UTF-8: lone surrogates (see :func:`is_utf8`) become escapes such as ``\\udcfc``."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


def flush_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power failure, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
