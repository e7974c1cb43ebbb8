"""``charlm eval gradients``: how far back a loss reaches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cells import cell_names
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
from charlm.cli.options import MAX_SEED
from charlm.cli.picture import PngOption, new_figure, picture_path, save
from charlm.errors import RunFolderError, UsageError

if TYPE_CHECKING:
    from charlm.evaluation.gradients import GradientFlow, Gradients, Rate
    from charlm.loaded import Model

_WIDTH, _COLUMNS = 80, 4  # of the chart: characters; curves side by side
_DECADES = 12  # that the chart and the picture show below the largest gradient
_EIGHTHS = ("", *"▏▎▍▌▋▊▉")
_GROWS = 2.0  # times the gradient at k = 0


def gradients(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    distance: Annotated[int, typer.Option(min=1, max=10_000, help="The largest k.")] = 1000,
    cell: Annotated[
        str | None,
        typer.Option(help=f"Untrained cells of the checkpoint's size in its place, such as {','.join(cell_names())}."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of their initial weights.")] = 1,
    png: PngOption = None,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure how far back gradients reach.

    Shows ‖∂L_t/∂h_{t−k}‖ for each k, and ∂/∂c for an LSTM: they vanish or explode on their way back.

    Examples:
        charlm eval gradients shakespeare --distance 100
        charlm eval gradients mine --cell rnn,lstm --png gradients.png
    """
    cells = _cells(cell)
    picture = picture_path(png)

    from charlm.evaluation.gradients import gradients as measure
    from charlm.evaluation.gradients import untrained
    from charlm.loaded import load

    opened = load(checkpoint, device, engine=engine or "auto")
    evaluated = read_evaluated(opened, file, split)
    began = time.perf_counter()
    found = []
    for name in cells or [opened.recipe.model.cell]:
        network = untrained(opened.network, name, seed) if cells else opened.network
        with progress_bar(f"measuring {name}", unit="characters") as advance:
            found.append(measure(network, evaluated.text, distance=distance, progress=advance))
    seconds = time.perf_counter() - began
    record: dict[str, Any] = {
        "gradients": [
            {
                "cell": each.cell,
                "layer": flow.layer,
                "state": flow.state,
                "distances": each.distances.tolist(),
                "median": flow.median.tolist(),
                "lower_quartile": flow.lower_quartile.tolist(),
                "upper_quartile": flow.upper_quartile.tolist(),
                "half_life": flow.half_life,
                "theory": {"name": rate.name, "factor": rate.factor, "slowest_unit": rate.slowest_unit},
            }
            for each, flow, rate in _flows(found)
        ],
        "positions": len(found[0].positions),
        "distance": int(found[0].distances[-1]),
        "trained": not cells,
        "seed": seed if cells else None,
        "clipping": None if cells else _clipping(opened),
        **evaluated.describe(),
        "seconds": seconds,
        "precision": "fp64",
        **describe_model(opened),
    }
    if picture is not None:
        _draw(found, not cells, picture)
    if as_json:
        json_line(record)
    else:
        _print(found, record)
        notice(f"{seconds:.1f} s, {record['device']}")


def _cells(given: str | None) -> list[str]:
    """The cells that ``--cell`` names."""
    if given is None:
        return []
    cells = list(dict.fromkeys(name.strip() for name in given.split(",")))
    if wrong := [name for name in cells if name not in cell_names()]:
        raise UsageError(f"--cell {given}: {wrong[0]!r} is no cell; expected some of {', '.join(cell_names())}")
    return cells


def _flows(found: Sequence[Gradients]) -> Iterator[tuple[Gradients, GradientFlow, Rate]]:
    """Each curve, with its layer's rate."""
    for each in found:
        for flow in each.flows:
            yield each, flow, each.rates[flow.layer]


def _clipping(opened: Model) -> dict[str, Any] | None:
    """How often training clipped the gradient, from the log beside the checkpoint; ``None``: no log, or no clipping."""
    from charlm.comparison.results import records

    limit = opened.recipe.train.clip
    try:
        lines = records(opened.path.parent)
    except (OSError, RunFolderError):  # another program's file: nothing can be said
        return None
    logged = [line.get("gradient_norm") for line in lines if line["kind"] == "step" and line["step"] <= opened.step]
    norms = [norm for norm in logged if norm is not None]
    if limit is None or not norms:
        return None
    clipped = sum(norm > limit for norm in norms)
    return {"clip": limit, "steps": len(norms), "share": clipped / len(norms), "largest_norm": max(norms)}


