"""``charlm init``: a commented recipe for a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from charlm.cli.console import notice, out, progress_bar, visible, visible_word


def init(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A file, a folder, a glob, or the name of a corpus.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key, such as model.cell=gru. Repeatable."),
    ] = None,
) -> None:
    """Print a commented recipe for a text, with the values that `charlm train TEXT` would choose.

    Save it, change it, train it: `charlm init mine.txt > mine.yaml`, then `charlm train mine.yaml`.

    Examples:
        charlm init mine.txt > mine.yaml
        charlm init mine.txt --set model.cell=gru > gru.yaml
    """
    from charlm.training.starter import starting_recipe

    with progress_bar("encoding") as encoding:
        found = starting_recipe(text, set_ or [], encoding)
    for each in found.notices:
        notice(f"note: {visible_word(each)}")
    out((visible(found.text) if sys.stdout.isatty() else found.text).rstrip("\n"))
