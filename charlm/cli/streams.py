"""The standard streams of the process: always open, in UTF-8, and unable to crash a run.

They are set up before any other file is opened. This module knows nothing about commands.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from charlm.errors import CharlmError


class OutputError(CharlmError):
    """A result could not be written to standard output.

    Attributes:
        reader_left: whether the reader closed the pipe, as ``head`` does.
    """

    def __init__(self, message: str, *, reader_left: bool) -> None:
        super().__init__(message)
        self.reader_left = reader_left


def prepare_streams() -> None:
    """Give the process three usable standard streams; call it first.

    - A descriptor that the caller closed is opened on the null device, in the wrong direction. So no other file gets its
      number, and using it is an error.
    - All three are UTF-8 in every locale.
    - After a failure of standard error nothing more is written there: lost progress messages must not end a run.
    - A failure of standard output raises :class:`OutputError`, once.
    """
    _use_utf8_names()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free number, which `open` takes
            os.open(os.devnull, os.O_WRONLY if descriptor == 0 else os.O_RDONLY)
    sys.stdin = io.TextIOWrapper(
        io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8", errors="surrogateescape"
    )
    # Printing must never fail: characters that UTF-8 cannot encode (half of a surrogate pair) are escaped.
    results, messages = _Results(io.FileIO(1, "w", closefd=False)), _Messages(2, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(results, encoding="utf-8", errors="backslashreplace", line_buffering=results.isatty())
    # No buffer of bytes: its lock would not let a signal handler print while a message is being written.
    sys.stderr = io.TextIOWrapper(messages, encoding="utf-8", errors="backslashreplace", line_buffering=True)


@contextmanager
def delivery(saved: str) -> Iterator[None]:
    """Write a result that must be delivered: a closed pipe is a failure too.

    Args:
        saved: added to the error: where the result is saved.
    """
    try:
        yield
        sys.stdout.flush()
    except OutputError as error:
        raise OutputError(f"{error}\n{saved}", reader_left=False) from None


def _use_utf8_names() -> None:
    """Restart in Python's UTF-8 mode if arguments and file names would be ASCII.

    Python chooses UTF-8 itself for the locales C and POSIX, unless ``PYTHONUTF8=0`` is set. In ASCII it can neither read
    an argument ``ü`` nor open a file of that name. The codec cannot change while Python runs.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _discard_from_now_on(descriptor: int) -> None:
    """Send all further output to the null device, including Python's buffers and the output of other libraries."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


class _Messages(io.FileIO):
    """Standard error: complete writes, and no output after the first failure."""

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # another process made the terminal or pipe non-blocking
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError:
            _discard_from_now_on(self.fileno())
        return size


class _Results(io.BufferedWriter):
    """Standard output: complete, or an :class:`OutputError`; an interruption neither loses nor repeats bytes."""

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while True:
            try:
                super().write(left)
                return size
            except BlockingIOError as full:
                left = left[full.characters_written :]
                select.select([], [self], [])
            except OSError as error:
                raise self._failed(error) from None

    def flush(self) -> None:
        while True:
            try:
                return super().flush()
            except BlockingIOError:
                select.select([], [self], [])
            except OSError as error:
                raise self._failed(error) from None

    def _failed(self, error: OSError) -> OutputError:
        _discard_from_now_on(self.fileno())
        message = f"the result could not be written to standard output: {error.strerror}"
        return OutputError(message, reader_left=error.errno == errno.EPIPE)
