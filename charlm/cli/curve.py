"""Learning curves of runs, as text or, with matplotlib, as a PNG. The best validation is marked.

The loss has a logarithmic axis: the first points fit on it, and the last ones can still be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from charlm.cli.console import visible_word
from charlm.cli.picture import can_draw, has_matplotlib, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from charlm.comparison.results import Point

Points = list[tuple[float, float]]
Piece = tuple[str, str]
"""A text and its Rich style."""
X = Literal["steps", "characters", "seconds"]

_X: dict[X, tuple[str, Callable[[Point], float]]] = {
    "steps": ("optimizer steps", lambda point: point.step),
    "characters": ("characters of training", lambda point: point.characters),
    "seconds": ("seconds of training", lambda point: point.seconds),
}
"""The horizontal axes: label and value."""

_MARKS = "●▲■◆○△□◇"
_STYLES = ("cyan", "magenta", "green", "red", "blue", "yellow")
_STAR = "★"


@dataclass(frozen=True)
class Curve:
    """Nats per character against steps, or another axis: training (averaged into at most 200 points) and validation."""

    training: Points
    validation: Points

    @property
    def main(self) -> Points:
        """Validation; training, if there was no validation."""
        return self.validation or self.training

    @property
    def best(self) -> tuple[float, float] | None:
        """The point with the lowest validation; ``None`` if there was no validation."""
        return min(self.validation, key=lambda point: point[1], default=None)


def read_curve(folder: Path, x: X = "steps") -> Curve:
    """Read the learning curve of a run.

    Args:
        x: the horizontal axis.
    """
    from charlm.comparison.results import learning_curve, records

    lines, value = records(folder), _X[x][1]
    training, validation = (
        [(float(value(point)), point.nats) for point in learning_curve(lines, kind)] for kind in ("training", "validation")
    )
    return Curve(training, validation)


# -- text --


def draw(curve: Curve, width: int = 64, height: int = 12) -> str:
    """The curve as text: ``·`` training, ``●`` validation; empty if there are fewer than three points."""
    if len(curve.training + curve.validation) < 3:
        return ""
    canvas = _Canvas([curve.training, curve.validation], width, height)
    canvas.put(curve.training, "·")
    canvas.put(curve.validation, "●")
    legend = "nats per character against steps:  · training  ● validation"
    if curve.best is not None:
        canvas.put([curve.best], _STAR)
        legend += f"  {_STAR} {curve.best[1]:.3f}"
    lines = ["".join(text for text, _ in line) for line in canvas.lines()]
    return "\n".join([*lines, " " * 8 + legend])


def draw_runs(curves: Mapping[str, Curve], x: X, width: int, height: int) -> list[list[Piece]]:
    """The validations of runs as lines of styled text, with a legend; empty if there is nothing to draw.

    For a single run, and for runs without validation, the training loss is drawn too.

    Args:
        curves: run → curve, with this horizontal axis.
        width, height: of the plot, in characters, without axes and legend.
    """
    drawn = {name: curve for name, curve in curves.items() if curve.main}
    if not drawn:
        return []
    background = [curve.training for curve in drawn.values()] if len(drawn) == 1 else []
    canvas = _Canvas([*background, *(curve.main for curve in drawn.values())], width, height)
    looks = [(_MARKS[index % len(_MARKS)], _STYLES[index % len(_STYLES)]) for index in range(len(drawn))]
    for curve, (_, style) in zip(drawn.values(), looks, strict=True):
        if background:
            canvas.put(curve.training, "·", style)
        else:
            canvas.join(curve.main, "·", style)
    for curve, (mark, style) in zip(drawn.values(), looks, strict=True):
        canvas.put(curve.validation, mark, style)
    for curve, (_, style) in zip(drawn.values(), looks, strict=True):
        canvas.put([curve.best] if curve.best is not None else [], _STAR, f"bold {style}")
    lines = [[(f"nats per character against {_X[x][0]}", "")], *canvas.lines()]
    longest = max(map(len, drawn))
    for (name, curve), (mark, style) in zip(drawn.items(), looks, strict=True):
        lines.append([(f"{mark if curve.validation else '·'} {name:<{longest}}", style), (f"  {_best_text(curve, x)}", "")])
    return lines


def _best_text(curve: Curve, x: X) -> str:
    """``★ 1.665 at 6,320 steps``."""
    if curve.best is None:
        return "training loss; no validation"
    at, nats = curve.best
    return f"{_STAR} {nats:.3f} at {_number(at)} {x}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


class _Canvas:
    """A plot of characters, with axes that span all points. Later marks cover earlier ones.

    Args:
        series: all points to be drawn; at least one.
        width, height: in characters, without axes.
    """

    def __init__(self, series: Sequence[Points], width: int, height: int) -> None:
        nats = [nats for points in series for _, nats in points]
        self._width, self._height = width, height
        self._last = max(x for points in series for x, _ in points) or 1.0
        self._is_log = min(nats) > 0
        self._top, self._bottom = self._scaled(max(nats)), self._scaled(min(nats))
        self._cells: list[list[Piece]] = [[(" ", "")] * width for _ in range(height)]

    def _scaled(self, nats: float) -> float:
        return math.log(nats) if self._is_log else nats

    def _column(self, x: float) -> int:
        return min(self._width - 1, int(x / self._last * (self._width - 1)))

    def put(self, points: Points, mark: str, style: str = "") -> None:
        """Draw points."""
        span = max(self._top - self._bottom, 1e-9)
        for x, nats in points:
            row = round((self._top - self._scaled(nats)) / span * (self._height - 1))
            self._cells[row][self._column(x)] = (mark, style)

    def join(self, points: Points, mark: str, style: str) -> None:
        """Draw a line through points."""
        for (x, nats), (next_x, next_nats) in pairwise(points):
            parts = max(1, self._column(next_x) - self._column(x))
            shares = [part / parts for part in range(parts + 1)]
            self.put([(x + share * (next_x - x), nats + share * (next_nats - nats)) for share in shares], mark, style)

    def lines(self) -> list[list[Piece]]:
        """The rows with their axes."""
        labelled = {round(part * (self._height - 1) / 4) for part in range(5)}
        span = self._top - self._bottom
        lines: list[list[Piece]] = []
        for index, row in enumerate(self._cells):
            value = self._top - span * index / (self._height - 1)
            nats = math.exp(value) if self._is_log else value
            text = f"{nats:{'6.3f' if nats < 100 else '6.4g'}} ┤" if index in labelled else f"{'':6} │"
            lines.append([(text, ""), *_trimmed(row)])
        axis, below = ["─"] * self._width, [" "] * self._width
        for tick in _ticks(self._last):
            column, number = self._column(tick), f"{tick:,.10g}"
            start = max(0, min(column - len(number) // 2, self._width - len(number)))
            axis[column] = "┬"
            below[start : start + len(number)] = number
        lines.append([(f"{'':7}└{''.join(axis)}", "")])
        lines.append([(f"{'':8}{''.join(below).rstrip()}", "")])
        return lines


def _trimmed(row: list[Piece]) -> list[Piece]:
    filled = [index for index, (mark, _) in enumerate(row) if mark != " "]
    return row[: filled[-1] + 1] if filled else []


def _ticks(last: float) -> list[float]:
    """Round numbers from 0 to ``last``: four to six of them."""
    power = 10.0 ** math.floor(math.log10(last / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if last / (factor * power) < 5)
    return [index * step for index in range(int(last / step) + 1)]


# -- pictures --


def write_png(curve: Curve, path: Path) -> bool:
    """Write the learning curve of the run in this picture's folder.

    Returns:
        Whether it was written: this needs matplotlib (the ``plot`` extra), and no file of another program at this path.
    """
    if not has_matplotlib() or not curve.training:
        return False
    figure, (axes,) = _figure(8, 5, 1)
    axes.plot(*zip(*curve.training, strict=True), label="training", linewidth=1)
    if curve.best is not None:
        axes.plot(*zip(*curve.validation, strict=True), label="validation", color="C1", marker="o", markersize=3)
        _mark_best(axes, curve.best, "C1", f"best {curve.best[1]:.3f} at step {curve.best[0]:,.0f}")
    _finish(axes, _X["steps"][0], [curve.training, curve.validation])
    axes.set_ylabel("nats per character")
    axes.set_title(_plain(path.resolve().parent.name))
    axes.legend()
    return _save(figure, path)


def write_runs_png(curves: Mapping[str, Curve], x: X, path: Path) -> bool:
    """Draw several runs in one picture: validation, and training as a thin line. Arguments are those of :func:`draw_runs`.

    Returns:
        As :func:`write_png`.
    """
    drawn = {name: curve for name, curve in curves.items() if curve.main}
    if not has_matplotlib() or not drawn:
        return False
    figure, (axes,) = _figure(9, 5.5, 1)
    for index, (name, curve) in enumerate(drawn.items()):
        color = f"C{index}"
        if curve.training:
            axes.plot(*zip(*curve.training, strict=True), color=color, linewidth=0.8, alpha=0.35)
        label = f"{_plain(name)}  {_best_text(curve, x)}"
        axes.plot(*zip(*curve.main, strict=True), color=color, marker="o", markersize=3, linewidth=1.3, label=label)
        if curve.best is not None:
            _mark_best(axes, curve.best, color)
    _finish(axes, _X[x][0], [points for curve in drawn.values() for points in (curve.training, curve.validation)])
    axes.set_ylabel("nats per character")
    shown = "validation (thin: training)" if any(curve.validation for curve in drawn.values()) else "training"
    axes.set_title(f"{_plain(next(iter(drawn))) if len(drawn) == 1 else f'{len(drawn)} runs'}: {shown}")
    axes.legend()
    return _save(figure, path)


def _figure(width: float, height: float, panels: int) -> tuple[Figure, list[Axes]]:
    """An empty picture in inches, with panels side by side."""
    figure = new_figure(width, height)
    return figure, list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])


def _mark_best(axes: Axes, best: tuple[float, float], color: str, label: str = "") -> None:
    axes.plot(*best, linestyle="", marker="*", markersize=13, color=color, markeredgecolor="black", zorder=5, label=label)


def _finish(axes: Axes, label: str, series: Sequence[Points]) -> None:
    """Axes that show all points, with a label for the horizontal one."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    nats = [nats for points in series for _, nats in points]
    if min(nats) > 0:
        axes.set_yscale("log")
        if max(nats) < 20 * min(nats):  # else the powers of ten are enough
            axes.yaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if max(x for points in series for x, _ in points) >= 10:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def _plain(name: str) -> str:
    """A name as Matplotlib shows it: with control characters visible, and no dollar sign that begins a formula."""
    return visible_word(name).replace("$", r"\$")