def _print(found: Sequence[Gradients], record: dict[str, Any]) -> None:
    K = record["distance"]
    where = f"{record['split']} part of {record['text']}" if record["split"] else record["text"]
    what = f"{record['gradients'][0]['cell']}, step {record['step']:,}" if record["trained"] else f"seed {record['seed']}"
    out(f"‖∂L_t/∂state_t−k‖, median over {record['positions']} positions t, bars on a log scale")
    curves = list(_flows(found))
    labels = _labels(found)
    for first in range(0, len(curves), _COLUMNS):
        out("")
        for line in _chart(labels[first : first + _COLUMNS], [flow for _, flow, _ in curves[first : first + _COLUMNS]], found):
            out(line)
    rows = []
    for label, (_, flow, rate) in zip(labels, curves, strict=True):
        far = flow.median[-1] / flow.median[0] if flow.median[0] else math.nan
        half = "–" if flow.half_life is None else str(flow.half_life)
        slowest = "–" if rate.slowest_unit is None else f"{rate.slowest_unit:.3f}"
        rows.append([label, half, f"{far:.1e}", rate.name, f"{rate.factor:.3f}", slowest])
    table(None, ["state", "half-life", f"left at {K:,}", "theory", "per step", "slowest"], rows)
    pairs = [
        ("text", f"{visible_word(where)}, {record['positions']} positions"),
        ("model", f"trained: {what}" if record["trained"] else f"untrained, {what}"),
    ]
    if record["positions"] < 64:
        pairs.append(("note", "the text is too short for 64 positions; the quartiles are rough"))
    for label, (_, flow, _) in zip(labels, curves, strict=True):
        peak = int(flow.median.argmax())
        if flow.median[peak] > _GROWS * flow.median[0] > 0:
            grown = flow.median[peak] / flow.median[0]
            pairs.append(("explodes", f"{label}: the gradient is {grown:.3g} times as large at k = {peak:,} as at k = 0"))
    if record["clipping"] is not None:
        pairs.append(("clipping", _clipping_text(record["clipping"])))
    results(pairs)


def _clipping_text(found: dict[str, Any]) -> str:
    limit, largest = f"train.clip ({found['clip']:g})", f"the largest norm was {found['largest_norm']:.3g}"
    if not found["share"]:
        return f"none of {found['steps']:,} training steps had a gradient above {limit}; {largest}"
    share = f"{100 * found['share']:.2g} %"
    return (
        f"{share} of {found['steps']:,} training steps had a gradient above {limit} and were scaled down as a whole; {largest}"
    )


def _labels(found: Sequence[Gradients]) -> list[str]:
    """A name for each curve; cell and layer are left out where there is only one."""
    labels = []
    for each, flow, _ in _flows(found):
        parts = [each.cell] if len(found) > 1 else []
        parts += [f"layer {flow.layer}"] if len(each.rates) > 1 else []
        labels.append(" ".join([*parts, flow.state]))
    return labels


def _largest(found: Sequence[Gradients]) -> float:
    return max(float(flow.median.max()) for _, flow, _ in _flows(found))


def _chart(labels: Sequence[str], flows: Sequence[GradientFlow], found: Sequence[Gradients]) -> Iterator[str]:
    """A line per distance: for each curve its median, and a bar on a log scale that all curves share."""
    K = len(flows[0].median) - 1
    steps = [0, *(digit * 10**power for power in range(4) for digit in (1, 2, 5))]
    shown = [k for k in steps if k < K] + [K]
    column = (_WIDTH - 7) // min(_COLUMNS, max(2, len(flows)))
    top = _largest(found)
    smallest = min((float(flow.median[k]) for _, flow, _ in _flows(found) for k in shown if flow.median[k] > 0), default=1.0)
    floor = max(smallest, top * 10.0**-_DECADES)
    span = max(1.0, math.log10(top / floor)) if top > 0 else 1.0
    yield f"{'k':>6} " + "".join(f"{label:<{column}}" for label in labels).rstrip()
    for k in shown:
        cells = []
        for flow in flows:
            value = float(flow.median[k])
            eighths = round(math.log10(value / floor) / span * (column - 11) * 8) if value > floor else 0
            bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
            cells.append(f"{value:<8.1e} {bar:<{column - 9}}")
        yield f"{k:>6,} " + "".join(cells).rstrip()


def _draw(found: Sequence[Gradients], trained: bool, path: Path) -> None:
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    labels = _labels(found)
    for number, (label, (each, flow, rate)) in enumerate(zip(labels, _flows(found), strict=True)):
        colour = f"C{number}"
        axes.fill_between(each.distances, flow.lower_quartile, flow.upper_quartile, color=colour, alpha=0.2, linewidth=0)
        axes.plot(each.distances, flow.median, color=colour, linewidth=1.5, label=label)
        if flow.state == each.flows[-1].state:  # of an LSTM, theory is about c
            theory = flow.median[0] * rate.factor**each.distances
            name = f"{rate.name} {rate.factor:.2f}, to the power k"
            axes.plot(each.distances, theory, color=colour, linewidth=1, linestyle="--", label=name)
            if rate.slowest_unit is not None:
                theory = flow.median[0] * rate.slowest_unit**each.distances
                axes.plot(each.distances, theory, color=colour, linewidth=1, linestyle=":", label="its slowest unit")
    top = max(float(flow.upper_quartile.max()) for _, flow, _ in _flows(found))
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    axes.set_ylim(top * 10.0**-_DECADES, top * 3)
    axes.set_xlim(0, found[0].distances[-1])
    axes.set_xlabel("k, characters back")
    axes.set_ylabel("norm of ∂L_t / ∂state at t − k: median, quartiles")
    axes.set_title("after training" if trained else "before training")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    save(figure, path)
