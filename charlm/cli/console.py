"""Output on the terminal: the only modules that use Rich are this one, :mod:`charlm.cli.live` and
:mod:`charlm.cli.help`.

Results go to stdout, progress and notices to stderr. Live drawing and colour only on a terminal (and none where
``NO_COLOR`` is set). Control characters in text are made visible on a terminal.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from charlm.files import to_json

if TYPE_CHECKING:
    from rich.console import Console

    from charlm.progress import Progress

_COLUMNS = 160  # width of a table in a file or pipe


def terminal(to_stderr: bool) -> Console:
    """Rich's console, which passes lines of any length and any markup through."""
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
    console = terminal(to_stderr)
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
    terminal(True).print(Text.assemble((start, "bold red"), message))


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

    console = terminal(to_stderr)
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

    console = terminal(True)
    width = max(len(name) for name, _ in pairs) + 2
    for name, value in pairs:
        start = f"{name:<{width}}"
        console.print(Text.assemble((start, "bold"), _fact(start, visible(value)).removeprefix(start)))


def has_colour() -> bool:
    """Whether stdout shows colours: a terminal that has them, and no ``NO_COLOR``."""
    console = terminal(False)
    return console.is_terminal and console.color_system is not None and not console.no_color


def styled(pieces: Iterable[tuple[str, str]]) -> None:
    """Write a line to stdout in pieces of (text, Rich style); the text is shown as it is."""
    from rich.text import Text

    terminal(False).print(Text.assemble(*pieces))


def is_terminal(to_stderr: bool = True) -> bool:
    """Whether stderr (or stdout) is a terminal."""
    return terminal(to_stderr).is_terminal


def columns() -> int:
    """Width of the terminal on stdout; without a terminal, the maximum width of a table."""
    console = terminal(False)
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
    with rich.Progress(*columns, console=terminal(True), transient=True) as progress:
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
    with Progress(*columns, console=terminal(True), transient=True, auto_refresh=False) as progress:
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
