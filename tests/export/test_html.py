"""The page that runs a model: it computes what charlm computes, it can be used, and nothing leaves it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import dom, needs_browser, run_in_page

import charlm
from charlm.cells import CELLS, entry_of
from charlm.errors import UsageError
from charlm.export import html

TEXT = "the king 'and' the queen: <script>alert(1)</script> & \"so\" on,\n" * 20


def trained(folder, **keys):
    """A model that has learned for a few steps, so that no weight is zero."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    recipe = {"corpus": str(folder / "text.txt")}
    overrides = {"model.hidden": 12, "train.total_steps": 4, "train.batch": 4, "train.seq_length": 8, "train.lr": 0.05, **keys}
    charlm.train(recipe, overrides, out=folder / "run")
    return charlm.load(folder / "run", "cpu")


def test_every_cell_has_its_equations_in_the_page():
    """If this fails, a cell was added to charlm or to the page alone."""
    code = (Path(html.__file__).parent / "model.js").read_text(encoding="utf-8")
    in_page = re.findall(r"^  (\w+)\(layer, x, ", code, re.MULTILINE)
    assert sorted(in_page) == sorted(html.CELLS)
    assert set(html.CELLS) == {entry.name for entry in CELLS}


@needs_browser
@pytest.mark.parametrize("entry", CELLS, ids=lambda entry: entry.name)
@pytest.mark.parametrize(
    "extra", [{}, {"model.layers": 2, "model.residual": True, "model.attention": 5}], ids=["plain", "deep"]
)
def test_the_page_predicts_what_charlm_predicts(entry, extra, tmp_path):
    """If this fails, the page shows other probabilities than ``charlm sample --probabilities``."""
    options = {f"model.{key}": value for key, value in entry.options.items()}
    model = trained(tmp_path, **{"model.cell": entry.cell, **options, **extra})
    assert entry_of(model.recipe.model) is entry
    prompt = "the queen: so the king"
    expected = list(model.next_characters(prompt).values())
    for fp32, tolerance in ((True, 1e-5), (False, 1e-3)):
        page = html.page(model, fp32=fp32)
        found = run_in_page(page, f"return Array.from(charlm.model.probabilities({json.dumps(prompt)}));", tmp_path)
        assert np.allclose(sorted(found, reverse=True), expected, atol=tolerance, rtol=0), (entry.name, fp32)


@needs_browser
@pytest.mark.parametrize(
    "extra",
    [
        {"data.unit": "byte"},
        {"model.input": "embedding", "model.tied": True},
        {"model.input": "embedding", "model.embedding": 5},
    ],
    ids=["bytes", "tied", "narrow"],
)
def test_bytes_and_embeddings(extra, tmp_path):
    """If this fails, a model of bytes, or one with an embedding, is read wrongly by the page."""
    model = trained(tmp_path, **extra)
    found = run_in_page(html.page(model, fp32=True), 'return Array.from(charlm.model.probabilities("the quéen"));', tmp_path)
    expected = list(model.next_characters("the quéen", unknown="map").values())
    assert np.allclose(sorted(found, reverse=True), expected, atol=1e-5, rtol=0)


@needs_browser
def test_a_page_of_records_begins_and_ends_them(tmp_path):
    """If this fails, the page reads a prompt as the middle of a record, or carries its state into the next one."""
    model = trained(tmp_path, **{"data.records": "line", "data.split": "[0.8, 0.1, 0.1]"})
    script = """
      const $ = (id) => document.getElementById(id), wait = (ms) => new Promise((done) => setTimeout(done, ms));
      $("text").value = "the q"; $("text").dispatchEvent(new Event("input")); await wait(300);
      $("length").value = "3000"; $("write").click(); await wait(2000);
      const of = (text) => Array.from(charlm.model.probabilities(text));
      return { plain: of("the q"), second: of("on and on\\nthe q"), none: of(""), text: $("text").value,
               first: $("reading").firstElementChild.title };
    """
    found = run_in_page(html.page(model, fp32=True), script, tmp_path)
    for prompt, key in (("the q", "plain"), ("the q", "second"), ("", "none")):
        expected = list(model.next_characters(prompt).values())
        assert np.allclose(sorted(found[key], reverse=True), expected, atol=1e-5, rtol=0), key
    assert found["text"].startswith("the q") and found["text"].index("\n") == len(found["text"]) - 1


