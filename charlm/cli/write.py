"""``charlm write``: prompt after prompt with one loaded model."""

from __future__ import annotations

import difflib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli.console import complain, facts, notice, visible_word
from charlm.cli.drawn import show_pieces, write_pieces
from charlm.cli.history import recalled, remember
from charlm.cli.live import hidden_keys
from charlm.cli.options import MAX_LENGTH, MAX_SEED, unescaped
from charlm.cli.streams import OutputError
from charlm.errors import CharlmError, UsageError
from charlm.files import whole_file

if TYPE_CHECKING:
    from charlm.writing import Session

_PROMPT, _CONTINUED = "> ", ". "

_SHOWN_AGAIN = 240
"""Bytes before a continued text that a terminal shows again, at most: the end of its last line."""

_HELP = r"""A line is a prompt; the model continues it. An empty line starts a new text.
  \n \t \\               newline, tab, backslash in a prompt
  \ at the end           the prompt continues on the next line
  // at the beginning    a prompt that begins with /
  Ctrl-C                 stops the text
  Ctrl-D or /quit        ends the session

/again                   the same prompt, another text
/more                    continue the last text
/temperature 0.7         below 1: safer; above 1: more random; 0: most likely
/top-k 5                 draw only from the 5 likeliest characters; 0: all
/top-p 0.9               draw only from those that together reach 0.9; 1: all
/length 300              new characters per text; 0: until stopped
/stop TEXT               stop before this text (\n as above); no TEXT: never
/seed 1                  same seed, same text; random: new for each prompt
/save FILE               write the last text and its prompt; --all: all texts;
                         --force: replace an existing file
/show                    the settings
/help                    this list"""


class _CtrlC(Exception):  # noqa: N818 - not an error
    """Ctrl-C where no text is drawn, or a second one."""


class _Quit(Exception):  # noqa: N818 - not an error
    """The user ends the session."""