def _save(figure: Figure, path: Path) -> bool:
    """Write a picture, unless a file is there that charlm did not draw."""
    if not can_draw(path):
        return False
    save(figure, path)
    return True


def write_comparison_png(curves: Mapping[str, Sequence[Sequence[Point]]], measured_on: str, path: Path) -> bool:
    """Draw the learning curves of several runs, against characters (left) and against seconds of training (right).

    Args:
        curves: candidate → the curves of its runs, which share a colour.
        measured_on: ``training`` or ``validation``.
        path: in the comparison's folder, which gives the title.

    Returns:
        As :func:`write_png`.
    """
    if not has_matplotlib():
        return False
    figure, panels = _figure(12, 5, 2)
    for axes, (label, value) in zip(panels, (_X["characters"], _X["seconds"]), strict=True):
        series = {name: [[(value(p), p.nats) for p in run] for run in runs if run] for name, runs in curves.items()}
        for number, (name, runs) in enumerate(series.items()):
            best = min((point for run in runs for point in run), key=lambda point: point[1], default=None)
            for index, run in enumerate(runs):
                text = f"{_plain(name)}  {_STAR} {best[1]:.3f}" if best is not None and not index else ""
                axes.plot(*zip(*run, strict=True), color=f"C{number}", marker="o", markersize=3, linewidth=1, label=text)
            if best is not None:
                _mark_best(axes, best, f"C{number}")
        _finish(axes, label, [run for runs in series.values() for run in runs])
    panels[0].set_ylabel(f"{measured_on} nats per character")
    figure.suptitle(_plain(path.resolve().parent.name))
    panels[-1].legend()
    return _save(figure, path)
