"""Atomic file writes: a reader finds the whole old file or the whole new one. All of charlm's atomic writes use it."""

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
    """A unique hidden name in the folder of ``path``."""
    return path.with_name(f".new-{uuid4().hex}")


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of killed processes (see :func:`temporary_sibling`) from a folder; links stay.

    The caller makes sure that no process is writing there.
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
    """Make a folder, and its missing parents, for this user only (mode 0700), whatever the umask.

    Raises:
        OSError: it cannot be made.
    """
    if not path.parent.exists():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def whole_file(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Write a file atomically. Its folder is made if necessary.

    The file is written under a temporary name, flushed and renamed; then the folder is flushed. At any moment, also after a
    power failure, a reader finds the whole old file or the whole new one. If the block raises, nothing changes. A symbolic
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
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (temporary, str(temporary)):
            error.filename = str(path)  # a message with the temporary name would help nobody
        with suppress(OSError):  # such as a folder that cannot exist
            temporary.unlink()
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
    """Like :func:`whole_file`, for writers that need a path and may create other files in its folder.

    Yields a path in a hidden folder in the folder of ``path``, which must exist.

    Args:
        keep: a name in the same folder for the old file, which gets it when the new file is complete.

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
    """Give a file a second name in its folder. It keeps its first name until another file replaces it."""
    link = temporary_sibling(name)
    try:
        os.link(path, link)
        link.replace(name)
        link.unlink(missing_ok=True)  # a rename between two names of one file does nothing
    except OSError:  # a file system without hard links
        path.replace(name)


def is_utf8(path: str) -> bool:
    """Whether a path is valid UTF-8. Python represents other bytes by lone surrogates."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_json(value: Any) -> str:
    """Valid UTF-8 JSON: lone surrogates (see :func:`is_utf8`) become escapes such as ``\\udcfc``."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


def flush_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a power failure, on systems that support it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
