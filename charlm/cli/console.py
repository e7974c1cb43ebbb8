"""Output on the terminal: with :mod:`charlm.cli.help`, the only module that uses Rich.

Results go to stdout, progress and notices to stderr. Live drawing and colour only on a terminal (and none where
``NO_COLOR`` is set). Control characters in text are made visible on a terminal.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from charlm.files import to_json

if TYPE_CHECKING:
    from rich.console import Console

    from charlm.progress import Progress

_COLUMNS = 160  # width of a table in a file or pipe


def _console(to_stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False, soft_wrap=True)


def out(text: str) -> None:
    """Write a line to stdout."""
    print(text, flush=True)


def results(pairs: Sequence[tuple[str, str]], width: int = 21) -> None:
    """Write ``name  value`` lines to stdout, with aligned values, wrapped on a terminal."""
    for name, value in pairs:
        out(_fact(f"{name:<{width}} ", value, to_stderr=False))


def notice(text: str, *, wrap: bool = True) -> None:
    """Write a line to stderr.

    Args:
        wrap: break long lines between words on a terminal; not for a command that people copy.
    """
    print(wrapped(text) if wrap else text, file=sys.stderr, flush=True)


def wrapped(text: str, *, start: str = "", indent: int = 0, to_stderr: bool = True) -> str:
    """Break lines between words so that they fit the terminal. Without a terminal the text is unchanged.

    A word that is too long, such as a path, stays whole.

    Args:
        start: put before the text.
        indent: of the continuation lines.
    """
    console = _console(to_stderr)
    if not console.is_terminal:
        return start + text
    width = max(console.width, indent + 20)
    return "\n".join(_filled(line, start * (number == 0), indent, width) for number, line in enumerate(text.split("\n")))


def _filled(line: str, start: str, indent: int, width: int) -> str:
    """A line broken between words; widths are those of the terminal: a Chinese character has two columns, an accent none."""
    from rich.cells import cell_len

    lines: list[str] = []
    current, is_empty = start, True
    for word in re.findall(r"\s*\S+|\s+$", line):
        if not is_empty and cell_len(current + word) > width:
            lines.append(current)
            current = " " * indent + word.lstrip()
        else:
            current += word
        is_empty = False
    return "\n".join([*lines, current])


def _fact(name: str, value: str, *, to_stderr: bool = True) -> str:
    """A name and its value, wrapped. A command (people copy it) and a single word stay on one line."""
    if value.startswith("charlm ") or " " not in value:
        return name + value
    return wrapped(value, start=name, indent=len(name), to_stderr=to_stderr)


def show_dimmed(text: str) -> None:
    """Write a text that is not part of the result to stderr, dimmed, without a line end."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    print(f"{dim}{visible(text)}{plain}", end="", file=sys.stderr, flush=True)


def json_line(record: dict[str, Any], long_lists: Mapping[str, Iterable[Iterable[float]]] | None = None) -> None:
    """Write a record to stdout as one line of JSON; numbers that are not finite become null, since JSON has no NaN.

    On a terminal, control characters are escaped as JSON allows; in a file or pipe the text is exact.

    Args:
        long_lists: further keys, which come first: finite numbers that are written block by block and need no memory.
    """
    line = to_json(_finite(record))
    if sys.stdout.isatty():
        line = "".join(json.dumps(c)[1:-1] if _is_control(c) else c for c in line)
    if long_lists:
        for start, (name, blocks) in zip(chain("{", repeat(", ")), long_lists.items(), strict=False):
            sys.stdout.write(f"{start}{json.dumps(name)}: [")
            for comma, block in zip(chain([""], repeat(", ")), blocks, strict=False):
                sys.stdout.write(comma + ", ".join(map(repr, block)))
            sys.stdout.write("]")
        line = f", {line[1:]}"
    out(line)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def complain(text: str) -> None:
    """Write an error to stderr, red on a terminal."""
    from rich.text import Text

    start = "error: "
    message = wrapped(visible(text), start=start).removeprefix(start)
    _console(True).print(Text.assemble((start, "bold red"), message))


def visible(text: str) -> str:
    """Make control characters visible: ``\\x1b`` instead of an escape sequence that the terminal would execute.

    Newlines and tabs stay. Invisible formatting characters (such as those that reverse the reading direction) are shown
    too.
    """
    return "".join(c if c in "\n\t" or not _is_control(c) else _escaped(c) for c in text)


