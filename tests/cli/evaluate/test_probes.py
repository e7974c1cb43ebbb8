"""``charlm eval probes``: one model, several side by side, and what it refuses."""

from __future__ import annotations

import pytest

LETTERS = "the quick brown fox jumps over the lazy dog, which already ate.\n" * 40
TEXT = 'the king (small) sees "a sword," and [old] stones, so "it falls," and rises.\n' * 30


@pytest.fixture
def file(tmp_path):
    """A text with brackets and quotes."""
    path = tmp_path / "quotes.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def runs(charlm, desk, file):
    """Two runs whose vocabulary has all letters of the sentences."""
    (desk / "text.txt").write_text(LETTERS + TEXT, encoding="utf-8")
    for name, cell in (("one", "rnn"), ("two", "gru")):
        done = charlm("train", "recipe.yaml", "--out", name, "--set", f"model.cell={cell}", "--max-steps", 2, "-q")
        assert done.code == 0
    return desk


def test_json_has_accuracy_count_and_chance_by_distance(charlm, runs, file):
    """If this fails, scripts cannot read the answers of several models, or they are not of the same places."""
    found = charlm("eval", "probes", "one", file, "--and", "two", "--json").record["checkpoints"]
    assert [record["checkpoint"].split("/")[0] for record in found] == ["one", "two"]
    for record in found:
        assert {"agreement", "agreement in pairs", "brackets", "double quotes"} == record["probes"].keys()
        for probe in record["probes"].values():
            assert sum(one["count"] for one in probe["distances"]) == probe["count"]
            for one in (probe, *probe["distances"]):
                assert 0 <= one["accuracy"] <= 1 and 0 < one["chance"] <= 1
        assert {"environments", "indentation", "single quotes"} == record["left_out"].keys()
        assert record["characters"] == len(TEXT) and {"sha256", "offsets", "step"} <= record.keys()
    counts = [[probe["count"] for probe in record["probes"].values()] for record in found]
    assert counts[0] == counts[1]
    alone = charlm("eval", "probes", "two", file, "--json").record["checkpoints"]
    assert alone[0] == found[1]


def test_the_tables_have_a_column_for_each_model(charlm, runs, file):
    """If this fails, models cannot be compared at a glance, or a probe that is left out has no reason."""
    done = charlm("eval", "probes", "one", file, "--and", "two")
    assert done.code == 0
    lines = [line.split() for line in done.text.splitlines()]
    assert lines.count(["distance", "places", "chance", "one", "two"]) == 4
    assert any(line[:3] == ["1–9", "60", "0.50"] for line in lines if line)
    assert "left out: environments: too few" in done.err
    assert "reads another text" not in done.err


def test_models_of_other_texts_are_noticed(charlm, runs, file):
    """If this fails, accuracies on different texts are put side by side without a word."""
    (runs / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    assert charlm("train", "recipe.yaml", "--out", "three", "--max-steps", 2, "-q").code == 0
    (runs / "text.txt").rename(runs / "other.txt")
    assert charlm("train", "./other.txt", "--out", "four", "--set", "model.hidden=8", "--max-steps", 2, "-q").code == 0
    (runs / "text.txt").write_text(LETTERS + TEXT, encoding="utf-8")
    done = charlm("eval", "probes", "four", "--and", "one", "--split", "train")
    assert done.code == 0 and "one/best.safetensors reads another text" in done.err.replace("\n", " ")


@pytest.mark.parametrize("settings", [["data.unit=byte"], ["model.attention=5", "model.layers=2", "model.residual=true"]])
def test_every_kind_of_model_can_be_asked(charlm, runs, file, settings):
    """If this fails, a vocabulary of bytes, attention or several layers end in a traceback."""
    set_ = [word for setting in settings for word in ("--set", setting)]
    assert charlm("train", "recipe.yaml", "--out", "odd", *set_, "--max-steps", 2, "-q").code == 0
    done = charlm("eval", "probes", "odd", file, "--json")
    assert done.code == 0 and done.record["checkpoints"][0]["probes"]["brackets"]["count"] == 60


def test_short_texts_and_standard_input(charlm, trained, tmp_path, file):
    """If this fails, a text of two characters or two models on one stream end in a traceback or in nonsense."""
    (tmp_path / "two.txt").write_text("ab", encoding="utf-8")
    done = charlm("eval", "probes", trained / "run", tmp_path / "two.txt")
    assert done.code == 0 and "brackets" not in done.text and "left out: brackets: too few" in done.err
    assert charlm("eval", "probes", trained / "run", tmp_path / "two.txt", "--json").record["checkpoints"][0]["characters"] == 2
    refused = charlm("eval", "probes", trained / "run", "-", "--and", trained / "run")
    assert refused.code == 2 and "standard input" in refused.err
