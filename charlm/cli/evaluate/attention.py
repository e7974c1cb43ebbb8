"""``charlm eval attention``: the attention weights of a model at the end of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from charlm.cli.console import json_line, notice, out, table, visible_word
from charlm.cli.evaluate.arguments import CheckpointArgument
from charlm.cli.options import MAX_LENGTH, read_text


def attention(
    checkpoint: CheckpointArgument,
    text: Annotated[str, typer.Argument(help="Text to read; @FILE reads a file, - standard input.")],
    top: Annotated[int, typer.Option(min=1, max=MAX_LENGTH, help="Number of positions to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line, with the weights of all positions.")] = False,
) -> None:
    """Show the positions with the highest attention weights.

    The weights are those at the end of a text.

    Examples:
        charlm eval attention mine "The Time Traveller (for so it "
    """
    given = read_text(text, "TEXT")

    from charlm.loaded import load

    opened = load(checkpoint, "cpu")
    given, vocabulary = opened.as_read(given), opened.vocabulary
    unknown = sum(index == vocabulary.unknown_id for index in vocabulary.encode(given, "map"))
    if unknown:
        notice(f"note: {unknown} of the characters are not in the vocabulary and were read as <unk>")
    weights = opened.attention(given)
    if as_json:
        json_line({"weights": weights.tolist(), "nothing": 1 - float(weights.sum()), "characters": len(weights) + 1})
        return
    symbols = given.encode("utf-8", "surrogateescape") if vocabulary.unit == "byte" else given
    rows = []
    for position in sorted(range(len(weights)), key=lambda position: -weights[position])[:top]:
        before, after = symbols[max(0, position - 24) : position + 1], symbols[position + 1 : position + 9]
        words = [part if isinstance(part, str) else part.decode(errors="replace") for part in (before, after)]
        rows.append([f"{weights[position]:.4f}", str(len(weights) - position), *(visible_word(word) for word in words)])
    table(None, ["weight", "steps back", "text before", "text after"], rows)
    out(f"nothing               {1 - weights.sum():.4f}")
