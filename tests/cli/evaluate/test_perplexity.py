"""``charlm eval perplexity`` and ``charlm info``."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import shutil

import pytest

KEYS = [
    "perplexity",
    "nats_per_character",
    "bits_per_character",
    "characters",
    "unknown_characters",
    "characters_per_second",
    "step",
    "epoch",
    "seconds",
    "device",
    "engine",
    "precision",
    "parameters",
    "checkpoint",
]


def test_json_has_every_key_and_the_figures_agree(charlm, trained):
    """Failing would mean that perplexity, nats and bits are not the same figure."""
    record = charlm("eval", "perplexity", trained / "run", "--json").record
    assert set(KEYS) <= record.keys()
    assert record["perplexity"] == pytest.approx(math.exp(record["nats_per_character"]))
    assert record["bits_per_character"] == pytest.approx(record["nats_per_character"] / math.log(2))
    start, stop = record["offsets"]
    assert record["characters"] == stop - start - 1


def test_it_is_the_figure_that_training_ended_with(charlm, desk):
    """Failing would mean that the end of a run states another perplexity than the command that measures it."""
    ended = charlm("train", "recipe.yaml", "--out", "run", "--json", "-q").record
    record = charlm("eval", "perplexity", "run", "--json").record
    assert record["perplexity"] == pytest.approx(ended["perplexity"], rel=1e-6)


@pytest.mark.parametrize("chunk", [0, 1, 7])
def test_the_chunk_does_not_change_the_figure(charlm, trained, chunk):
    """Failing would mean that state is lost between chunks."""
    expected = charlm("eval", "perplexity", trained / "run", "--json").record["nats_per_character"]
    found = charlm("eval", "perplexity", trained / "run", "--json", "--chunk", chunk).record["nats_per_character"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_short_windows_cost_more_and_one_long_window_is_carried(charlm, trained):
    """Failing would mean that reset:N does not reset, or skips characters."""
    nats = {
        context: charlm("eval", "perplexity", trained / "run", "--json", "--context", context).record
        for context in ("carried", "reset:2", "reset:100000")
    }
    assert len({record["characters"] for record in nats.values()}) == 1
    assert nats["reset:2"]["nats_per_character"] > nats["carried"]["nats_per_character"]
    whole = nats["reset:100000"]["nats_per_character"]
    assert whole == pytest.approx(nats["carried"]["nats_per_character"], abs=1e-6)


def test_a_file_and_standard_input_give_the_same(charlm, trained, monkeypatch):
    """Failing would mean that - is read otherwise than a file."""
    text = (trained / "text.txt").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    records = [charlm("eval", "perplexity", trained / "run", source, "--json").record for source in (trained / "text.txt", "-")]
    assert records[0]["sha256"] == records[1]["sha256"]
    assert records[0]["perplexity"] == records[1]["perplexity"]
    assert records[0]["characters"] == len(text) - 1


def test_unknown_characters_are_counted_and_their_cost_is_told_apart(charlm, trained, tmp_path):
    """Failing would mean that characters outside the vocabulary are dropped or free."""
    (tmp_path / "mixed.txt").write_text("the king 日本 the king\n", encoding="utf-8")
    done = charlm("eval", "perplexity", trained / "run", tmp_path / "mixed.txt")
    assert "2 scored as <unk>" in done.text
    record = charlm("eval", "perplexity", trained / "run", tmp_path / "mixed.txt", "--json").record
    assert record["unknown_characters"] == 2
    assert record["unknown_nats"] == pytest.approx(2 * math.log(1_112_064), rel=1e-4)


def test_every_part_of_the_corpus_can_be_measured(charlm, trained):
    """Failing would mean that parts overlap or that --split is ignored."""
    offsets = [
        charlm("eval", "perplexity", trained / "run", "--json", "--split", split).record["offsets"]
        for split in ("train", "validation", "test")
    ]
    assert offsets[0][0] == 0 and offsets[0][1] == offsets[1][0] and offsets[1][1] == offsets[2][0]


def test_every_engine_gives_the_same_figure(charlm, trained):
    """Failing would mean that an engine computes another model."""
    found = [
        charlm("eval", "perplexity", trained / "run", "--json", "--engine", engine).record["nats_per_character"]
        for engine in ("reference", "torch")
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.fixture
def run_folder(trained, desk):
    """A copy of the finished run, whose text is the current folder's ``text.txt``."""
    shutil.copytree(trained / "run", desk / "run")
    (desk / "run" / "config.yaml").unlink()
    shutil.copy(trained / "text.txt", desk / "text.txt")
    return desk / "run"


def test_the_corpus_is_found_from_the_current_folder(charlm, run_folder):
    """Failing would mean that a run that was copied to another machine cannot be evaluated there."""
    assert charlm("eval", "perplexity", run_folder).code == 0


