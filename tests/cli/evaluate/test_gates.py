"""``charlm eval gates``."""

from __future__ import annotations

import numpy as np
import pytest

import charlm as library


def test_json_has_the_documented_keys(charlm, trained):
    """Failing would mean that a program that reads the gates finds other keys, or other numbers than from Python."""
    record = charlm("eval", "gates", trained / "run", trained / "text.txt", "--top", 3, "--json").record
    assert {"gates", "memory", "change", "cell", "characters", "text", "sha256", "checkpoint", "step"} <= record.keys()
    expected = library.load(trained / "run").gates((trained / "text.txt").read_text(encoding="utf-8"))
    assert [(gate["layer"], gate["gate"]) for gate in record["gates"]] == [(0, "i"), (0, "f"), (0, "o")]
    for gate, other in zip(record["gates"], expected.gates, strict=True):
        assert set(gate) == {"layer", "gate", "mean", "below", "above", "histogram"}
        assert (gate["mean"], gate["below"], gate["above"]) == pytest.approx((other.mean, other.below, other.above))
        assert len(gate["histogram"]) == 20 and sum(gate["histogram"]) == pytest.approx(1)
    (memory,) = record["memory"]
    assert set(memory) == {"layer", "gate", "steps", "median", "longest_units"} and memory["gate"] == "f"
    assert memory["longest_units"] == np.argsort(memory["steps"])[::-1][:3].tolist()
    assert memory["median"] == pytest.approx(np.median(memory["steps"])) and len(memory["steps"]) == 8
    assert [(change["layer"], change["state"]) for change in record["change"]] == [(0, "h"), (0, "c")]
    assert record["characters"] == expected.steps


def test_the_view_fits_and_has_every_gate(charlm, trained):
    """Failing would mean that the view breaks in a terminal of 80 columns, or leaves a gate out."""
    lines = charlm("eval", "gates", trained / "run", trained / "text.txt").text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert [line.split()[1] for line in lines if line.split()[:1] == ["0"] and "%" in line] == ["i", "f", "o"]
    assert any("memory in steps" in line for line in lines)
    (change,) = [line for line in lines if line.startswith("change per step")]
    assert " h " in change and " c " in change


def test_a_plain_rnn_says_that_it_has_no_gates(charlm, desk):
    """Failing would mean an empty table, or an error, where a sentence and the change of h help."""
    assert charlm("train", "recipe.yaml", "--out", "run", "--set", "model.cell=rnn", "--max-steps", 2, "-q").code == 0
    done = charlm("eval", "gates", "run")
    assert done.code == 0 and "a plain RNN has no gates" in done.text and "change per step" in done.text
    record = charlm("eval", "gates", "run", "--json").record
    assert record["gates"] == record["memory"] == [] and record["change"][0]["mean"] > 0


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_a_picture_is_drawn(charlm, desk, cell):
    """Failing would mean that --png draws nothing, or fails for a model without gates."""
    pytest.importorskip("matplotlib")
    assert charlm("train", "recipe.yaml", "--out", "run", "--set", f"model.cell={cell}", "--max-steps", 2, "-q").code == 0
    done = charlm("eval", "gates", "run", "--png", "gates.png")
    if cell == "rnn":
        assert done.code == 2 and "no gates to draw" in done.err
    else:
        assert done.code == 0 and (desk / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_of_two_characters_is_enough_and_one_is_named(charlm, trained, tmp_path):
    """Failing would mean a traceback, or a division by zero."""
    (tmp_path / "two.txt").write_text("th", encoding="utf-8")
    done = charlm("eval", "gates", trained / "run", tmp_path / "two.txt", "--json")
    assert done.code == 0 and done.record["characters"] == 1
    (tmp_path / "one.txt").write_text("t", encoding="utf-8")
    done = charlm("eval", "gates", trained / "run", tmp_path / "one.txt")
    assert done.code == 1 and "Traceback" not in done.err
