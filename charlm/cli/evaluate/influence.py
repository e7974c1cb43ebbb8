"""``charlm eval influence``: which past characters a prediction depends on."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from charlm.cli.console import json_line, notice, out, progress_bar, table
from charlm.cli.evaluate.arguments import (
    CheckpointArgument,
    DeviceOption,
    EngineOption,
    FileArgument,
    JsonOption,
    SplitOption,
    describe_model,
    read_evaluated,
)
from charlm.cli.evaluate.marked_text import percent, quoted, show_marked, shown_symbols

_BARS = " ▁▂▃▄▅▆▇█"
_TOP = 8
_PAGE_REPLACEMENTS = 16


def influence(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    position: Annotated[
        int, typer.Option(help="Index of the character to explain, from 0; negative: from the end.", show_default="the last")
    ] = -1,
    distance: Annotated[int, typer.Option(min=1, max=10_000, help="How far back characters are tried.")] = 100,
    replacements: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Other symbols tried in the place of each.",
            show_default="all if there are at most 100, else 32; 16 in a page",
        ),
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page: point at a character to see what it depended on.")
    ] = None,
    characters: Annotated[int, typer.Option(min=1, max=500, help="How many characters the page explains.")] = 300,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show which past characters a prediction depends on.

    Replaces each of them by other characters, and computes gradient × input.

    Examples:
        charlm eval influence shakespeare
        charlm eval influence mine chapter.txt --html influence.html
    """
    from charlm.config import path_of
    from charlm.evaluation.influence import influence as measure
    from charlm.html.page import check_page_path
    from charlm.loaded import load

    page = None if html is None else path_of(html)
    if page is not None:
        check_page_path(page)
    opened = load(checkpoint, device, engine=engine or "auto")
    evaluated = read_evaluated(opened, file, split)
    options: dict[str, Any] = {"distance": distance, "unknown_id": opened.vocabulary.unknown_id}
    with progress_bar("reading", unit="characters") as advance:
        if page is not None and replacements is None:
            replacements = _PAGE_REPLACEMENTS
        found = measure(
            opened.network, evaluated.text, position, count=1 if page is None else characters,
            replacements=replacements, progress=advance, **options,
        )  # fmt: skip
    if page is not None:
        from charlm.cli.evaluate.influence_page import write_page

        write_page(page, found, evaluated, opened.vocabulary.unit)
    # The last explained character is the one that was asked about.
    index, D = found.start + len(found.nats) - 1, found.divergence.shape[1]
    symbols = shown_symbols(evaluated, index - D, index + 1, opened.vocabulary.unit)
    record: dict[str, Any] = {
        "position": index,
        "character": symbols[-1],
        "nats": float(found.nats[-1]),
        "past": symbols[-2::-1],
        "divergence": found.divergence[-1].tolist(),
        "change": found.change[-1].tolist(),
        "gradient": found.gradient[-1].tolist(),
        "attention": None if found.attention is None else found.attention[-1].tolist(),
        "replacements": found.replacements,
        **evaluated.describe(),
        "precision": "fp32",
        **describe_model(opened),
    }
    if as_json:
        json_line(record)
    elif page is None:
        _show(record, symbols)


def _show(record: dict[str, Any], symbols: list[str]) -> None:
    """The text with bars below, and the characters that count most."""
    measures = {
        "replaced": record["divergence"],
        "gradient": [abs(value) for value in record["gradient"]],
        "attention": record["attention"] or [],
    }
    out(
        f"character {record['position']:,}, {quoted(symbols[-1])}: {record['nats'] / math.log(2):.2f} bits, "
        f"probability {percent(math.exp(-record['nats']))}"
    )
    show_marked(symbols, [(name, [*_bars(values[::-1]), "?"]) for name, values in measures.items() if values])
    rows = []
    for at in sorted(range(len(symbols) - 1), key=lambda at: -record["divergence"][at])[:_TOP]:
        numbers = [f"{record[name][at]:.4f}" for name in ("divergence", "change")]
        looked = [f"{record['attention'][at]:.4f}"] if record["attention"] else []
        before = "".join(symbols[max(0, len(symbols) - 10 - at) : len(symbols) - 1 - at])
        rows.append([str(at + 1), before, *numbers, f"{record['gradient'][at]:+.4f}", *looked])
    attention = ["attention"] if record["attention"] else []
    table(None, ["steps back", "… character", "divergence", "change", "gradient × input", *attention], rows)
    out(f"divergence, change: nats, mean of {record['replacements']:,} replacements of that character")
    notice(f"engine {record['engine']}, {record['device']}")


def _bars(values: list[float]) -> list[str]:
    largest = max(values) or 1.0
    return [_BARS[min(8, math.ceil(8 * value / largest - 0.2))] for value in values]
