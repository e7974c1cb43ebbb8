"""The learning curve of a run, as text or, with matplotlib, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from charlm.cli.picture import can_draw, new_figure, save

if TYPE_CHECKING:
    from charlm.comparison.results import Point

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Nats per character against steps: training (averaged into at most 200 points) and validation."""

    training: Points
    validation: Points


def read_curve(folder: Path) -> Curve:
    """Read the learning curve of a run."""
    from charlm.comparison.results import learning_curve, records

    lines = records(folder)
    training, validation = (
        [(float(point.step), point.nats) for point in learning_curve(lines, kind)] for kind in ("training", "validation")
    )
    return Curve(training, validation)


def draw(curve: Curve, width: int = 64, height: int = 12) -> str:
    """The curve as text: ``·`` training, ``●`` validation; empty if there are fewer than three points."""
    points = curve.training + curve.validation
    if len(points) < 3:
        return ""
    # The loss of the first steps is much higher than all later ones, so the axis ends at the value after a twentieth.
    settled = [nats for step, nats in points if step >= points[len(curve.training) - 1][0] / 20] or [points[0][1]]
    top, bottom = max(settled), min(nats for _, nats in points)
    last = max(step for step, _ in points)
    span = max(top - bottom, 1e-9)
    grid = [[" "] * width for _ in range(height)]
    for mark, series in (("·", curve.training), ("●", curve.validation)):
        for step, nats in series:
            if nats <= top:
                column = min(width - 1, int(step / last * (width - 1)))
                grid[round((top - nats) / span * (height - 1))][column] = mark
    lines = []
    for index, row in enumerate(grid):
        label = f"{top - span * index / (height - 1):6.3f}" if index in (0, height // 2, height - 1) else " " * 6
        lines.append(f"{label} ┤{''.join(row).rstrip()}")
    lines.append(" " * 7 + "└" + "─" * width)
    lines.append(" " * 8 + f"0{f'step {last:,.0f}':>{width - 1}}")
    lines.append(" " * 8 + "nats per character:  · training  ● validation")
    return "\n".join(lines)


def write_png(curve: Curve, path: Path) -> bool:
    """Write the curve as a picture.

    Returns:
        Whether it was written: this needs matplotlib (the ``plot`` extra), and no file of another program at this path.

    Raises:
        OSError, UsageError: the file cannot be read or written.
    """
    if not curve.training or not can_draw(path):
        return False
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    axes.plot(*zip(*curve.training, strict=True), label="training", linewidth=1)
    if curve.validation:
        axes.plot(*zip(*curve.validation, strict=True), label="validation", marker="o", markersize=3)
    settled = [nats for step, nats in curve.training if step >= curve.training[-1][0] / 20]
    lowest = min(nats for _, nats in curve.training + curve.validation)
    axes.set_ylim(lowest - 0.05, max(settled) + 0.05)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats per character")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
    return True


def write_comparison_png(curves: Mapping[str, Sequence[Sequence[Point]]], measured_on: str, path: Path) -> bool:
    """Draw the learning curves of several runs, against characters (left) and against seconds of training (right).

    Args:
        curves: candidate → the curves of its runs, which share a colour.
        measured_on: ``training`` or ``validation``.

    Returns:
        As :func:`write_png`.
    """
    if not can_draw(path):
        return False
    figure = new_figure(12, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, runs) in enumerate(curves.items()):
        for index, run in enumerate(runs):
            nats = [point.nats for point in run]
            look = {"color": f"C{number}", "marker": "o", "markersize": 3, "linewidth": 1, "label": "" if index else name}
            left.plot([point.characters for point in run], nats, **look)
            right.plot([point.seconds for point in run], nats, **look)
    left.set_xlabel("characters seen")
    right.set_xlabel("seconds of training")
    left.set_ylabel(f"{measured_on} nats per character")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend()
    save(figure, path)
    return True
