"""``charlm eval samples``: the view, the JSON, and what it refuses."""

from __future__ import annotations

import pytest


def test_json_has_the_same_numbers_for_samples_and_heldout_text(charlm, trained):
    """If this fails, scripts cannot tell a model that copies from one that does not."""
    record = charlm("eval", "samples", trained / "run", "--num", 3, "--length", 40, "--seed", 5, "--json").record
    text = (trained / "text.txt").read_text(encoding="utf-8")
    for side in ("samples", "heldout"):
        found = record[side]
        assert (found["characters"], len(found["matches"])) == (120, 3)
        assert found["new"].keys() == {"5", "10", "20", "50"} and found["new"]["50"] is None
        assert found["longest"] == max(match["length"] for match in found["matches"]) >= found["median_longest"]
        assert {"brackets", "environments", "python", "words"} <= found.keys()
    assert record["training_characters"] == 2700
    assert (record["seed"], record["temperature"], record["file"]) == (5, 0.8, None)
    for match in record["samples"]["matches"]:
        copied = text[match["place"] : match["place"] + match["length"]]
        assert record["texts"][match["sample"]][match["at"] :].startswith(copied) and match["length"] > 0
    assert record["heldout_text"]["split"] == "validation" and {"step", "checkpoint"} <= record.keys()
    written = charlm("sample", trained / "run", "--num", 3, "--length", 40, "--seed", 5, "--json").record
    assert written["samples"] == record["texts"]


def test_a_copy_is_shown_with_its_place(charlm, trained, tmp_path):
    """If this fails, memorised text is not shown, or with the place of another."""
    text = (trained / "text.txt").read_text(encoding="utf-8")
    (tmp_path / "copied.txt").write_text("☃" + text[1000:1300], encoding="utf-8")
    done = charlm("eval", "samples", trained / "run", "--file", tmp_path / "copied.txt")
    assert done.code == 0
    rows = [line.split() for line in done.text.splitlines()]
    assert ["1", "300", "1", "1,000"] in [row[:4] for row in rows]
    assert ["longest", "match", "300"] in [row[:3] for row in rows] and max(map(len, done.text.splitlines())) <= 80
    assert "seed" not in done.err
    record = charlm("eval", "samples", trained / "run", "--file", tmp_path / "copied.txt", "--json").record
    assert (record["samples"]["longest"], record["seed"], record["file"][-10:]) == (300, None, "copied.txt")


def test_the_heldout_text_can_be_named_or_missing(charlm, desk):
    """If this fails, a recipe without held-out text cannot be asked, or FILE is taken for the samples."""
    set_ = ("--set", "data.split=[1, 0, 0]", "--max-steps", 2, "-q")
    assert charlm("train", "recipe.yaml", "--out", "run", *set_).code == 0
    done = charlm("eval", "samples", "run", "--num", 2, "--length", 30)
    assert done.code == 0 and "no held-out text" in done.err and "held-out" not in done.text and "seed" in done.err
    (desk / "other.txt").write_text("the king knows the old sword and the cold river " * 3, encoding="utf-8")
    record = charlm("eval", "samples", "run", "other.txt", "--num", 2, "--length", 30, "--json").record
    assert (record["heldout"]["characters"], record["heldout_text"]["text"]) == (60, "other.txt")


def test_bytes(charlm, desk):
    """If this fails, a model of bytes cannot be asked."""
    assert charlm("train", "recipe.yaml", "--out", "run", "--set", "data.unit=byte", "--max-steps", 2, "-q").code == 0
    record = charlm("eval", "samples", "run", "--num", 2, "--length", 30, "--json").record
    assert record["samples"]["characters"] == 60 and len(record["texts"][0]) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "x.txt", "--seed", "1"], "--seed is for drawing"),
        (["--split", "train"], "choose validation or test"),
        (["--num", "2000", "--length", "1000"], "--num, --length"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--file", "nowhere.txt"], "nowhere.txt does not exist"),
        (["nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_wrong_options_are_explained(charlm, trained, arguments, message):
    """If this fails, an option is ignored or ends in a traceback."""
    done = charlm("eval", "samples", trained / "run", *arguments)
    assert done.code == 2 and message in done.err


def test_a_lost_training_text_is_asked_for(charlm, trained, tmp_path):
    """If this fails, the user is not told what to do when the training text is gone."""
    (tmp_path / "copy.safetensors").write_bytes((trained / "run" / "best.safetensors").read_bytes())
    done = charlm("eval", "samples", tmp_path / "copy.safetensors", trained / "text.txt")
    assert done.code == 2 and "training text" in done.err
