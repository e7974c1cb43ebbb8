"""``charlm plot``: the curves of several runs in one plot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.cli.curve import Curve, draw_runs


def _text(curves: dict[str, Curve], x: Any = "steps") -> list[str]:
    return ["".join(text for text, _ in line) for line in draw_runs(curves, x, 60, 10)]


def test_every_point_is_in_the_plot() -> None:
    """Failing would mean that the first points, which are the highest, are cut off, or that the plot is upside down."""
    curve = Curve([], [(1, 9.0), (50, 2.0), (100, 1.5)])
    lines = _text({"run": curve})
    assert lines[1].startswith(" 9.000 ┤●") and lines[10].startswith(" 1.500 ┤") and lines[10].endswith("★")
    assert sum(line.count("●") for line in lines[1:11]) == 2
    assert lines[11].count("┬") == 5 and lines[12].split() == ["0", "25", "50", "75", "100"]
    assert max(map(len, lines)) <= 70


def test_runs_have_marks_of_their_own_and_a_legend() -> None:
    """Failing would mean that the reader cannot tell which curve is which run's, without colours either."""
    lines = _text({"one": Curve([], [(1, 3.0), (9, 2.0)]), "two": Curve([], [(1, 2.5), (9, 2.25)])}, "seconds")
    assert lines[-2:] == ["● one  ★ 2.000 at 9 seconds", "▲ two  ★ 2.250 at 9 seconds"]
    plot = "".join(lines[1:11])
    assert plot.count("●") == plot.count("▲") == 1 and plot.count("★") == 2
    assert len(_text({f"run-{number}": Curve([], [(1, 1.0), (2, number)]) for number in range(1, 13)})) == 13 + 12


@pytest.mark.parametrize(
    "curve",
    [
        Curve([(1, 2.0)], []),
        Curve([], [(0.0, 1.0)]),
        Curve([(1, 0.0), (2, 0.0)], [(2, 0.0)]),
        Curve([(1, 1e9), (2, 1e-9)], [(2, 1e-9)]),
    ],
)
def test_odd_curves_can_be_drawn(curve: Curve, tmp_path: Path) -> None:
    """Failing would mean that one point, a loss of zero or an unusual name ends the plot with an error."""
    from charlm.cli.curve import write_runs_png

    assert _text({"run": curve})
    pytest.importorskip("matplotlib")
    assert write_runs_png({"a$b$": curve, "中文 \udcfc": curve}, "seconds", tmp_path / "plot.png")


def test_runs_are_plotted_by_name_and_folder(
    charlm: Callable[..., Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that runs with the same name are mixed up, or that the curve has other points than the log."""
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints/first", "other/first"):
        shutil.copytree(trained / "run", folder)
    done = charlm("plot", "first", "other/first")
    assert done.code == 0 and "● checkpoints/first" in done.text and "▲ other/first" in done.text
    for x, last in (("steps", 20), ("characters", None), ("seconds", None)):
        found = charlm("plot", "first", "--x", x, "--json").record
        points = found["runs"]["first"]
        assert found["x"] == x and len(points["validation"]) == 4 and len(points["training"]) == 20
        assert last is None or points["validation"][-1][0] == last
        assert points["best"]["nats"] == min(nats for _, nats in points["validation"])


def test_a_picture_is_drawn_but_never_over_another_file(
    charlm: Callable[..., Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that there is no picture, or that it replaces a file of the user."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    run, picture = trained / "run", tmp_path / "plot.png"
    for _ in range(2):
        assert charlm("plot", run, "--png", picture).text == f"{picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.write_bytes(b"mine")
    refused = charlm("plot", run, "--png", picture)
    assert refused.code == 2 and picture.read_bytes() == b"mine"


def test_a_run_without_a_log_is_refused(charlm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean an empty plot, or an error that does not name the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    refused = charlm("plot", "empty")
    assert refused.code == 2 and "empty" in refused.err
    assert charlm("plot", "missing").code == 2