def test_a_moved_corpus_is_asked_for(charlm, run_folder, desk):
    """Failing would mean that the user is not told what to do when the text is gone."""
    (desk / "text.txt").rename(desk / "elsewhere.txt")
    done = charlm("eval", "perplexity", run_folder)
    assert done.code == 2
    assert "not available" in done.err and "FILE" in done.err
    assert charlm("eval", "perplexity", run_folder, desk / "elsewhere.txt").code == 0


def test_another_text_of_the_same_name_is_refused(charlm, run_folder, desk):
    """Failing would mean that a result is given for another text than the one it names."""
    with (desk / "text.txt").open("a", encoding="utf-8") as text:
        text.write("!")
    done = charlm("eval", "perplexity", run_folder)
    assert done.code == 1
    assert "sha256" in done.err and "FILE" in done.err
    assert done.out == b""


def test_info_reads_a_checkpoint(charlm, trained):
    """Failing would mean that nobody can see what a file holds."""
    shown = charlm("info", trained / "run")
    assert shown.code == 0
    for word in ("step 20", "text.txt", "hidden: 8", "weights only"):
        assert word in shown.text
    assert charlm("info", trained / "run", "--json").record["recipe"]["model"]["hidden"] == 8
    assert "full training state (resumable)" in charlm("info", trained / "run" / "last.safetensors").text


def test_a_validation_file_is_found_again_from_another_folder(charlm, desk, monkeypatch, tmp_path_factory):
    """Failing would mean that a run with separate files can be evaluated and repeated only where it was started."""
    (desk / "val.txt").write_text("abc abd abe " * 30, encoding="utf-8")
    split = "data.split={validation: ./val.txt}"
    assert charlm("train", "recipe.yaml", "--out", "run", "--set", split, "--max-steps", 3, "-q").code == 0
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    done = charlm("eval", "perplexity", desk / "run", "--json")
    assert (done.code, done.record["characters"]) == (0, 359)
    again = charlm("train", desk / "run" / "config.yaml", "--out", desk / "run", "--resume", "must", "--max-steps", 5, "-q")
    assert again.code == 0, again.err


def test_a_run_is_found_by_name_although_a_folder_has_that_name(charlm, desk):
    """Failing would mean that an empty folder hides a run."""
    assert charlm("train", "recipe.yaml", "--out", "checkpoints/twin", "--max-steps", 2, "-q").code == 0
    (desk / "twin").mkdir()
    assert charlm("eval", "perplexity", "twin").code == 0


def test_dynamic_evaluation_is_told_apart_and_changes_nothing(charlm, trained):
    """If this fails, a result of a model that kept learning is taken for a static one, or the checkpoint changes."""
    path = trained / "run" / "best.safetensors"
    before = path.read_bytes()
    static = charlm("eval", "perplexity", trained / "run", "--json").record
    learned = charlm("eval", "perplexity", trained / "run", "--dynamic", "--json").record
    assert static["dynamic"] is None and learned["dynamic"] == {"rate": 0.1, "segment": 32}
    assert learned["characters"] == static["characters"] and learned["nats_per_character"] != static["nats_per_character"]
    still = charlm("eval", "perplexity", trained / "run", "--dynamic", "--dynamic-rate", "0", "--json").record
    assert still["nats_per_character"] == pytest.approx(static["nats_per_character"], rel=1e-6)
    assert b"trained on the scored text" in charlm("eval", "perplexity", trained / "run", "--dynamic").out
    assert path.read_bytes() == before
    assert charlm("eval", "perplexity", trained / "run", "--dynamic-rate", "1").code == 2
    for rate in ("inf", "nan", "-1"):
        assert charlm("eval", "perplexity", trained / "run", "--dynamic", "--dynamic-rate", rate).code == 2
    assert charlm("eval", "perplexity", trained / "run", "--dynamic", "--context", "reset:9").code == 2


def test_dynamic_evaluation_takes_no_chunk(charlm, trained):
    """Failing would mean that --chunk is ignored without a word."""
    refused = charlm("eval", "perplexity", trained / "run", "--dynamic", "--chunk", 7)
    assert refused.code == 2 and "--chunk" in refused.err


