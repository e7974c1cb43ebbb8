"""Where charlm keeps what it can make anew (the cache) and what the user told it (the data)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import platformdirs


def cache_folder() -> Path:
    """The folder of downloads and encodings: ``CHARLM_CACHE``, else the user's cache folder. It need not exist yet."""
    return _named_by("CHARLM_CACHE") or platformdirs.user_cache_path("charlm", appauthor=False)


def data_folder() -> Path:
    """The folder of the user's own cards: ``CHARLM_DATA``, else the user's data folder. It need not exist yet."""
    return _named_by("CHARLM_DATA") or platformdirs.user_data_path("charlm", appauthor=False)


def _named_by(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside ``path`` that nobody else uses."""
    return path.with_name(f".new-{uuid4().hex}")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that nobody ever sees half of it, not even after a power failure; makes its folder.

    It is written under a temporary name and gets its own when the block ends; if the block raises, nothing remains.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make a rename in this folder last through a power failure, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
