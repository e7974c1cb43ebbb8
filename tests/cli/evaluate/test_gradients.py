"""``charlm eval gradients``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import charlm as library
from charlm.evaluation.gradients import gradients

KEYS = {"cell", "layer", "state", "distances", "median", "lower_quartile", "upper_quartile", "half_life", "theory"}


def test_json_has_the_documented_keys(charlm, trained):
    """Failing would mean that a program that reads the curves finds other keys, or other numbers than from Python."""
    record = charlm("eval", "gradients", trained / "run", trained / "text.txt", "--distance", 50, "--json").record
    assert {"positions", "distance", "trained", "clipping", "seed", "text", "sha256", "checkpoint", "step"} <= record.keys()
    assert (record["positions"], record["distance"], record["trained"]) == (64, 50, True)
    expected = library.load(trained / "run").gradients((trained / "text.txt").read_text(encoding="utf-8"), distance=50)
    assert [(each["layer"], each["state"]) for each in record["gradients"]] == [(0, "h"), (0, "c")]
    for each, flow in zip(record["gradients"], expected.flows, strict=True):
        assert set(each) == KEYS and each["distances"] == list(range(51))
        np.testing.assert_allclose(each["median"], flow.median, rtol=1e-9)
        assert each["half_life"] == flow.half_life
        assert each["theory"]["name"] == "forget gate" and 0 < each["theory"]["factor"] <= each["theory"]["slowest_unit"] < 1


def test_the_chart_has_a_line_for_each_distance_and_fits(charlm, trained):
    """Failing would mean that the view breaks in a terminal of 80 columns, or leaves a state out."""
    done = charlm("eval", "gradients", trained / "run", trained / "text.txt", "--cell", "rnn,gru,lstm", "--distance", 200)
    lines = done.text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split()[:1] == ["k"])
    assert lines[first].split()[1:] == ["rnn", "h", "gru", "h", "lstm", "h", "lstm", "c"]
    assert [line.split()[0] for line in lines[first + 1 : first + 10]] == "0 1 2 5 10 20 50 100 200".split()  # noqa: SIM905
    assert max(len(line.rstrip()) for line in lines) <= 80
    for name in ("spectral radius", "update gate", "forget gate", "untrained, seed 1"):
        assert name in done.text


def test_untrained_cells_depend_on_the_seed_only(charlm, trained):
    """Failing would mean that two people cannot compare what they see."""
    command = ("eval", "gradients", trained / "run", trained / "text.txt", "--cell", "gru", "--distance", 20, "--json")
    first, again, other = (charlm(*command, *more).record for more in ((), ("--seed", 1), ("--seed", 2)))
    assert first["gradients"] == again["gradients"] != other["gradients"]
    assert (first["trained"], other["seed"], first["clipping"]) == (False, 2, None)


def test_an_exploding_gradient_is_named(charlm, desk, monkeypatch):
    """Failing would mean that growth is printed as if it were decay."""
    assert charlm("train", "recipe.yaml", "--out", "run", "--set", "model.cell=rnn", "--max-steps", 1, "-q").code == 0

    def with_large_weights(model, text, **options):
        with torch.no_grad():  # h stays 0, where the slope of tanh is 1
            for name, weight in model.layers[0].named_parameters():
                weight.copy_(1.5 * torch.eye(8)) if name == "weight_hh" else weight.zero_()
        return gradients(model, text, **options)

    monkeypatch.setattr("charlm.evaluation.gradients.gradients", with_large_weights)
    done = charlm("eval", "gradients", "run", "text.txt", "--distance", 10)
    assert f"explodes              h: the gradient is {1.5**10:.3g} times as large at k = 10 as at k = 0" in done.text


def test_clipped_steps_are_counted_from_the_log(charlm, trained, tmp_path):
    """Failing would mean that the share is of other steps, or that a missing or damaged log breaks the question."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    command = ("eval", "gradients", run, trained / "text.txt", "--distance", 5)
    counts = {"characters": 1, "seconds": 1.0}  # every step's line has them
    lines = [{"kind": "step", "step": step, "gradient_norm": 0.5 * step, **counts} for step in range(1, 9)]
    log = run / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert charlm(*command, "--json").record["clipping"] == {"clip": 1.0, "steps": 8, "share": 0.75, "largest_norm": 4.0}
    assert "75 % of 8 training steps" in charlm(*command).text
    log.write_text(json.dumps(lines[0]) + "\n", encoding="utf-8")
    assert "none of 1 training steps" in charlm(*command).text
    log.write_text('{"kind": "st', encoding="utf-8")
    assert charlm(*command, "--json").record["clipping"] is None
    log.unlink()
    assert "clipping" not in charlm(*command).text


def test_a_picture_is_drawn_and_only_over_charlms_own(charlm, trained, tmp_path):
    """Failing would mean that --png draws nothing, or replaces a user's picture."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "flow.png"
    command = ("eval", "gradients", trained / "run", trained / "text.txt", "--distance", 20, "--png", picture)
    for _ in range(2):
        assert charlm(*command).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.write_bytes(b"\x89PNG of a lecture")
    done = charlm(*command)
    assert done.code == 2 and "choose another name" in done.err
    assert picture.read_bytes() == b"\x89PNG of a lecture"
    done = charlm(*command[:-1], trained / "text.txt" / "flow.png")
    assert done.code == 2 and "--png" in done.err


def test_a_picture_needs_matplotlib(charlm, trained, monkeypatch):
    """Failing would mean a traceback, or a long computation before the message."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = charlm("eval", "gradients", trained / "run", "--png", "flow.png")
    assert done.code == 2 and "charlm[plot]" in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cell", "rnn,gur"], "'gur' is no cell"),
        (["--cell", ""], "is no cell"),
        (["--distance", "0"], "--distance"),
        (["--png", ""], "--png is empty"),
    ],
)
def test_wrong_options_are_named(charlm, trained, arguments, sentence):
    """Failing would mean that a mistake is found late, or not named."""
    done = charlm("eval", "gradients", trained / "run", *arguments)
    assert done.code == 2 and sentence in done.err


def test_a_text_of_two_characters_gives_a_sentence(charlm, trained, tmp_path):
    """Failing would mean a traceback for a text that has no distances."""
    (tmp_path / "two.txt").write_text("th", encoding="utf-8")
    done = charlm("eval", "gradients", trained / "run", tmp_path / "two.txt")
    assert done.code == 1 and "2 characters" in done.err and "Traceback" not in done.err
    (tmp_path / "few.txt").write_text("the king", encoding="utf-8")
    done = charlm("eval", "gradients", trained / "run", tmp_path / "few.txt")
    assert done.code == 0 and "too short for 64 positions" in done.text


@pytest.mark.parametrize(
    "keys",
    [
        ("model.layers=2", "model.residual=true", "model.cell=gru"),
        ("model.attention=6", "data.unit=byte"),
        ("model.variant=peephole", "model.layers=2"),
    ],
    ids=" ".join,
)
def test_any_model_can_be_asked(charlm, desk, keys):
    """Failing would mean that a model with layers, attention, bytes or a rare cell is refused."""
    set_ = [word for key in keys for word in ("--set", key)]
    assert charlm("train", "recipe.yaml", "--out", "run", *set_, "--max-steps", 2, "-q").code == 0
    for question in ("gradients", "gates"):
        done = charlm("eval", question, "run", "--json")
        assert done.code == 0 and done.record["gates" if question == "gates" else "gradients"]
        assert charlm("eval", question, "run").code == 0
