"""Lines on stderr that are redrawn while runs are trained; only on a terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from charlm.cli.console import is_terminal, notice, terminal, visible, visible_word, wrapped


class _Echo:
    """Keeps typed characters out of the display: turns off the terminal's echo while this process is in the foreground.

    Keys that send signals still work. Typed characters are left for the shell.
    """

    def __init__(self, show_cursor: Callable[[bool], object]) -> None:
        self._show_cursor = show_cursor
        self._saved: list[Any] | None = None
        self._on_suspend: Any = None

    def off(self) -> None:
        """Turn echo off, if standard input is a terminal and this process may change it."""
        with suppress(ImportError, OSError, ValueError):
            import termios

            descriptor = sys.stdin.fileno()
            # From the background, changing the terminal would stop the process.
            if not os.isatty(descriptor) or os.tcgetpgrp(descriptor) != os.getpgrp():
                return
            with suppress(termios.error):
                self._saved = termios.tcgetattr(descriptor)
                silent = termios.tcgetattr(descriptor)
                silent[3] &= ~termios.ECHO
                termios.tcsetattr(descriptor, termios.TCSANOW, silent)
            in_main = threading.current_thread() is threading.main_thread()
            if in_main and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
                self._on_suspend = signal.signal(signal.SIGTSTP, self._suspend)

    def restore(self) -> None:
        """Restore the terminal's settings."""
        if self._on_suspend is not None:
            signal.signal(signal.SIGTSTP, self._on_suspend)
            self._on_suspend = None
        if self._saved is not None:
            with suppress(ImportError, OSError, ValueError):
                import termios

                with suppress(termios.error):
                    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._saved)
            self._saved = None

    def _suspend(self, number: int, frame: Any) -> None:
        """Ctrl-Z: restore the echo for the shell, and turn it off again afterwards."""
        self.restore()
        self._show_cursor(True)
        os.kill(os.getpid(), signal.SIGTSTP)
        self._show_cursor(False)
        self.off()


@contextmanager
def hidden_keys() -> Iterator[None]:
    """Keep typed characters out of what is drawn; the next read of the terminal gets them."""
    echo = _Echo(lambda is_shown: None)
    echo.off()
    try:
        yield
    finally:
        echo.restore()


class Live:
    """The training display: a progress line that is redrawn on a terminal; without one, or on a dumb one, plain lines.

    Args:
        total: planned steps, or ``None``.
        quiet: draw nothing.
    """

    def __init__(self, total: int | None, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self._progress = None
        self._task = None
        self._echo: _Echo | None = None
        console = terminal(True)
        self.height = console.height
        """Lines of the terminal."""
        self.is_wide = console.width >= 110
        """Whether there is room for more than 80 columns."""
        if not quiet and console.is_terminal and not console.is_dumb_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                BarColumn(bar_width=24), TextColumn("{task.fields[status]}"), TextColumn("{task.fields[left]}"),
                console=console, transient=True, refresh_per_second=4,
            )  # fmt: skip
            self._progress.start()
            self._echo = _Echo(console.show_cursor)
            self._echo.off()
            self._task = self._progress.add_task("", total=total, status="", left="")

    def update(self, done: float, status: str, left: str, total: float | None = None) -> None:
        """Redraw the line (only on a terminal); the bar shows ``done`` of ``total``, by default of the planned steps."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, status=status, left=left, total=total or self._total)

    def say(self, text: str, style: str = "") -> int:
        """Write lines above the progress line, and return how many."""
        if self._quiet:
            return 0
        from rich.text import Text

        if self._progress is None:
            notice(visible(text) if is_terminal() else text)
            return text.count("\n") + 1
        shown = wrapped(visible(text))
        self._progress.console.print(Text(shown, style=style))
        return shown.count("\n") + 1

    @property
    def is_drawn(self) -> bool:
        """Whether the line is drawn on a terminal."""
        return self._progress is not None

    def close(self) -> None:
        """Remove the line."""
        if self._progress is not None:
            try:
                self._progress.stop()
            finally:
                if self._echo is not None:
                    self._echo.restore()
            self._progress = None


class LiveRuns:
    """The display of several trainings: a progress line for each on a terminal; without one, plain lines now and then.

    Args:
        quiet: draw nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._said_at: dict[str, float] = {}
        console = terminal(True)
        if not quiet and console.is_terminal and not console.is_dumb_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=16),
                TextColumn("{task.fields[status]}", markup=False), console=console, transient=True, refresh_per_second=4,
            )  # fmt: skip
            self._progress.start()
            self._echo = _Echo(console.show_cursor)
            self._echo.off()

    def update(self, name: str, done: int, total: int | None, status: str) -> None:
        """Show how far a run is."""
        if self._progress is not None:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(_shortened(visible_word(name)), total=total, status="")
            self._progress.update(self._tasks[name], completed=done, status=status)
        elif time.monotonic() - self._said_at.setdefault(name, time.monotonic()) > 10:
            self._said_at[name] = time.monotonic()
            self.say(f"{name}: {status}")

    def remove(self, name: str) -> None:
        """A run has ended."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def say(self, text: str) -> None:
        """Write lines above the progress lines."""
        if self._quiet:
            return
        if self._progress is None:
            notice(text)
            return
        from rich.text import Text

        self._progress.console.print(Text(wrapped(visible(text))))

    def close(self) -> None:
        """Remove the lines."""
        if self._progress is not None:
            try:
                self._progress.stop()
            finally:
                self._echo.restore()
            self._progress = None


def _shortened(name: str, most: int = 30) -> str:
    """A name in at most 30 columns; its end tells runs apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
