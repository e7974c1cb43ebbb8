"""``charlm eval gates``: what the gates do, and how long each unit remembers."""

from __future__ import annotations

import math
import time
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
from charlm.cli.options import MAX_LENGTH
from charlm.cli.picture import PngOption, new_figure, picture_path, save
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.evaluation.gates import Gate, GateReport

_LEVELS = " ▁▂▃▄▅▆▇█"


def gates(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    top: Annotated[int, typer.Option(min=1, max=MAX_LENGTH, help="How many of the longest-lived units to show.")] = 4,
    png: PngOption = None,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show how the gates act, and how long each unit remembers.

    Also shows how much c and h change per step.

    Examples:
        charlm eval gates shakespeare
        charlm eval gates mine chapter.txt --png gates.png
    """
    picture = picture_path(png)

    import numpy as np

    from charlm.evaluation.gates import gates as measure
    from charlm.loaded import load

    opened = load(checkpoint, device, engine=engine or "auto")
    if picture is not None and opened.recipe.model.cell == "rnn":
        raise UsageError("--png: a plain RNN has no gates to draw")
    evaluated = read_evaluated(opened, file, split)
    began = time.perf_counter()
    with progress_bar("reading", unit="characters") as advance:
        found = measure(opened.network, evaluated.text, progress=advance)
    seconds = time.perf_counter() - began
    record: dict[str, Any] = {
        "gates": [
            {
                "layer": gate.layer,
                "gate": gate.name,
                "mean": gate.mean,
                "below": gate.below,
                "above": gate.above,
                "histogram": gate.histogram.tolist(),
            }
            for gate in found.gates
        ],
        "memory": [
            {
                "layer": gate.layer,
                "gate": gate.name,
                "steps": gate.memory.tolist(),
                "median": float(np.median(gate.memory)),
                "longest_units": gate.longest(top),
            }
            for gate in found.gates
            if gate.memory is not None
        ],
        "change": [{"layer": change.layer, "state": change.state, "mean": change.mean} for change in found.changes],
        "cell": opened.recipe.model.cell,
        "characters": found.steps,
        **evaluated.describe(),
        "seconds": seconds,
        "precision": "fp32",
        **describe_model(opened),
    }
    if picture is not None:
        _draw(found, picture)
    if as_json:
        json_line(record)
    else:
        _print(found, record, top, opened.vocabulary.unit)
        notice(f"{seconds:.1f} s, {record['device']}")


def _print(found: GateReport, record: dict[str, Any], top: int, unit: str) -> None:
    import numpy as np

    kind = ("byte" if unit == "byte" else "character") + "s" * (found.steps != 1)
    keeps = [gate.name for gate in found.gates if gate.keeps]
    if found.gates:
        rows = [
            [str(gate.layer), gate.name, f"{gate.mean:.3f}", _percent(gate.below), _percent(gate.above), _sparkline(gate)]
            for gate in found.gates
        ]
        table(None, ["layer", "gate", "mean", "below 0.1", "above 0.9", "values from 0 to 1"], rows)
        rows = []
        for gate in found.gates:
            if gate.memory is None:
                continue
            quartiles = np.quantile(gate.memory, [0.25, 0.5, 0.75], method="nearest")
            units = ", ".join(f"{number} ({gate.memory[number]:.3g})" for number in gate.longest(top))
            rows.append([str(gate.layer), " / ".join(f"{steps:.2g}" for steps in quartiles), f"unit {units}"])
        table(None, ["layer", "memory in steps", "longest-lived units (steps)"], rows)
    else:
        out(f"a plain {record['cell'].upper()} has no gates: each step computes the whole state anew")
        out("")
    changes = [f"{_place(found, change.layer)}{change.state} {change.mean:.3f}" for change in found.changes]
    where = f"{record['split']} part of {record['text']}" if record["split"] else record["text"]
    results(
        [
            ("change per step", f"{', '.join(changes)}: mean of ‖x_t − x_t−1‖ / ‖x_t‖"),
            *([("memory", f"quartiles of −1 / ln(mean {keeps[0]}) over the units")] if keeps else []),
            ("text", f"{visible_word(where)}, {found.steps:,} {kind}"),
        ]
    )


def _place(found: GateReport, layer: int) -> str:
    return f"layer {layer} " if found.changes[-1].layer else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _sparkline(gate: Gate) -> str:
    """A histogram as a line of 20 characters, as high as its largest bin."""
    heights = gate.histogram / gate.histogram.max()
    return "".join(_LEVELS[math.ceil(height * 8)] for height in heights)


def _draw(found: GateReport, path: Path) -> None:
    """A histogram for each gate, a row for each layer; and the memory of all units, the longest first."""
    import numpy as np

    names = list(dict.fromkeys(gate.name for gate in found.gates))
    layers = found.changes[-1].layer + 1
    figure = new_figure(2.6 * (len(names) + 1), 2.4 * layers)
    grid = figure.subplots(layers, len(names) + 1, squeeze=False)
    for gate in found.gates:
        axes = grid[gate.layer, names.index(gate.name)]
        edges = np.linspace(0, 1, len(gate.histogram) + 1)
        axes.stairs(gate.histogram, edges, fill=True, color=f"C{names.index(gate.name)}")
        axes.set_title(f"layer {gate.layer}, gate {gate.name}: mean {gate.mean:.2f}", fontsize="small")
        axes.set_xlim(0, 1)
        if gate.memory is not None:
            axes = grid[gate.layer, -1]
            axes.plot(-np.sort(-gate.memory), color=f"C{names.index(gate.name)}")
            axes.set_yscale("log")
            axes.set_title("memory of each unit, steps", fontsize="small")
            axes.grid(alpha=0.3)
    save(figure, path)
