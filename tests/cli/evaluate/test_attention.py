"""``charlm eval attention``."""

from __future__ import annotations

import io

import pytest


def test_attention_is_shown_for_a_text(charlm, desk):
    """Failing would mean that the weights cannot be looked at, or are of other places than the text's."""
    set_ = [word for key in ("model.attention=6", "model.hidden=8") for word in ("--set", key)]
    assert charlm("train", "recipe.yaml", "--out", "run", *set_, "--max-steps", 3, "-q").code == 0
    record = charlm("eval", "attention", "run", "the king and the", "--json").record
    assert record["characters"] == 16 and len(record["weights"]) == 15
    assert sum(record["weights"]) + record["nothing"] == pytest.approx(1)
    assert not any(record["weights"][:9]) and all(record["weights"][9:]), "it sees the last six places and no others"
    lines = charlm("eval", "attention", "run", "the king and the", "--top", 3).text.splitlines()
    assert any("steps back" in line for line in lines) and lines[-1].startswith("nothing")
    assert "note: 2 of the characters" in charlm("eval", "attention", "run", "the ☃ king ☃").err


def test_attention_reads_a_text_as_the_recipe_does(charlm, desk, monkeypatch):
    """Failing would mean that a text with Windows line ends is shown as if it were another text."""
    set_ = [word for key in ("model.attention=6", "model.hidden=8") for word in ("--set", key)]
    assert charlm("train", "recipe.yaml", "--out", "run", *set_, "--max-steps", 3, "-q").code == 0
    (desk / "windows.txt").write_bytes(b"the king\r\nand the")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the king\r\nand the")))
    plain = charlm("eval", "attention", "run", "the king\nand the", "--json")
    for text in ("@windows.txt", "-"):
        found = charlm("eval", "attention", "run", text, "--json")
        assert (found.out, found.err) == (plain.out, plain.err)


def test_attention_of_a_model_without_it_is_refused(charlm, trained):
    """Failing would mean a traceback where a sentence helps."""
    done = charlm("eval", "attention", trained / "run", "the king")
    assert done.code == 2 and "no attention" in done.err
