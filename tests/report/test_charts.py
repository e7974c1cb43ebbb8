"""Charts: round ticks, nothing outside the axes, and every number also in a table."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.report.charts import HEIGHT, WIDTH, Series, line_chart, linear_ticks, log_ticks, number, table

values = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


@given(values, values)
def test_linear_ticks_are_few_and_inside(one, other):
    """If this fails, an axis is without labels, or crowded, or labelled outside the picture."""
    low, high = min(one, other), max(one, other)
    ticks = linear_ticks(low, high)
    room = 1e-6 * max(1e-12, high - low) + 1e-9
    assert all(low - room <= tick <= high + room for tick in ticks)
    if high - low > 1e-6:
        assert 1 <= len(ticks) <= 8


@given(st.floats(min_value=1e-200, max_value=1e3), st.floats(min_value=1.5, max_value=1e100))
def test_log_ticks_are_few_and_inside(low, ratio):
    """If this fails, an axis of gradient norms is without labels or crowded."""
    ticks = log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= 9
    assert all(low * 0.99 <= tick <= low * ratio * 1.01 for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567.0, "1,234,567"), (1.5, "1.5"), (0.00012345, "0.000123"), (1e-30, "1e-30"), (math.nan, "–")],
)
def test_numbers_are_short(value, text):
    """If this fails, labels show digits that nobody reads."""
    assert number(value) == text


def test_a_chart_has_all_its_numbers_in_a_table():
    """If this fails, somebody who cannot see the chart gets less than others."""
    chart = line_chart(
        [Series("training", [(1, 3.25), (2, 2.5), (3, math.nan)]), Series("validation", [(2, 2.75)], dots=True)],
        title="Loss", x="step", y="nats",
    )  # fmt: skip
    rows = re.findall(r"<tr>(.*?)</tr>", chart)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t", row) for row in rows]
    assert cells == [["step", "training", "validation"], ["1", "3.25", ""], ["2", "2.5", "2.75"]]


def test_what_is_not_positive_is_left_out_of_a_logarithmic_chart():
    """If this fails, a gradient that vanished to 0 breaks the chart."""
    chart = line_chart([Series("norm", [(0, 1.0), (1, 0.0), (2, 1e-300)])], title="Norm", x="k", y="norm", y_log=True)
    numbers = [float(found) for found in re.findall(r'd="M([\d.]+) ', chart)]
    assert numbers and "nan" not in chart and "inf" not in chart


@given(st.lists(st.tuples(st.integers(0, 1000), values), min_size=1, max_size=20, unique_by=lambda point: point[0]))
def test_points_are_inside_the_picture(points):
    """If this fails, a line leaves its chart."""
    chart = line_chart([Series("x", sorted(points), dots=True)], title="t", x="x", y="y")
    for x, y in re.findall(r'<circle cx="([^"]+)" cy="([^"]+)"', chart):
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


def test_names_cannot_become_markup():
    """If this fails, a run's name is executed by the browser."""
    chart = line_chart([Series("<script>", [(1, 1)])], title="<b>", x="<i>", y='"><u>')
    assert not re.search(r"<(script|b|i|u)>", chart + table(["<b>"], [["<i>"]], "<u>"))


def test_nothing_to_draw_is_no_chart():
    """If this fails, a run without a log gets an empty frame."""
    assert line_chart([Series("x", [(1, math.nan)])], title="t", x="x", y="y") == ""
