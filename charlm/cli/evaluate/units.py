"""``charlm eval units``: what single hidden units track in a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
from charlm.cli.evaluate.marked_text import show_values, shown_characters
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.evaluation.texts import EvaluationText
    from charlm.evaluation.units import Units
    from charlm.loaded import Model


def units(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    unit: Annotated[
        str | None, typer.Option(metavar="LAYER:INDEX", help="Show this unit over the text instead, such as 0:117.")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="h|c", help="With --unit: h (output) or c (an LSTM's cell state).", show_default="h"),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="With --unit: characters to show.", show_default="1000")
    ] = None,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the hidden units that track quotes, brackets and more.

    Features are quotes, brackets, indentation, comments, LaTeX and others. Each score is beside its chance level.

    Examples:
        charlm eval units shakespeare
        charlm eval units shakespeare --unit 0:117 --length 400
    """
    place = _place(unit) if unit is not None else None
    if place is None and (state is not None or length is not None):
        raise UsageError(f"{'--state' if state is not None else '--length'} belongs to --unit, such as --unit 0:117")

    from charlm.evaluation.units import units as search
    from charlm.loaded import load

    opened = load(checkpoint, device, engine=engine or "auto")
    evaluated = read_evaluated(opened, file, split)
    record = {**evaluated.describe(), **describe_model(opened)}
    if place is not None:
        passage = (0, min(length or 1000, len(evaluated.text)))
        shown = _read_unit(opened, evaluated, state or "h", *place, passage)
        if as_json:
            json_line({**shown, **record})
        else:
            _show_unit(shown, opened, evaluated)
        return
    with progress_bar("reading", unit="characters") as advance:
        found = search(opened.network, evaluated.text, evaluated.symbols, progress=advance)
    best = found.scores[0]
    shown = _read_unit(opened, evaluated, best.state, best.layer, best.unit, best.passage)
    if as_json:
        json_line({**_describe(found), "shown": shown, **record})
        return
    _print(found)
    out(f"\n{best.feature}: the unit that gains most, where the feature changes most\n")
    _show_unit(shown, opened, evaluated)


def _place(given: str) -> tuple[int, int]:
    layer, _, index = given.partition(":")
    if all(part.isascii() and part.isdigit() and len(part) <= 9 for part in (layer, index)):
        return int(layer), int(index)
    raise UsageError(f"--unit {given}: expected LAYER:INDEX, both counted from 0, such as 0:117")


def _read_unit(
    opened: Model, evaluated: EvaluationText, state: str, layer: int, unit: int, passage: tuple[int, int]
) -> dict[str, Any]:
    from charlm.evaluation.units import trace

    values = trace(opened.network, evaluated.text, state, layer, unit, *passage)
    offset = evaluated.offsets[0]
    return {
        "layer": layer,
        "unit": unit,
        "state": state,
        "passage": [offset + passage[0], offset + passage[1]],
        "values": values.tolist(),
    }


def _show_unit(shown: dict[str, Any], opened: Model, evaluated: EvaluationText) -> None:
    start, stop = (place - evaluated.offsets[0] for place in shown["passage"])
    show_values(shown_characters(evaluated, start, stop, opened.vocabulary.unit), shown["values"])
    lowest, highest = min(shown["values"]), max(shown["values"])
    notice(
        f"unit {shown['layer']}:{shown['unit']}, state {shown['state']}, from {lowest:.3f} to {highest:.3f}, "
        f"characters {shown['passage'][0]:,}–{shown['passage'][1]:,}"
    )


def _describe(found: Units) -> dict[str, Any]:
    names = "feature measure state layer unit sign score chosen_score chance chance_high untrained".split()  # noqa: SIM905
    return {
        "features": [{name: getattr(score, name) for name in names} for score in found.scores],
        "left_out": found.left_out,
        "chosen_on": found.chosen_on,
        "measured_on": found.measured_on,
    }


def _print(found: Units) -> None:
    names = {"auc": "AUC", "spearman": "ρ"}
    rows = [
        [
            score.feature,
            f"{score.layer}:{score.unit} {score.state}",
            f"{names[score.measure]} {score.score:.3f}",
            f"{score.chance:.2f} ({score.chance_high:.2f})",
            f"{score.untrained:.3f}",
        ]
        for score in found.scores
    ]
    table(None, ["feature", "unit", "score", "chance", "untrained"], rows)
    notice(
        f"Units chosen on {found.chosen_on:,} characters, scores measured on {found.measured_on:,} later ones. Chance: mean "
        "(highest) score with the features moved along the text, 20 times. Untrained: with an untrained network."
    )
    for name, reason in found.left_out.items():
        notice(f"left out: {name}: {reason}")