@needs_browser
def test_one_can_type_write_and_look(tmp_path):
    """If this fails, the page shows a model but cannot be used."""
    model = trained(tmp_path)
    script = """
      const $ = (id) => document.getElementById(id), wait = (ms) => new Promise((done) => setTimeout(done, ms));
      const type = async (text) => { $("text").value = text; $("text").dispatchEvent(new Event("input")); await wait(300); };
      await type("the ki");
      const rows = Array.from($("next").tBodies[0].rows, (row) => [row.cells[0].textContent, Number(row.cells[1].textContent)]);
      const expected = charlm.model.probabilities("the ki");
      await type("the king 'and' the q");
      const spans = $("reading").childElementCount;
      await type("the queen");  // cut in the middle, then read on
      const shown = $("next").tBodies[0].rows[0].cells[1].textContent;
      const best = Math.max(...charlm.model.probabilities("the queen"));
      const last = $("reading").lastElementChild;
      last.dispatchEvent(new Event("mouseenter"));
      $("what").value = "1"; $("unit").value = "3"; $("what").dispatchEvent(new Event("change")); await wait(300);
      const coloured = $("reading").lastElementChild;
      coloured.dispatchEvent(new Event("mouseenter"));
      $("length").value = "50"; $("write").click(); await wait(2000);
      const first = $("text").value;
      await type("the queen"); $("write").click(); await wait(2000);
      return { rows, top: Math.max(...expected), spans, shown: Number(shown), best, hover: last.title,
               unit: coloured.title, first, again: $("text").value, status: $("status").textContent };
    """
    found = run_in_page(html.page(model), script, tmp_path)
    assert len(found["rows"]) == 10 and found["rows"][0][1] == pytest.approx(found["top"], abs=1e-4)
    assert found["spans"] == len("the king 'and' the q")
    assert found["shown"] == pytest.approx(found["best"], abs=1e-4)
    assert re.match(r"n  p [\d.e-]+, [\d.]+ bits\nexpected: ", found["hover"])
    assert "value" in found["unit"]
    assert found["first"].startswith("the queen") and len(found["first"]) == len("the queen") + 50
    assert found["again"] == found["first"], "the same seed writes the same text"
    assert found["status"].startswith("50 characters")


@needs_browser
def test_hostile_text_is_inert(tmp_path):
    """If this fails, a corpus or a name with markup in it becomes part of the page."""
    folder = tmp_path / "<img src=x onerror=problems.push(1)>"
    folder.mkdir()
    attack = "</script><script>problems.push('ran')</script>"
    (folder / "<b>&.txt").write_text(f"{attack}\x01\x1b[31m\u202e😀é" * 40, encoding="utf-8")
    overrides = {
        "model.hidden": 8,
        "train.total_steps": 2,
        "sample.prompt": "</script><script>problems.push('prompt')</script>",
    }
    charlm.train({"corpus": str(folder / "<b>&.txt")}, overrides, out=folder / "run <i>")
    model = charlm.load(folder / "run <i>", "cpu")
    script = """
      await new Promise((done) => setTimeout(done, 500));
      return { bold: document.querySelectorAll("b, i, img").length, text: document.getElementById("text").value,
               scripts: document.scripts.length };
    """
    found = run_in_page(html.page(model), script, tmp_path)
    assert (
        found["bold"] == 0 and found["text"].startswith("</script>") and found["scripts"] == 5
    )  # 3 of the page, 2 of the test


@needs_browser
@pytest.mark.parametrize("width", [400, 1000])
def test_nothing_is_wider_than_the_window(width, tmp_path):
    """If this fails, a phone shows the page with a horizontal scroll bar."""
    found = run_in_page(
        html.page(trained(tmp_path)), "return [document.documentElement.scrollWidth, innerWidth];", tmp_path, width=width
    )
    assert found[0] <= found[1]


@needs_browser
def test_lstm_512_writes_at_least_300_characters_a_second(tmp_path):
    """If this fails, the page has become slow. An idle core reaches more than 1,500; the bound allows for a busy one."""
    model = trained(tmp_path, **{"model.hidden": 512, "train.total_steps": 1})
    script = "charlm.symbolsPerSecond(charlm.model, 200); return charlm.symbolsPerSecond(charlm.model, 500);"
    assert run_in_page(html.page(model), script, tmp_path, real_time=True) > 300


def test_weights_beyond_fp16_are_refused_unless_fp32(tmp_path):
    """If this fails, the page computes with infinite weights."""
    model = trained(tmp_path)
    with torch.no_grad():
        model.network.output_bias[0] = 1e6
    with pytest.raises(UsageError, match="too large for fp16"):
        html.page(model)
    page = html.page(model, fp32=True)
    stored = base64.b64decode(re.search(r'id="weights">([^<]*)<', page)[1])
    assert len(stored) == 4 * model.network.parameter_count()


def test_only_pages_of_charlm_are_replaced(tmp_path):
    """If this fails, a mistyped file name destroys someone's page."""
    model, path = trained(tmp_path), tmp_path / "page.html"
    path.write_text("<html>mine</html>", encoding="utf-8")
    with pytest.raises(UsageError, match="not a page of charlm's"):
        html.write_page(model, path)
    assert path.read_text(encoding="utf-8") == "<html>mine</html>"
    path.unlink()
    assert html.write_page(model, path) == path.stat().st_size == html.write_page(model, path)


@needs_browser
def test_the_page_runs_as_it_was_written(tmp_path):
    """If this fails, the browser refuses the page's script: its hash is not that of the content security policy."""
    path = tmp_path / "page.html"
    html.write_page(trained(tmp_path), path)
    assert dom(path, tmp_path).count('<div style="width:') == 10
