"""``charlm eval influence``."""

from __future__ import annotations

import json
import re

import pytest


def _data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_json_has_its_keys_and_is_what_python_gives(charlm, trained):
    """Failing would mean that scripts find other keys than documented, or another character's influence."""
    import charlm as package

    file = trained / "text.txt"
    record = charlm("eval", "influence", trained / "run", file, "--position", 500, "--distance", 20, "--json").record
    text = file.read_text()
    assert (record["position"], record["character"]) == (500, text[500])
    assert record["past"] == [("↵" if c == "\n" else c) for c in reversed(text[480:500])]
    found = package.load(trained / "run").influence(text, 500, distance=20)
    for name in ("divergence", "change", "gradient"):
        assert record[name] == pytest.approx(getattr(found, name)[0].tolist())
    assert record["nats"] == pytest.approx(found.nats[0]) and record["attention"] is None
    assert record["replacements"] == found.replacements and record["split"] is None
    last = charlm("eval", "influence", trained / "run", file, "--json").record
    assert last["position"] == len(text) - 1 and len(last["divergence"]) == 100


def test_the_terminal_shows_bars_and_the_strongest_characters(charlm, trained):
    """Failing would mean that bars are below other characters, or rows are missing."""
    file = trained / "text.txt"
    done = charlm("eval", "influence", trained / "run", file, "--position", 60, "--distance", 12)
    record = charlm("eval", "influence", trained / "run", file, "--position", 60, "--distance", 12, "--json").record
    lines = done.text.splitlines()
    assert lines[0].startswith("character 60, ")
    row = next(line for line in lines if line.startswith("replaced") and line.endswith("?"))
    strongest = record["divergence"].index(max(record["divergence"]))
    assert row[-2 - strongest] == "█" and "█" not in row[-1 - strongest :]
    assert f"{max(record['divergence']):.4f}" in done.text and all(len(line) <= 80 for line in lines)


def test_attention_is_beside_the_other_measures(charlm, desk):
    """Failing would mean that a model with attention is explained without it."""
    set_ = ("--set", "model.attention=6")
    assert charlm("train", "recipe.yaml", "--out", "run", *set_, "--max-steps", 3, "-q").code == 0
    record = charlm("eval", "influence", "run", "text.txt", "--json").record
    assert record["attention"][0] == 0 and all(record["attention"][1:7]) and not any(record["attention"][7:])
    assert "attention" in charlm("eval", "influence", "run", "text.txt").text
    assert charlm("eval", "influence", "run", "text.txt", "--characters", 20, "--html", "page.html").code == 0
    assert _data((desk / "page.html").read_text())["measures"].keys() == {"replaced", "gradient", "attention"}


def test_the_page_explains_many_characters_and_is_inert(charlm, trained, tmp_path):
    """Failing would mean that the page answers for other characters, or that a text runs code in it."""
    hostile = "the king </script><script>alert(1)</script> \"'&<!-- 🙂 \x1b[31m \u202e\n<b>the"
    (tmp_path / "text").write_text(hostile, encoding="utf-8")
    arguments = ("eval", "influence", trained / "run", tmp_path / "text", "--distance", 9)
    assert charlm(*arguments, "--characters", 30, "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 == page.count("</script>")
    assert "\x1b" not in page and "\u202e" not in page and "<b>" not in page
    data = _data(page)
    assert len(data["told"]) == 30 == len(data["measures"]["replaced"]) and data["before"] == 9
    one = charlm(*arguments, "--replacements", 16, "--json").record
    assert data["measures"]["replaced"][-1] == pytest.approx(one["divergence"], rel=0.01, abs=1e-5)
    assert data["measures"]["gradient"][-1] == pytest.approx(one["gradient"], rel=0.01, abs=1e-5)
    done = charlm(*arguments, "--html", tmp_path / "text")
    assert done.code == 2 and "--html" in done.err and (tmp_path / "text").read_text(encoding="utf-8") == hostile


def test_positions_that_cannot_be_explained_are_refused(charlm, trained, tmp_path):
    """Failing would mean a traceback where a sentence helps."""
    (tmp_path / "two").write_text("th")
    assert charlm("eval", "influence", trained / "run", tmp_path / "two").code == 0
    for position in (0, 2, -2):
        done = charlm("eval", "influence", trained / "run", tmp_path / "two", "--position", position)
        assert done.code == 2 and "--position" in done.err and "1 … 1" in done.err


def test_byte_models_are_explained(charlm, desk):
    """Failing would mean that bytes are shown as other characters, or all 255 others are tried."""
    (desk / "text.txt").write_bytes("größe\n".encode() * 200)
    assert charlm("train", "recipe.yaml", "--set", "data.unit=byte", "--out", "run", "--max-steps", 3, "-q").code == 0
    record = charlm("eval", "influence", "run", "text.txt", "--position", 3, "--json").record
    assert (record["character"], record["past"], record["replacements"]) == ("\\xb6", ["\\xc3", "r", "g"], 32)
