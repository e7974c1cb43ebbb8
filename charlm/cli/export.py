"""``charlm export``: a trained model in another form."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from charlm.cli.console import out, size, visible_word
from charlm.cli.evaluate.arguments import CheckpointArgument


class Form(StrEnum):
    """What a model can be exported to."""

    html = "html"


def export(
    checkpoint: CheckpointArgument,
    to: Annotated[Form, typer.Option(help="html: a web page that runs the model, without a network.")] = Form.html,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The file to write.", show_default="the run's name, .html"),
    ] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="Store weights in fp32: twice the size, probabilities to 1e-5.")] = False,
) -> None:
    """Write a trained model as a web page that runs it: type, see what comes next, let it write.

    Examples:
        charlm export shakespeare --to html
        charlm export checkpoints/mine -o mine.html --fp32
    """
    from charlm.config import path_of
    from charlm.errors import UsageError
    from charlm.export.html import write_page
    from charlm.loaded import load

    opened = load(checkpoint, "cpu")
    path = path_of(output) if output is not None else Path(f"{opened.path.resolve().parent.name}.html")
    try:
        written = write_page(opened, path, fp32=fp32)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", parameter="output") from None
    out(visible_word(f"{path}: {size(written)}. Open it in a web browser; it needs no network."))