def visible_word(text: str) -> str:
    """Like :func:`visible`, on one line: newlines, tabs and unusual spaces are escaped too."""
    shown = (_escaped(c) if _is_control(c) or (c.isspace() and c != " ") else c for c in text)
    return "".join(shown)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shell_words(words: Sequence[str]) -> str:
    """A command line quoted for a shell (bash, ksh, zsh); bytes that cannot be shown are written as ``$'\\xfc'``."""
    return " ".join(_shell_word(word) for word in words)


def _shell_word(word: str) -> str:
    if not any(_is_control(character) for character in word):
        return shlex.quote(word)
    # Bytes of a file name that are not UTF-8 are lone surrogates in Python.
    quoted = (
        "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
        if _is_control(character)
        else f"\\{character}" if character in "\\'" else character
        for character in word
    )  # fmt: skip
    return f"$'{''.join(quoted)}'"


def table(title: str | None, headers: Sequence[str], rows: Sequence[Sequence[str]], to_stderr: bool = False) -> None:
    """Print a table; columns of numbers (and ``–`` for none) are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    console = _console(to_stderr)
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_header=any(headers))
    for index, header in enumerate(headers):
        cells = [row[index] for row in rows if row[index] not in ("", "–")]
        numeric = bool(cells) and all(cell[0].isdigit() for cell in cells)
        drawn.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(visible_word(cell)) for cell in row))
    if not console.is_terminal:
        console.width = _COLUMNS
    console.print(drawn)


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Write ``name  value`` lines to stderr, with aligned values; a command stays on one line."""
    from rich.text import Text

    console = _console(True)
    width = max(len(name) for name, _ in pairs) + 2
    for name, value in pairs:
        start = f"{name:<{width}}"
        console.print(Text.assemble((start, "bold"), _fact(start, visible(value)).removeprefix(start)))


def has_colour() -> bool:
    """Whether stdout shows colours: a terminal that has them, and no ``NO_COLOR``."""
    console = _console(False)
    return console.is_terminal and console.color_system is not None and not console.no_color


def styled(pieces: Iterable[tuple[str, str]]) -> None:
    """Write a line to stdout in pieces of (text, Rich style); the text is shown as it is."""
    from rich.text import Text

    _console(False).print(Text.assemble(*pieces))


def is_terminal(to_stderr: bool = True) -> bool:
    """Whether stderr (or stdout) is a terminal."""
    return _console(to_stderr).is_terminal


def columns() -> int:
    """Width of the terminal on stdout; without a terminal, the maximum width of a table."""
    console = _console(False)
    return console.width if console.is_terminal else _COLUMNS


@contextmanager
def progress_bar(label: str, unit: str = "bytes") -> Iterator[Progress]:
    """A progress bar on stderr, drawn only on a terminal; yields the callback that advances it."""
    if not is_terminal():
        yield lambda done, total: None
        return
    from rich import progress as rich

    amount = rich.DownloadColumn() if unit == "bytes" else rich.MofNCompleteColumn()
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), amount, rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=_console(True), transient=True) as progress:
        task = None

        def advance(done: int, total: int | None) -> None:
            nonlocal task
            if task is None:
                task = progress.add_task(label, total=total)
            progress.update(task, completed=done, total=total)

        yield advance


@contextmanager
def still_bar() -> Iterator[Callable[[str, int, int, float | None], None]]:
    """A progress bar on stderr that is redrawn only when it is called, so that it does not disturb measurements.

    Yields a function that receives (label, done, total, estimated seconds left or ``None``).
    """
    if not is_terminal():
        yield lambda label, done, total, left: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=_console(True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", left="")

        def advance(label: str, done: int, total: int, left: float | None) -> None:
            said = "warming up" if left is None else f"{duration(left)} left"
            progress.update(task, description=label, completed=done, total=total, left=said, refresh=True)

        yield advance


@contextmanager
def download_progress() -> Iterator[Progress]:
    """A progress bar for a download."""
    with progress_bar("downloading") as advance:
        yield advance


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
        console = _console(True)
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
        console = _console(True)
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


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """``312 kB``, ``1.4 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
