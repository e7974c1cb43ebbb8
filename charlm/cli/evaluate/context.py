"""``charlm eval context``: how far back a model's predictions depend on the text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli.console import json_line, notice, out, progress_bar, results, table, visible_word
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
from charlm.cli.picture import PngOption, new_figure, picture_path, save

if TYPE_CHECKING:
    from charlm.evaluation.context import Context

_BAR = 20


def context(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    positions: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many characters to score.")] = 512,
    png: PngOption = None,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure how far back predictions use the text.

    Measures the loss with the history cut, shuffled or replaced beyond k characters.

    Examples:
        charlm eval context shakespeare
        charlm eval context mine --positions 128 --png context.png
    """
    from charlm.evaluation.context import context as measure
    from charlm.loaded import load

    picture = picture_path(png)
    opened = load(checkpoint, device, engine=engine or "auto")
    evaluated = read_evaluated(opened, file, split)
    with progress_bar("reading", unit="characters") as advance:
        found = measure(opened.network, evaluated.text, positions=positions, progress=advance)
    if picture is not None:
        _draw(found, picture)
    record: dict[str, Any] = {
        "effective_context": found.effective_context,
        "distances": found.distances.tolist(),
        "cut": found.cut.tolist(),
        "shuffled": found.shuffled.tolist(),
        "replaced": found.replaced.tolist(),
        "full": found.full,
        "cold_start": found.cold_start.tolist(),
        "positions": found.positions,
        **evaluated.describe(),
        "precision": "fp32",
        **describe_model(opened),
    }
    if as_json:
        json_line(record)
    else:
        _print(found, record, len(evaluated.text), opened.vocabulary.unit)


def _print(found: Context, record: dict[str, Any], characters: int, unit: str) -> None:
    kind = "bytes" if unit == "byte" else "characters"
    rows, before = [], 0
    extra = found.cut - found.full
    longest = max(float(extra[1:].max(initial=0.0)), 1e-9)
    for number, k in enumerate(found.distances.tolist()):
        cold = found.cold_start[before:k]
        before = k
        length = min(_BAR, round(_BAR * max(0.0, float(extra[number])) / longest))
        losses = [f"{losses[number]:.4f}" for losses in (found.cut, found.shuffled, found.replaced)]
        rows.append([f"{k:,}", *losses, f"{cold.mean():.4f}" if len(cold) else "–", "█" * length])
    table(None, ["k", "cut", "shuffled", "replaced", "cold start", "cut − full"], rows)
    where = f"{record['split']} part of {record['text']}" if record["split"] else record["text"]
    results(
        [
            ("full history", f"{found.full:.4f} nats per {kind[:-1]}"),
            ("effective context", _effective(found, characters, kind)),
            ("scored", f"{found.positions:,} {kind} of {visible_word(where)}"),
        ]
    )
    out(f"k: {kind} of history; before them nothing (cut), shuffled or other text")
    notice(f"engine {record['engine']}, {record['device']}")


def _effective(found: Context, characters: int, kind: str) -> str:
    """The effective context, or why there is none."""
    from charlm.evaluation.context import DISTANCES, FEWEST

    if found.effective_context is not None:
        return f"{found.effective_context:,} {kind}: the fewest within 1 % of the full history"
    if found.positions < FEWEST:
        return f"unknown, too few positions: {found.positions:,} scored, {FEWEST} needed"
    more = f"more than {found.distances[-1]:,} {kind}"
    return more if found.distances[-1] == DISTANCES[-1] else f"{more}; the text of {characters:,} is too short to say more"


def _draw(found: Context, path: Path) -> None:
    import numpy as np

    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    cold = np.arange(1, len(found.cold_start) + 1)
    axes.plot(cold, found.cold_start, label="after a cold start", linewidth=0.7, color="0.7")
    for name, losses in (("cut", found.cut), ("shuffled", found.shuffled), ("replaced", found.replaced)):
        axes.plot(found.distances, losses, label=f"{name} beyond k", marker="o", markersize=3, linewidth=1)
    axes.axhline(found.full, label="full history", linestyle="--", linewidth=1, color="black")
    if found.effective_context is not None:
        axes.axvline(found.effective_context, label="effective context", linestyle=":", color="black")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.set_xticks(found.distances, [f"{k:,}" for k in found.distances.tolist()])
    axes.set_xlabel("k, characters of history")
    axes.set_ylabel("nats per character")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