def test_baselines_are_reported_in_json_and_in_words(charlm, trained):
    """Failing would mean that a script misses a result, or that the two outputs differ."""
    record = charlm("eval", "perplexity", trained / "run", "--baselines", "--json").record
    found = record["baselines"]
    assert {"ngram", "ngram_order", "gzip", "bz2", "xz", "training_characters"} == found.keys()
    assert found["training_characters"] == 2700
    text, (start, stop) = (trained / "text.txt").read_bytes(), record["offsets"]
    grown = len(gzip.compress(text[:stop], 9)) - len(gzip.compress(text[:2700], 9))
    assert (start, found["gzip"]) == (2700, 8 * grown / (stop - start - 1))
    assert 0 < found["ngram"] < record["bits_per_character"], "twenty updates of eight units know less than an n-gram"
    lines = dict(
        line.split(maxsplit=1) for line in charlm("eval", "perplexity", trained / "run", "--baselines").text.splitlines()
    )
    assert lines["n-gram"] == f"{found['ngram']:.6f}, order {found['ngram_order']}"
    assert [lines[name] for name in ("gzip", "bz2", "xz")] == [f"{found[name]:.6f}" for name in ("gzip", "bz2", "xz")]
    assert "baselines" not in charlm("eval", "perplexity", trained / "run", "--json").record


def test_compressors_say_nothing_of_a_short_text(charlm, trained, tmp_path):
    """If this fails, rounding to whole bytes is taken for a compressor that needs less than nothing."""
    assert "text too short" in charlm("eval", "perplexity", trained / "run", "--baselines").err
    (tmp_path / "long.txt").write_text("the king sleeps and the queen burns " * 30, encoding="utf-8")
    done = charlm("eval", "perplexity", trained / "run", tmp_path / "long.txt", "--baselines")
    assert done.code == 0 and "so short" not in done.err


def test_baselines_of_a_file_follow_the_training_part(charlm, trained, tmp_path):
    """Failing would mean that baselines of a FILE know less, or more, than the model was trained on."""
    text = "the king sleeps, 日本 and the queen burns " * 10
    (tmp_path / "other.txt").write_text(text, encoding="utf-8")
    record = charlm("eval", "perplexity", trained / "run", tmp_path / "other.txt", "--baselines", "--json").record
    train = (trained / "text.txt").read_bytes()[:2700]
    grown = len(bz2.compress(train + text.encode(), 9)) - len(bz2.compress(train, 9))
    assert record["unknown_characters"] == 20
    assert record["baselines"]["bz2"] == 8 * grown / (len(text) - 1)
    assert math.isfinite(record["baselines"]["ngram"])


def test_baselines_after_the_end_of_a_long_training_text(charlm, trained, monkeypatch):
    """Failing would mean that a long training text fills the memory, or that what was used of it is not said."""
    monkeypatch.setattr("charlm.evaluation.baselines.TRAINING_CHARACTERS", 1000)
    found = charlm("eval", "perplexity", trained / "run", "--split", "test", "--baselines", "--json").record["baselines"]
    text = (trained / "text.txt").read_bytes()
    grown = len(gzip.compress(text[1700:2700] + text[2850:], 9)) - len(gzip.compress(text[1700:2700], 9))
    assert (found["training_characters"], found["gzip"]) == (1000, 8 * grown / 149)


def test_baselines_of_bytes(charlm, desk):
    """Failing would mean that a model of bytes has no baselines, or those of another text."""
    assert charlm("train", "recipe.yaml", "--out", "run", "--set", "data.unit=byte", "--max-steps", 2, "-q").code == 0
    record = charlm("eval", "perplexity", "run", "--baselines", "--json").record
    text = (desk / "text.txt").read_bytes()
    grown = len(bz2.compress(text[:2850], 9)) - len(bz2.compress(text[:2700], 9))
    assert record["baselines"]["bz2"] == 8 * grown / 149
    assert "bits per byte" in charlm("eval", "perplexity", "run", "--baselines").text


def test_baselines_of_the_training_part_are_refused(charlm, trained):
    """Failing would mean that methods that have seen a text are said to predict it."""
    done = charlm("eval", "perplexity", trained / "run", "--split", "train", "--baselines")
    assert done.code == 2
    assert "--split validation" in done.err and done.out == b""


def test_baselines_of_a_text_that_is_too_long_are_refused(charlm, trained, monkeypatch):
    """Failing would mean that the command fills the memory."""
    monkeypatch.setattr("charlm.evaluation.baselines.TEXT_CHARACTERS", 100)
    done = charlm("eval", "perplexity", trained / "run", "--baselines")
    assert done.code == 2
    assert "150 characters; at most 100" in done.err and done.out == b""


def test_baselines_need_the_training_text(charlm, run_folder, desk):
    """Failing would mean that baselines of a FILE are stated although there was nothing for them to learn from."""
    other = (desk / "text.txt").rename(desk / "elsewhere.txt")
    for found in (None, "another text\n"):
        if found is not None:
            (desk / "text.txt").write_text(found, encoding="utf-8")
        done = charlm("eval", "perplexity", run_folder, other, "--baselines")
        assert done.code == 2
        assert "--baselines needs the training text" in done.err and done.out == b""
    assert charlm("eval", "perplexity", run_folder, other).code == 0
