"""``charlm plot``: learning curves of runs, in the terminal or as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli.console import columns, is_terminal, json_line, out, styled, visible_word
from charlm.cli.picture import PngOption, picture_path
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.cli.curve import Curve

_WIDTH, _HEIGHT = 70, 14  # characters of the plot without a terminal


class XChoice(StrEnum):
    """Values of ``--x``."""

    steps = "steps"
    characters = "characters"
    seconds = "seconds"


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs: names or folders.")],
    x: Annotated[XChoice, typer.Option(metavar="steps|characters|seconds", help="Horizontal axis.")] = XChoice.steps,
    png: PngOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The points of the curves, as one JSON line.")] = False,
) -> None:
    """Draw the learning curves of runs in one plot, and mark the best validation of each.

    The loss has a logarithmic axis. For one run, the training loss is drawn too; a picture (--png) shows it for all runs.

    Examples:
        charlm plot shakespeare
        charlm plot mine-gru mine-lstm --x seconds --png curves.png
    """
    from charlm.cli.curve import draw_runs, read_curve, write_runs_png

    picture = picture_path(png)
    folders = _folders(runs)
    curves = {name: read_curve(folder, x.value) for name, folder in folders.items()}
    if empty := [str(folders[name]) for name, curve in curves.items() if not curve.main]:
        raise UsageError(f"nothing is recorded in {', '.join(empty)}; expected runs with a metrics.jsonl")
    if picture is not None:
        try:
            write_runs_png(curves, x.value, picture)
        except OSError as error:
            raise UsageError(f"{picture}: cannot write: {error.strerror}", parameter="png") from None
    if as_json:
        json_line({"x": x.value, "runs": {name: _record(curve) for name, curve in curves.items()}})
        return
    if picture is not None:
        out(visible_word(str(picture)))
        return
    width, height = _size(len(curves))
    for line in draw_runs({visible_word(name): curve for name, curve in curves.items()}, x.value, width, height):
        styled(line)


def _size(runs: int) -> tuple[int, int]:
    """Width and height of the plot: with axes, legend and prompt it fits the terminal."""
    if not is_terminal(to_stderr=False):
        return _WIDTH, _HEIGHT
    return max(20, min(columns() - 10, 110)), max(8, min(get_terminal_size().lines - runs - 5, 24))


def _folders(runs: Sequence[str]) -> dict[str, Path]:
    """The folder of each run, by the shortest end of its path that no other run has."""
    from charlm.checkpoint import find_run

    folders = list(dict.fromkeys(find_run(name).resolve() for name in runs))
    found = {}
    for folder in folders:
        parts = folder.parts
        lengths = range(1, len(parts) + 1)
        ends = (parts[-length:] for length in lengths)
        unique = next(end for end in ends if sum(other.parts[-len(end) :] == end for other in folders) == 1)
        found["/".join(unique)] = folder
    return found


def _record(curve: Curve) -> dict[str, Any]:
    best = curve.best
    return {
        "training": curve.training,
        "validation": curve.validation,
        "best": {"x": best[0], "nats": best[1]} if best is not None else None,
    }
