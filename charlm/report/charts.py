"""Charts as HTML: an SVG picture with values on hover, and the same numbers as a table for people who cannot see it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from charlm.html.page import escape

WIDTH, HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 16, 12, 44  # around the axes


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend and the table.
        points: (x, y), x ascending; a NaN y is a gap.
        dots: whether points are marked.
        band: (x, low, high), shaded behind the line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    is_log: bool
    start: float
    length: float  # negative: upwards

    def __call__(self, value: float) -> float:
        low, high = (self.low, self.high) if not self.is_log else (math.log10(self.low), math.log10(self.high))
        at = value if not self.is_log else math.log10(max(value, self.low))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + self.length * min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.is_log else linear_ticks(self.low, self.high)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two values: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    return [
        float(f"{number * step:.12g}") for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive values, at most about eight; in a short range also 2 and 5 times them, or more."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    every = -(-len(decades) // 8)
    found = [factor * 10.0**decade for decade in decades if decade % every == 0 for factor in factors]
    ticks = [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
    return ticks if len(ticks) > 2 else linear_ticks(low, high)


def number(value: float) -> str:
    """A number for people: at most four significant digits, thousands separated."""
    if math.isnan(value):
        return "–"
    if value == 0 or 1e-4 <= abs(value) < 1e15:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{min(digits, 6)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3g}"


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    x_log: bool = False,
    y_log: bool = False,
    y_range: tuple[float, float] | None = None,
) -> str:
    """A chart of lines.

    Args:
        title: says what the chart shows; is the table's heading too.
        x, y: names of the axes, with units.
        x_log, y_log: logarithmic axes; values that are not positive are left out.
        y_range: what the y axis shows; ``None``: everything.

    Returns:
        A ``<figure>``; empty if there is nothing to draw.
    """
    drawn = [Series(s.name, _drawable(s.points, x_log, y_log), s.dots, s.band) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return ""
    xs = [px for s in drawn for px, _ in s.points]
    ys = [py for s in drawn for _, py in s.points] + [
        v for s in drawn for _, *band in s.band for v in band if not y_log or v > 0
    ]
    y_low, y_high = y_range or (min(ys), max(ys))
    if y_low == y_high:
        y_low, y_high = (y_low / 2, y_high * 2) if y_log else (y_low - 0.5, y_high + 0.5)
    elif not y_log and y_range is None:
        y_low, y_high = y_low - 0.04 * (y_high - y_low), y_high + 0.04 * (y_high - y_low)
    across = _Axis(min(xs), max(xs), x_log, _LEFT, WIDTH - _LEFT - _RIGHT)
    up = _Axis(y_low, y_high, y_log, HEIGHT - _BOTTOM, -(HEIGHT - _TOP - _BOTTOM))
    shapes = [_grid(across, up), _labels(x, y)]
    shapes += [_band(s, index, across, up) for index, s in enumerate(drawn) if s.band]
    shapes += [_line(s, index, across, up) for index, s in enumerate(drawn)]
    hover = [
        {"name": s.name, "points": [[round(across(px), 1), round(up(py), 1), number(px), number(py)] for px, py in s.points]}
        for s in drawn
    ]
    legend = "".join(
        f'<span><svg width="18" height="10" aria-hidden="true"><line x1="0" y1="5" x2="18" y2="5" class="s{index % 6}"/></svg> '
        f"{escape(s.name)}</span>"
        for index, s in enumerate(drawn)
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><div class="legend">{legend}</div>'
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}; the table below '
        f'has its numbers" data-hover="{escape(json.dumps(hover))}">{"".join(shapes)}</svg></div>'
        f"{_table_of(drawn, title, x)}</figure>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table; every cell is text."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    name = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table>{name}{top}<tbody>{body}</tbody></table></div>\n'


def _drawable(points: Sequence[tuple[float, float]], x_log: bool, y_log: bool) -> list[tuple[float, float]]:
    return [
        (px, py) for px, py in points if math.isfinite(py) and (px > 0 or not x_log) and (py > 0 or not y_log)
    ]  # fmt: skip


def _grid(across: _Axis, up: _Axis) -> str:
    lines = []
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for tick in up.ticks():
        lines.append(f'<line x1="{_LEFT}" x2="{right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" class="grid"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in across.ticks():
        lines.append(f'<line x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>')
        lines.append(f'<text x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
    return "".join(lines)


def _labels(x: str, y: str) -> str:
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    return (
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )


def _line(series: Series, index: int, across: _Axis, up: _Axis) -> str:
    at = [(across(x), up(y)) for x, y in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="s{index % 6}"/>' for x, y in at) if series.dots else ""
    return f'<path d="{path}" class="s{index % 6}"/>{dots}'


def _band(series: Series, index: int, across: _Axis, up: _Axis) -> str:
    upper = [f"{across(x):.1f} {up(high):.1f}" for x, _, high in series.band]
    lower = [f"{across(x):.1f} {up(low):.1f}" for x, low, _ in reversed(series.band)]
    return f'<path d="M{"L".join(upper + lower)}Z" class="band s{index % 6}"/>'


def _table_of(drawn: Sequence[Series], title: str, x: str) -> str:
    """The chart's numbers, a row for each x."""
    columns = [dict(s.points) for s in drawn]
    places = sorted({px for column in columns for px in column})
    show: Callable[[float], str] = number
    rows = [[show(px), *(show(column[px]) if px in column else "" for column in columns)] for px in places]
    return f"<details><summary>numbers</summary>{table([x, *(s.name for s in drawn)], rows, title)}</details>"