def write(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint file, a run's folder (best weights), or a run's name.")],
    length: Annotated[int, typer.Option(min=0, max=MAX_LENGTH, help="New characters per text; 0: until stopped.")] = 500,
    temperature: Annotated[float, typer.Option(help="Below 1: safer; above 1: more random; 0: always the most likely.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, max=MAX_LENGTH, help="Draw only from the K most likely characters; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw only from the most likely characters that together reach P.")] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, help="Same seed, same text.", show_default="drawn for each prompt"),
    ] = None,
    stop: Annotated[str, typer.Option(help="Stop before this text.")] = "",
    no_history: Annotated[bool, typer.Option("--no-history", help="Neither read nor keep typed lines.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write with a model: prompt after prompt, with live settings. /help lists the commands.

    In a pipe each line of standard input is a prompt or a command, and stdout is the drawn text, exactly.

    Examples:
        charlm write shakespeare
        charlm write mine --temperature 0.7 --length 300
    """
    from charlm.loaded import load
    from charlm.writing import Session, Settings

    settings = Settings(temperature, top_k, top_p, length, stop, seed)
    model = load(checkpoint, device)
    lines = _Lines(sys.stdin.isatty(), keeps_history=not no_history)
    if lines.is_typed:
        notice(f"{visible_word(checkpoint)}, step {model.step:,}. Type a prompt, or /help.")
    _Writer(Session(model, settings), lines).run()


class _Lines:
    """Reads lines: with editing and history if stdin and stdout are a terminal; without prompts in a pipe.

    Args:
        is_typed: whether stdin is a terminal.
        keeps_history: whether typed lines are kept for the next session.
    """

    def __init__(self, is_typed: bool, keeps_history: bool) -> None:
        self.is_typed = is_typed
        self._readline: Any = None
        self._history: Path | None = None
        self._typed: list[str] = []
        if not (is_typed and sys.stdout.isatty()):
            return
        with suppress(ImportError):  # some builds of Python have none; lines can then not be edited
            import readline

            self._readline = readline
            readline.set_auto_history(False)
        if keeps_history and self._readline is not None:
            from charlm.data.folders import state_folder

            self._history = state_folder() / "write_history"
            for line in recalled(self._history):
                self._readline.add_history(line)

    def next(self) -> str:
        """A prompt or a command: one line, or several if a prompt's lines end in a backslash.

        Raises:
            EOFError: the input has ended.
        """
        line = self._read(_PROMPT)
        while _is_continued(line) and not _is_command(line):
            try:
                line = f"{line[:-1]}\n{self._read(_CONTINUED)}"
            except EOFError:
                return line[:-1]
        return line

    def _read(self, prompt: str) -> str:
        if self._readline is None:
            if self.is_typed:
                print(prompt, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.removesuffix("\n")
        line = input(prompt)
        if line and line != (self._typed or [""])[-1]:
            self._typed.append(line)
            with suppress(ValueError):  # a NUL
                self._readline.add_history(line)
        return line

    def close(self) -> None:
        """Keep the typed lines."""
        if self._history is not None:
            try:
                remember(self._history, self._typed)
            except OSError as error:
                notice(f"the history was not kept: {self._history}: {error.strerror}")


def _is_continued(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _is_command(line: str) -> bool:
    return line.startswith("/") and not line.startswith("//")


class _Writer:
    """Executes lines, one after the other; an error of one is a message."""

    def __init__(self, session: Session, lines: _Lines) -> None:
        self._session = session
        self._lines = lines
        self._is_drawing = False
        self._saved: dict[Path, tuple[int, ...]] = {}
        self._plain: dict[str, Callable[[], None]] = {
            "again": lambda: self._begin(self._session.again()),
            "more": self._more,
            "show": self._show,
            "help": lambda: notice(_HELP, wrap=False),
            "quit": self._quit,
        }
        self._with_argument: dict[str, Callable[[str], None]] = {
            "temperature": lambda given: self._set(temperature=_real(given)),
            "top-k": lambda given: self._set(top_k=_whole(given)),
            "top-p": lambda given: self._set(top_p=_real(given)),
            "length": lambda given: self._set(length=_whole(given)),
            "stop": lambda given: self._set(stop=unescaped(given)),
            "seed": lambda given: self._set(seed=None if given.strip() == "random" else _whole(given, MAX_SEED)),
            "save": self._save,
        }

    def run(self) -> None:
        """Read and execute lines until the input ends."""
        try:
            with self._ctrl_c() if self._lines.is_typed else nullcontext():
                while True:
                    try:
                        self._execute(self._lines.next())
                    except _CtrlC:
                        notice("\nCtrl-D or /quit ends the session")
        except EOFError:
            if self._lines.is_typed:
                notice("")
        except _Quit:
            pass
        finally:
            self._lines.close()

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """Ctrl-C ends the text that is drawn, or cancels the line that is typed. SIGTERM still ends the program."""

        def pressed(number: int, frame: FrameType | None) -> None:
            if not self._is_drawing or self._session.is_interrupted:
                raise _CtrlC
            self._session.interrupt()

        before = signal.signal(signal.SIGINT, pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _execute(self, line: str) -> None:
        try:
            if _is_command(line):
                self._command(line)
            else:
                self._prompt(unescaped(line.removeprefix("/") if line.startswith("//") else line))
        except OutputError:
            raise
        except CharlmError as error:
            complain(error.text(lambda name, value: f"/{name.replace('_', '-')}"))

    def _prompt(self, prompt: str) -> None:
        try:
            pieces = self._session.write(prompt)
        except UsageError as error:
            raise UsageError(f"{error}; write the prompt without them") from None
        self._begin(pieces)

    def _command(self, line: str) -> None:
        name, _, given = line[1:].partition(" ")
        if name in self._with_argument:
            self._with_argument[name](given)
            return
        if name in self._plain:
            if given.strip():
                raise UsageError(f"/{name} takes nothing; found {visible_word(given)!r}")
            self._plain[name]()
            return
        close = difflib.get_close_matches(name, [*self._plain, *self._with_argument], 1)
        meant = f"did you mean /{close[0]}? " if close else ""
        raise UsageError(f"/{name} is no command; {meant}/help lists all. A prompt that begins with / is written //{name}")

    def _begin(self, pieces: Iterator[bytes]) -> None:
        text, settings = self._session.texts[-1], self._session.settings
        if settings.temperature > 0 and (settings.seed is None or text.number > 0):
            notice(f"seed {text.seed}" + (f", sample {text.number + 1}" if text.number else ""))
        if len(self._session.texts) > 1 and not sys.stdout.isatty():
            write_pieces([b"\n"])
        self._draw(text.prompt, pieces)

    def _more(self) -> None:
        pieces = self._session.more()
        end = bytes(self._session.texts[-1].whole[-_SHOWN_AGAIN:]).decode("utf-8", "ignore")
        self._draw(end.rpartition("\n")[2], pieces)

    def _draw(self, before: str, pieces: Iterator[bytes]) -> None:
        """Write a text; on a terminal, after the text before."""
        self._is_drawing = True
        try:
            if sys.stdout.isatty():
                with hidden_keys():
                    show_pieces(before, pieces)
            else:
                write_pieces(pieces)
                sys.stdout.flush()
        finally:
            self._is_drawing = False
        if self._session.is_interrupted:
            notice("stopped; /more continues it")

    def _set(self, **changed: Any) -> None:
        self._session.settings = replace(self._session.settings, **changed)

    def _show(self) -> None:
        now = self._session.settings
        seed = "random" if now.seed is None else str(now.seed)
        values = {
            "temperature": f"{now.temperature:g}", "top-k": now.top_k or "all", "top-p": f"{now.top_p:g}",
            "length": now.length or "until stopped", "stop": repr(now.stop) if now.stop else "never", "seed": seed,
        }  # fmt: skip
        facts([(name, str(value)) for name, value in values.items()])

    def _save(self, given: str) -> None:
        path, saves_all, replaces = _save_arguments(given)
        if not self._session.texts:
            raise UsageError("there is no text yet; write a prompt first")
        texts = self._session.texts if saves_all else self._session.texts[-1:]
        try:
            if os.path.lexists(path) and not replaces and _identity(path) != self._saved.get(path):
                raise UsageError(f"{path} exists, and this session did not write it; /save --force replaces it")
            with whole_file(path) as file:
                file.write(b"\n\n".join(text.whole for text in texts))
            self._saved[path] = _identity(path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        notice(f"saved {len(texts)} {'text' if len(texts) == 1 else 'texts'}: {visible_word(str(path))}")

    def _quit(self) -> None:
        raise _Quit


def _save_arguments(given: str) -> tuple[Path, bool, bool]:
    """The file of ``/save``, and whether ``--all`` and ``--force`` are given."""
    from charlm.config import path_of

    try:
        words = shlex.split(given)
    except ValueError:
        raise UsageError(f"/save {given}: a quote is not closed") from None
    flags = {word for word in words if word.startswith("--")}
    names = [word for word in words if word not in flags]
    if len(names) != 1 or not names[0] or names[0].endswith("/") or not flags <= {"--all", "--force"}:
        raise UsageError("expected /save [--all] [--force] FILE; a name with spaces in quotes")
    return path_of(names[0]).absolute(), "--all" in flags, "--force" in flags


def _identity(path: Path) -> tuple[int, ...]:
    """Changes when another program replaces or writes the file."""
    status = path.lstat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _real(given: str) -> float:
    try:
        return float(given)
    except ValueError:
        raise _not_a_number(given) from None


def _whole(given: str, most: int = MAX_LENGTH) -> int:
    try:
        number = int(given)
    except ValueError:
        raise _not_a_number(given) from None
    if number > most:
        raise UsageError(f"{number}: expected at most {most}")
    return number


def _not_a_number(given: str) -> UsageError:
    found = f"{given.strip()!r} is not a number that fits" if given.strip() else "the number is missing"
    return UsageError(f"{found}; /help has examples, /show lists the present values")
