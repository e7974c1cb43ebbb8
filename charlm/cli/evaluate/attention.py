"""``charlm eval attention``: where a model with attention looks."""

from __future__ import annotations

from typing import Annotated

import typer

from charlm.cli.console import json_line, notice, out, table, visible_word
from charlm.cli.evaluate.arguments import CheckpointArgument
from charlm.cli.options import MAX_LENGTH, read_text


def attention(
    checkpoint: CheckpointArgument,
    text: Annotated[str, typer.Argument(help="What to read; @FILE reads a file, - standard input.")],
    top: Annotated[int, typer.Option(min=1, max=MAX_LENGTH, help="How many places to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line, with the weights of all places.")] = False,
) -> None:
    """Show where a model with attention looks at the end of a text: places in it, and their weights."""
    given = read_text(text, "TEXT")

    from charlm.loaded import load

    opened = load(checkpoint, "cpu")
    given, vocabulary = opened.as_read(given), opened.vocabulary
    unknown = sum(index == vocabulary.unknown_id for index in vocabulary.encode(given, "map"))
    if unknown:
        notice(f"note: {unknown} of the characters are not in the vocabulary, and were read as <unk>")
    weights = opened.attention(given)
    if as_json:
        json_line({"weights": weights.tolist(), "nothing": 1 - float(weights.sum()), "characters": len(weights) + 1})
        return
    symbols = given.encode("utf-8", "surrogateescape") if vocabulary.unit == "byte" else given
    rows = []
    for place in sorted(range(len(weights)), key=lambda place: -weights[place])[:top]:
        before, after = symbols[max(0, place - 24) : place + 1], symbols[place + 1 : place + 9]
        words = [part if isinstance(part, str) else part.decode(errors="replace") for part in (before, after)]
        rows.append([f"{weights[place]:.4f}", str(len(weights) - place), *(visible_word(word) for word in words)])
    table(None, ["weight", "steps back", "had read …", "… and then came"], rows)
    out(f"nothing               {1 - weights.sum():.4f}")
