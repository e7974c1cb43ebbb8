"""What the questions of ``charlm eval`` have in common: their arguments, and the text that they are asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import completion
from charlm.cli.options import Split
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.evaluation.texts import EvaluationText
    from charlm.loaded import Model

CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        autocompletion=completion.runs,
        help="A checkpoint's file, a run's folder (its best weights), or a run's name.",
    ),
]
FileArgument = Annotated[str | None, typer.Argument(help="A text, or - for standard input. Omitted: the recipe's corpus.")]
SplitOption = Annotated[
    Split | None,
    typer.Option(metavar="train|validation|test", help="Which part of the recipe's corpus.", show_default="validation"),
]
EngineOption = Annotated[str | None, typer.Option(help="native, torch or reference.", show_default="the fastest here")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON line.")]


def read_evaluated(opened: Model, file: str | None, split: Split | None) -> EvaluationText:
    """The text that FILE or ``--split`` names; the validation part of the recipe's corpus if neither is given.

    Raises:
        CharlmError: it cannot be read or is too short; both are given.
    """
    from charlm.evaluation.texts import read_file, read_part

    if file is None:
        return read_part(opened.checkpoint, opened.path, (split or Split.validation).value)
    if split is not None:
        raise UsageError("--split chooses a part of the recipe's corpus; a FILE is read whole")
    return read_file(opened.checkpoint, file)


def describe_model(opened: Model) -> dict[str, Any]:
    """Which weights were asked, and where they were computed: keys that the ``--json`` of every question has."""
    return {
        "device": str(opened.device),
        "engine": opened.engine,
        "step": opened.step,
        "epoch": opened.checkpoint.progress["epoch"],
        "parameters": opened.network.parameter_count(),
        "checkpoint": str(opened.path),
    }
