"""The lock of a run's folder. It belongs to the operating system, which releases it when its owner dies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from charlm.errors import RunFolderError
from charlm.run_files import LOCK


class FolderLock:
    """Locks a folder for this process.

    Attributes:
        existed: whether the folder had a lock file before.

    Raises:
        RunFolderError: another process trains there.
        OSError: the lock cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LOCK
        self.existed = self._path.exists()
        self._acquire()

    def _acquire(self) -> None:
        lock = FileLock(self._path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"another process is training in {self._folder}",
                advice={"wait for it": {}, "stop it": {}, "use another folder": {"out": "DIR"}},
            ) from None
        self._lock, self._identity = lock, _identity(self._path)

    def check(self) -> None:
        """Make sure that only this process writes to the folder. If the lock file was removed, lock a new one.

        Raises:
            RunFolderError: another process has locked a new one, or the folder was removed.
        """
        try:
            identity = _identity(self._path)
        except OSError:
            if not self._folder.is_dir():
                raise RunFolderError(f"the run's folder {self._folder} was removed during the training") from None
            self._lock.release()
            self._acquire()
            return
        if identity != self._identity:
            raise RunFolderError(
                f"{self._path} was removed, and another process has locked the folder: this training stops and writes "
                "nothing more"
            )

    def is_held(self) -> bool:
        """Whether this process still holds the lock."""
        try:
            self.check()
        except RunFolderError:
            return False
        return True

    def release(self) -> None:
        """Release the lock; the file stays."""
        self._lock.release()

    def remove(self) -> None:
        """Remove the file, and release the lock."""
        self.check()
        self._path.unlink()  # while it is locked: no other process can hold it
        self._lock.release()

    def undo(self) -> None:
        """Release the lock, and remove its file if it is new."""
        with suppress(OSError):
            if not self.existed and _identity(self._path) == self._identity:
                self._path.unlink()  # while it is locked: no other process can hold it
        self._lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process trains in a folder. It is asked for a shared lock, which is released at once."""
    import fcntl

    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)  # releases it
    return False


def _identity(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
