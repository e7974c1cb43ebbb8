"""The report: it holds what the run has, says what it lacks, and a browser shows it."""

from __future__ import annotations

import re
import shutil

import pytest
from browser import needs_browser, run_in_page

import charlm
from charlm.report.page import SECTIONS, report
from charlm.report.run import open_run

TEXT = "".join(f"line {n}: the king said 'so be it' & <b>left</b> the hall.\n" for n in range(200))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An RNN and an LSTM of two layers, each trained for some steps."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    common = {"train.total_steps": 30, "train.batch": 4, "train.seq_length": 16, "evaluate.every": 10, "model.hidden": 12}
    for name, cell, layers in (("rnn", "rnn", 1), ("lstm", "lstm", 2)):
        overrides = {**common, "model.cell": cell, "model.layers": layers}
        charlm.train({"corpus": str(folder / "text.txt")}, overrides, out=folder / name)
    return folder


def test_every_section_has_its_content(runs):
    """If this fails, a section of the page is empty or missing."""
    page = report([open_run(str(runs / "lstm"))])
    for section in SECTIONS:
        found = re.search(rf'<section id="{section.name}">(.*?)</section>\n', page, re.DOTALL)
        assert found and len(found[1]) > 100, section.name
    assert page.count("<figure") >= 5
    assert all("<details>" in figure for figure in page.split("<figure")[1:])


def test_a_report_fits_its_bound(runs):
    """If this fails, a page of a small model is too large to send."""
    assert len(report([open_run(str(runs / "lstm"))])) < 1_000_000


def test_several_runs_are_side_by_side(runs):
    """If this fails, two runs cannot be compared on one page."""
    page = report([open_run(str(runs / "rnn")), open_run(str(runs / "lstm"))])
    assert "Side by side" in page and page.count("<h1>") == 3


def test_without_the_text_the_rest_of_the_page_is_made(runs, tmp_path):
    """If this fails, a checkpoint from elsewhere gets no report at all."""
    shutil.copytree(runs / "rnn", tmp_path / "alone")
    (tmp_path / "alone" / "config.yaml").unlink()
    (tmp_path / "alone" / "metrics.jsonl").unlink()
    page = report([open_run(str(tmp_path / "alone"))])
    assert "not available" in page and "There is no log beside this checkpoint." in page and 'id="live"' in page


@needs_browser
@pytest.mark.parametrize("width", [400, 1000])
def test_a_browser_shows_values_on_hover_and_nothing_is_too_wide(runs, width, tmp_path):
    """If this fails, hovering shows nothing, or a phone gets a horizontal scroll bar."""
    script = """
      const svg = document.querySelector("svg[data-hover]"), area = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent("pointermove", { clientX: area.left + area.width / 2, clientY: area.top + 20 }));
      const tip = document.querySelector(".tip").textContent;
      svg.dispatchEvent(new PointerEvent("pointerleave"));
      return { tip, left: document.querySelectorAll(".tip").length,
               wide: [document.documentElement.scrollWidth, innerWidth], bold: document.querySelectorAll("b").length };
    """
    found = run_in_page(report([open_run(str(runs / "lstm"))]), script, tmp_path, width=width)
    assert re.match(r"(training|validation) [\d.]+ at \d+", found["tip"])
    assert found["left"] == 0 and found["wide"][0] <= found["wide"][1] and found["bold"] == 0
