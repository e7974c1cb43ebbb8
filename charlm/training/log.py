"""A log to which whole entries are appended."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from charlm.errors import RunFolderError
from charlm.files import whole_file

_BUFFER = 8192
"""Bytes."""


class Log:
    """An open log.

    Raises:
        RunFolderError: it cannot be written, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.pending = bytearray()
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise write_error(path, error) from None
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(self._descriptor)
            raise RunFolderError(f"{path} was replaced by a link during the training; nothing was written to it")

    def append(self, text: str) -> None:
        """Add an entry. It reaches the file when the buffer is full, or with :meth:`flush`."""
        self.pending += text.encode("utf-8", "backslashreplace")
        if len(self.pending) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write the buffered entries. If that fails, the file is restored: no partial entry remains.

        Raises:
            RunFolderError: the disk is full or not writable.
        """
        size = os.fstat(self._descriptor).st_size
        done = 0
        try:
            while done < len(self.pending):
                done += os.write(self._descriptor, self.pending[done:])
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise write_error(self._path, error) from None
        self.pending.clear()

    def close(self) -> None:
        """Close the file; buffered entries are dropped."""
        os.close(self._descriptor)


def truncate_log(path: Path, size: int) -> None:
    """Cut a log to ``size`` bytes. If it has a second name (a hard link), a shorter copy takes its place."""
    try:
        log = os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b")
    except FileNotFoundError:
        return
    with log:
        found = os.fstat(log.fileno())
        size = min(size, found.st_size)
        if found.st_nlink == 1:
            log.truncate(size)
            return
        with whole_file(path) as copy:
            shutil.copyfileobj(log, copy)
            copy.truncate(size)


def write_error(path: Path, error: OSError) -> RunFolderError:
    """The error for a file of a run that cannot be written."""
    return RunFolderError(
        f"cannot write {path}: {error.strerror}. What was saved before is whole",
        advice={"make room or repair the folder, then resume the run": {"resume": "auto"}},
    )
