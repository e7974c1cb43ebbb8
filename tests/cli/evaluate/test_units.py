"""``charlm eval units``: the view, the JSON, and what it refuses."""

from __future__ import annotations

import pytest


def _text() -> str:
    """Words, brackets and lines in turn, often enough for every part."""
    return "".join(f"the (small {'x' * (number % 7)}) King\n  sees [{number}]\n" for number in range(80))


@pytest.fixture
def file(tmp_path):
    """A text with several features."""
    path = tmp_path / "brackets.txt"
    path.write_text(_text(), encoding="utf-8")
    return path


def test_json_has_a_score_and_a_chance_level_for_each_feature(charlm, trained, file):
    """If this fails, scripts cannot read which unit tracks what."""
    record = charlm("eval", "units", trained / "run", file, "--json").record
    found = {row["feature"]: row for row in record["features"]}
    assert {"inside ( )", "inside [ ]", "digits", "indentation", "bracket depth"} <= found.keys()
    for row in found.values():
        assert row["measure"] in ("auc", "spearman") and row["state"] in ("h", "c")
        assert (row["layer"], row["sign"] in (1, -1)) == (0, True) and 0 <= row["unit"] < 8
        assert all(-1 <= row[key] <= 1 for key in ("score", "chosen_score", "chance", "chance_high", "untrained"))
    assert record["left_out"]["inside double quotes"] == "it does not occur"
    assert record["chosen_on"] + record["measured_on"] == len(_text())
    start, stop = record["shown"]["passage"]
    assert len(record["shown"]["values"]) == stop - start
    assert {"checkpoint", "step", "engine", "text", "sha256", "offsets", "split"} <= record.keys()


def test_the_table_and_the_text_with_digits(charlm, trained, file):
    """If this fails, the view lacks a feature or its chance level, or no longer fits 80 columns."""
    done = charlm("eval", "units", trained / "run", file)
    assert done.code == 0
    lines = done.text.splitlines()
    assert "feature" in lines[0] + lines[1] and "chance" in lines[0] + lines[1] and "untrained" in lines[0] + lines[1]
    assert any(line.split()[:3] == ["inside", "[", "]"] for line in lines)
    assert "left out: inside math" not in done.err and "left out: inside double quotes" in done.err
    assert "\x1b" not in done.text and max(map(len, lines)) <= 80
    shown = lines[lines.index("", 3) :]
    assert any(line.isdigit() for line in shown)


def test_one_unit_over_the_text(charlm, trained, file):
    """If this fails, --unit shows another unit, or digits are not below their characters."""
    record = charlm("eval", "units", trained / "run", file, "--unit", "0:3", "--state", "c", "--length", 40, "--json").record
    assert (record["unit"], record["state"], record["passage"], len(record["values"])) == (3, "c", [0, 40], 40)
    import charlm as package

    values = package.load(trained / "run", engine="reference").hidden_states(_text()[:40], "c")[:, 0, 3]
    assert record["values"] == pytest.approx(values.tolist(), abs=1e-5)
    lines = charlm("eval", "units", trained / "run", file, "--unit", "0:3", "--length", 40).text.splitlines()
    assert lines[0] == "the (small ) King↵" and len(lines[1]) == len(lines[0]) and lines[1].isdigit()


def test_control_characters_and_bytes_are_visible(charlm, desk):
    """If this fails, a text can send commands to the terminal, or bytes and digits are shifted against each other."""
    assert charlm("train", "recipe.yaml", "--out", "run", "--set", "data.unit=byte", "--max-steps", 2, "-q").code == 0
    (desk / "odd.txt").write_bytes("é\x1b[31m日\n".encode() + b"\xff!")
    lines = charlm("eval", "units", "run", "odd.txt", "--unit", "0:0").text.splitlines()
    assert lines[0] == "é\\x1b[31m日↵" and len(lines[1]) == len(lines[0]) + 1, "日 is two columns wide"
    assert lines[2] == "\\xff!" and len(lines[3]) == 5


def test_colour_on_a_terminal(charlm, trained, file, monkeypatch):
    """If this fails, a terminal shows digits instead of colours, or NO_COLOR is ignored."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    command = ("eval", "units", trained / "run", file, "--unit", "0:3", "--length", 40)
    lines = charlm(*command).text.splitlines()
    assert ";48;5;" in lines[0] and not any(line.isdigit() for line in lines)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in charlm(*command).text


@pytest.mark.parametrize(
    "settings",
    [
        ["model.cell=rnn", "model.layers=2"],
        ["model.cell=gru", "model.attention=5"],
        ["model.layers=2", "model.residual=true", "data.unit=byte"],
        ["model.variant=coupled"],
    ],
)
def test_every_kind_of_model_can_be_asked(charlm, desk, file, settings):
    """If this fails, some cell, layer, attention or byte vocabulary ends in a traceback."""
    set_ = [word for setting in settings for word in ("--set", setting)]
    assert charlm("train", "recipe.yaml", "--out", "run", *set_, "--max-steps", 2, "-q").code == 0
    for engine in ("torch", "reference"):
        done = charlm("eval", "units", "run", file, "--engine", engine, "--json")
        if "coupled" not in str(settings) or engine == "reference":
            assert done.code == 0 and len(done.record["features"]) >= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unit", "3"], "LAYER:INDEX"),
        (["--unit", "0:8"], "--unit 0:8: the layers are 0 to 0"),
        (["--unit", "0:1", "--state", "x"], "--state x: the states of this cell are h and c"),
        (["--state", "c"], "--state belongs to --unit"),
        (["--length", "9"], "--length belongs to --unit"),
    ],
)
def test_wrong_options_are_explained(charlm, trained, file, arguments, message):
    """If this fails, an option is ignored or ends in a traceback."""
    done = charlm("eval", "units", trained / "run", file, *arguments)
    assert done.code == 2 and message in done.err


def test_a_text_of_two_characters_is_explained(charlm, trained, tmp_path):
    """If this fails, a short text ends in a traceback or in scores of nothing."""
    (tmp_path / "two.txt").write_text("ab", encoding="utf-8")
    done = charlm("eval", "units", trained / "run", tmp_path / "two.txt")
    assert done.code == 1 and "2 characters" in done.err and "longer text" in done.err
