"""Assembles the commands and turns errors into short messages and exit codes.

0: done; 2: the command or the recipe is wrong; 1: another failure; 130: interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from charlm.cli.bench import bench
from charlm.cli.cache import cache_app
from charlm.cli.compare import compare
from charlm.cli.completion import join_assignment
from charlm.cli.console import complain, notice, shell_words
from charlm.cli.corpus import corpus_app
from charlm.cli.evaluate import evaluate_app
from charlm.cli.export import export
from charlm.cli.help import App, Group
from charlm.cli.info import info
from charlm.cli.init import init
from charlm.cli.plot import plot
from charlm.cli.recipe import recipe_app
from charlm.cli.report import report
from charlm.cli.runs import runs_app
from charlm.cli.sample import sample
from charlm.cli.streams import OutputError
from charlm.cli.train import train
from charlm.cli.tune import tune
from charlm.cli.write import write
from charlm.errors import CharlmError


class _Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C."""


class _Commands(Group):
    """Passes Ctrl-C on, which Typer would hide."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


app = App(
    name="charlm",
    cls=_Commands,
    help=(
        "Train a character-level language model on any text, measure its perplexity exactly, sample from it.\n\n"
        "Examples:\ncharlm train quickstart\ncharlm sample quickstart\ncharlm train --help"
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(init)
app.command()(train)
app.command()(compare)
app.command()(tune)
app.command()(sample)
app.command()(write)
app.add_typer(evaluate_app, name="eval")
app.add_typer(corpus_app, name="corpus")
app.add_typer(recipe_app, name="recipe")
app.add_typer(cache_app, name="cache")
app.add_typer(runs_app, name="runs")
app.command()(plot)
app.command()(report)
app.command()(export)
app.command()(info)
app.command()(bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        from charlm import __version__

        typer.echo(f"charlm {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command. ``--debug`` is read by :func:`run`, since it also applies before a command starts."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code.

    Args:
        arguments: without the program's name; ``None``: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or bool(os.environ.get("CHARLM_DEBUG"))
    given = [argument for argument in given if argument != "--debug"]
    if os.environ.get("_CHARLM_COMPLETE") == "complete_bash":
        join_assignment(os.environ)
    try:
        code = _outcome(given, debug)
    except OutputError as error:
        return _undelivered(error)
    try:
        sys.stdout.flush()
    except OutputError as error:
        return code or _undelivered(error)
    return code


def _outcome(given: list[str], debug: bool) -> int:
    try:
        code = app(args=given, prog_name="charlm", obj=time.monotonic(), standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except (_Interrupted, KeyboardInterrupt):
        notice("interrupted")
        return 130
    except OutputError:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
            return getattr(error, "exit_code", 1)
        return _explain(error)


def _undelivered(error: OutputError) -> int:
    """If the reader closed the pipe (``charlm sample … | head``), this is no failure; any other broken output is."""
    if error.reader_left:
        return 0
    complain(str(error))
    return error.exit_code


def _explain(error: Exception) -> int:
    from charlm.distributed import PeerLostError, is_first

    if isinstance(error, CharlmError):
        # The first process reports what all processes of a run know. Each one reports that it lost the others.
        if is_first() or isinstance(error, PeerLostError):
            complain(error.text(_flag))
        return error.exit_code
    if hasattr(error, "format_message"):  # Typer's usage errors; newer releases hide their class
        return _explain_usage(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "\nFree some space. Saved files are intact; resume a training with --resume auto." if full else ""
        complain(f"{error.strerror or error}{where}{advice}")
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "allocate memory" in str(error):
        complain(f"not enough memory: {error}\nUse a smaller train.batch, train.seq_length or model.hidden.")
    else:
        complain(f"{type(error).__name__}: {error}\nThis is a bug in charlm; --debug shows where.")
    return 1


def _flag(name: str, value: object) -> str:
    """An argument as the command line takes it: ``--top-k 5`` for ``top_k=5``, ``--overwrite`` for ``overwrite=True``."""
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or value is True else f"{flag} {shell_words([str(value)])}"


def _explain_usage(error: Any) -> int:
    """In the same form as other errors, without Typer's box."""
    message = str(error.format_message()).replace(": Value error, ", ": ")  # as pydantic words it
    if message:  # empty: no arguments, and the help was printed
        command = error.ctx.command_path if error.ctx is not None else "charlm"
        complain(f"{message}\nSee: {command} --help")
    return int(error.exit_code)
