"""How charlm speaks: the only place that knows Rich.

Results go to stdout, progress and notices to stderr. Live drawing and colour only on a terminal (and none where
``NO_COLOR`` is set). Text that people read on a terminal has its control characters made visible.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = 160  # of a table in a file or pipe


def utf8_streams() -> None:
    """Make the standard streams UTF-8, whatever the locale says."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            errors = "surrogateescape" if stream is sys.stdin else "backslashreplace"
            stream.reconfigure(encoding="utf-8", errors=errors)


def _console(to_stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False, soft_wrap=True)


def out(text: str) -> None:
    """Write a line to stdout."""
    print(text, flush=True)


def notice(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def show_dimmed(text: str) -> None:
    """Write a text to stderr that is not part of the result, with no end of line after it."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    print(f"{dim}{visible(text)}{plain}", end="", file=sys.stderr, flush=True)


def json_line(record: dict[str, Any]) -> None:
    """Write a record to stdout as one line of JSON; a figure that is not finite becomes null, since JSON has no NaN."""
    finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}
    out(json.dumps(finite, ensure_ascii=False, allow_nan=False))


def complain(text: str) -> None:
    """Write an error to stderr, red on a terminal."""
    from rich.text import Text

    _console(True).print(Text("error: ", style="bold red") + Text(visible(text), style="default"))


def visible(text: str) -> str:
    """Make control characters visible: ``\\x1b`` instead of an escape that the terminal would obey.

    Newlines and tabs stay. Invisible formatting characters (such as those that reverse the reading direction) are shown
    too.
    """
    return "".join(c if c in "\n\t" or not _is_control(c) else _escaped(c) for c in text)


def visible_word(text: str) -> str:
    """As :func:`visible`, on one line: newlines, tabs and unusual spaces are shown too."""
    shown = (_escaped(c) if _is_control(c) or (c.isspace() and c != " ") else c for c in text)
    return "".join(shown)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def table(title: str | None, headers: Sequence[str], rows: Sequence[Sequence[str]], to_stderr: bool = False) -> None:
    """Print a table; columns that hold only numbers (and ``–`` for none) are aligned to the right."""
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
    """Write ``name  value`` lines to stderr, aligned."""
    from rich.text import Text

    console = _console(True)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        console.print(Text(f"{name:<{width}}  ", style="bold") + Text(visible(value)))


def is_terminal(to_stderr: bool = True) -> bool:
    """Whether live drawing makes sense."""
    return _console(to_stderr).is_terminal


def columns() -> int:
    """Columns of the terminal on stdout; where there is none, as many as a table may have."""
    console = _console(False)
    return console.width if console.is_terminal else _COLUMNS


Advance = Callable[[int, int | None], None]
"""(done, in all or None)."""


@contextmanager
def progress_bar(label: str, unit: str = "bytes") -> Iterator[Advance]:
    """A bar on stderr, drawn only on a terminal; yields a function to be told (done, in all or ``None``)."""
    if not is_terminal():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=_console(True), transient=True) as progress:
        task = None

        def advance(done: int, total: int | None) -> None:
            nonlocal task
            if task is None:
                task = progress.add_task(label, total=total)
            progress.update(task, completed=done, total=total)

        yield advance


@contextmanager
def download_progress() -> Iterator[Advance]:
    """A bar for a download."""
    with progress_bar("downloading") as advance:
        yield advance


class Live:
    """The training display: a line that is redrawn on a terminal, and plain lines now and then where there is none.

    Args:
        total: planned steps, or ``None``.
        quiet: draw nothing.
    """

    def __init__(self, total: int | None, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self._progress = None
        self._task = None
        self.is_wide = True
        """Whether a line may be longer than 80 columns."""
        if not quiet and is_terminal():
            from rich.progress import BarColumn, Progress, TextColumn

            console = _console(True)
            self.is_wide = console.width >= 110
            bar = [BarColumn(bar_width=24)] if self.is_wide else []
            self._progress = Progress(
                TextColumn("{task.fields[status]}"), *bar, TextColumn("{task.fields[left]}"),
                console=console, transient=True, refresh_per_second=4,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task("", total=total, status="", left="")

    def update(self, done: int, status: str, left: str, total: int | None = None) -> None:
        """Redraw the line (terminal only); ``total`` replaces the planned steps."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, status=status, left=left, total=total or self._total)

    def say(self, text: str, style: str = "") -> None:
        """Write a line above the redrawn one."""
        if self._quiet:
            return
        from rich.text import Text

        if self._progress is not None:
            self._progress.console.print(Text(visible(text), style=style))
        else:
            notice(text)

    @property
    def is_drawn(self) -> bool:
        """Whether there is a terminal to redraw on."""
        return self._progress is not None

    def close(self) -> None:
        """Take the line away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


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
