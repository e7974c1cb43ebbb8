"""The learning curve of ``metrics.jsonl``, read and drawn."""

from __future__ import annotations

import json
import math

import pytest

from charlm.cli.curve import Curve, draw, read_curve, write_comparison_png, write_png
from charlm.comparison.results import Point


def _run(folder, entries):
    """A run's folder with these records."""
    lines = (json.dumps({"characters": 0, "seconds": 0.0} | entry, ensure_ascii=False) + "\n" for entry in entries)
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_reading_averages_into_at_most_200_points(tmp_path):
    """Failing would mean that the curve of a long run is slow to draw or leaves steps out."""
    entries = [{"kind": "step", "step": step, "nats": float(step)} for step in range(1, 1001)]
    curve = read_curve(_run(tmp_path, entries))
    assert len(curve.training) == 200
    assert math.isclose(sum(nats for _, nats in curve.training) / 200, 500.5)
    assert curve.training[-1][0] == 1000


def test_reading_leaves_out_what_cannot_be_drawn(tmp_path):
    """Failing would mean that one overflowed step, or the final record, breaks the end of a run."""
    entries = [
        {"kind": "step", "step": 1, "nats": None},
        {"kind": "step", "step": 2, "nats": 2.0},
        {"kind": "evaluation", "step": 2, "nats": 1.5},
        {"kind": "finished", "step": 2, "corpus": "a\u2028b\u0085c.txt"},
    ]
    assert read_curve(_run(tmp_path, entries)) == Curve([(2, 2.0)], [(2, 1.5)])


def test_no_file_is_an_empty_curve(tmp_path):
    """Failing would mean that a run that was stopped at once ends with an error."""
    curve = read_curve(tmp_path)
    assert curve == Curve([], [])
    assert draw(curve) == ""
    assert not write_png(curve, tmp_path / "curve.png")


def test_a_drawing_has_the_asked_size_and_falls(tmp_path):
    """Failing would mean that the drawing breaks out of a terminal or shows the curve upside down."""
    curve = Curve([(step, 3 - step / 100) for step in range(1, 101)], [(50, 2.6), (100, 2.1)])
    lines = draw(curve, width=40, height=8).splitlines()
    assert len(lines) == 8 + 3
    assert max(map(len, lines)) <= 80
    rows = [line[8:] for line in lines[:8]]
    marks = [(row.index("·"), number) for number, row in enumerate(rows) if "·" in row]
    assert marks == sorted(marks)
    assert sum(row.count("●") for row in rows) == 1 and sum(row.count("★") for row in rows) == 1
    assert "★" in "".join(rows[-2:]) and "★ 2.100" in lines[-1]


def test_a_flat_curve_can_be_drawn():
    """Failing would mean a division by zero where nothing was learned."""
    assert "1.000" in draw(Curve([(step, 1.0) for step in range(1, 9)], []))


def test_only_validation_can_be_drawn():
    """Failing would mean that a curve without training points breaks the end of a run."""
    assert "●" in draw(Curve([], [(1, 2.0), (2, 1.5), (3, 1.2)]))


def test_a_picture_is_written_only_over_charlms_own(tmp_path):
    """Failing would mean that a user's picture is replaced, or written to through a link."""
    pytest.importorskip("matplotlib")
    curve = Curve([(step, 3 - step / 100) for step in range(1, 101)], [(50, 2.6), (100, 2.1)])
    path, foreign = tmp_path / "learning-curve.png", tmp_path / "lecture.png"
    assert write_png(curve, path) and write_png(curve, path)
    assert path.read_bytes().startswith(b"\x89PNG") and b"charlm" in path.read_bytes()[:1000]
    foreign.write_bytes(b"\x89PNG of a lecture")
    path.unlink()
    for put in (lambda: path.write_bytes(foreign.read_bytes()), lambda: path.symlink_to(foreign)):
        put()
        assert not write_png(curve, path)
        assert path.read_bytes() == foreign.read_bytes() == b"\x89PNG of a lecture"
        path.unlink()
    assert sorted(tmp_path.iterdir()) == [foreign]


def test_a_comparison_leaves_a_picture_that_is_not_its_own(tmp_path):
    """Failing would mean that a picture drawn with Matplotlib by somebody else is taken for charlm's."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "compare.png"
    path.write_bytes(b"\x89PNG Software\0Matplotlib version 3")
    curves = {"lstm": [[Point(1, 10, 0.1, 2.0), Point(2, 20, 0.2, 1.0)]]}
    assert not write_comparison_png(curves, "validation", path)
    path.unlink()
    assert write_comparison_png(curves, "validation", path)
