"""A model of records on the command line and from Python: each sample is a record, and each question says how it reads them."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import charlm as package
from charlm.errors import UsageError
from charlm.export import html
from charlm.writing import Session, Settings

SYLLABLES = ["ka", "ri", "no", "el", "ma", "jo", "an", "th"]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A folder with ``names.txt``, ``poems.txt`` and a run on each: ``line`` and ``blank``; only to be read."""
    from charlm.cli.app import run

    folder, draw = tmp_path_factory.mktemp("records"), random.Random(1)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(600)]
    (folder / "names.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "poems.txt").write_text("\n\n".join("\n".join(pair) for pair in pairwise(words)), encoding="utf-8")
    common = ["--set", "model.hidden=12", "--set", "train.total_steps=150", "--set", "train.batch=8", "--set", "train.lr=0.02"]
    for text, records, out in (("names", "line", "line"), ("poems", r'"\n\n"', "blank")):
        arguments = [str(folder / f"{text}.txt"), "--set", f"data.records={records}", "--out", str(folder / out), "-q"]
        assert run(["train", *arguments, *common]) == 0
    return folder


def test_samples_are_a_file_of_records(charlm, names):
    """Failing would mean that samples cannot be read with the same data.records, or do not end with their record."""
    done = charlm("sample", names / "line", "--num", 40, "--seed", 1)
    assert done.text.count("\n") == 40 and done.text.endswith("\n")
    lines = done.text.splitlines()
    assert len(set(lines)) > 10
    one = charlm("sample", names / "line", "--seed", 1)
    assert one.text == lines[0]
    poems = charlm("sample", names / "blank", "--num", 3, "--seed", 1).text
    assert poems.endswith("\n\n") and poems.count("\n\n") == 3 and "\0" not in poems
    assert charlm("sample", names / "line", "--num", 2, "--seed", 1, "--length", 1).text == f"{lines[0][0]}\n{lines[1][0]}\n"
    until_end = charlm("sample", names / "line", "--num", 3, "--seed", 1, "--length", 0)
    assert until_end.text.splitlines() == lines[:3], until_end.err


def test_a_prompt_begins_the_record(charlm, names):
    """Failing would mean that --prompt continues another record, or that Python and the commands draw different ones."""
    done = charlm("sample", names / "line", "--prompt", "ka", "--num", 3, "--seed", 4, "--json")
    model = package.load(names / "line", "cpu")
    assert done.record["samples"][0] == model.sample("ka", seed=4)
    assert model.next_characters("") != model.next_characters("ka")
    session = Session(model, Settings(seed=4))
    assert b"".join(session.write("ka")).decode() == done.record["samples"][0]
    assert b"".join(session.again()).decode() == done.record["samples"][1]
    assert b"".join(session.more()) == b"", "the record has ended"
    refused = charlm("sample", names / "line", "--prompt", "ka\nri")
    assert (refused.code, "--prompt" in refused.err, "separates records" in refused.err) == (2, True, True)
    assert charlm("sample", names / "blank", "--prompt", "ka\nri", "--seed", 1).code == 0


@pytest.mark.parametrize(("run", "text"), [("line", "names"), ("blank", "poems")])
def test_perplexity_reads_record_by_record(charlm, names, run, text, tmp_path):
    """Failing would mean that perplexity and surprisal disagree, or that a file is cut elsewhere than the corpus."""
    found = charlm("eval", "perplexity", names / run, "--json").record
    start, stop = found["offsets"]
    assert (found["context"], found["characters"]) == ("records", stop - start - 1)
    surprisal = charlm("eval", "surprisal", names / run, "--json").record
    assert surprisal["nats_per_character"] == pytest.approx(found["nats_per_character"], rel=1e-6)
    for engine in ("reference", "torch", "native"):
        again = charlm("eval", "perplexity", names / run, "--engine", engine, "--chunk", 3, "--json").record
        assert again["nats_per_character"] == pytest.approx(found["nats_per_character"], abs=1e-6)
    whole = charlm("eval", "perplexity", names / run, names / f"{text}.txt", "--json").record
    model = package.load(names / run, "cpu")
    content = (names / f"{text}.txt").read_text(encoding="utf-8")
    assert model.perplexity(content).nats_per_character == pytest.approx(whole["nats_per_character"], abs=1e-6)
    separator = "\n" if run == "line" else "\n\n"
    alone = [model.perplexity(record) for record in content.split(separator)[:50] if record]
    joined = model.perplexity(separator.join(content.split(separator)[:50]))
    assert sum(score.nats for score in alone) == pytest.approx(joined.nats, rel=1e-6)
    assert sum(score.characters for score in alone) == joined.characters


@pytest.mark.parametrize("question", ["context", "gates", "gradients", "influence", "units", "probes"])
def test_questions_about_one_stream_refuse_several_records(charlm, names, question):
    """Failing would mean that a question carries the state across records, which the model never saw in training."""
    refused = charlm("eval", question, names / "line")
    assert refused.code == 2
    assert "this question reads a text as one stream; give a text with one record" in refused.err


def test_questions_about_one_stream_accept_one_record(charlm, names, tmp_path):
    """Failing would mean that no record can be examined."""
    (tmp_path / "one.txt").write_text("karinoel\n", encoding="utf-8")
    assert charlm("eval", "influence", names / "line", tmp_path / "one.txt").code == 0
    model = package.load(names / "line", "cpu")
    assert model.hidden_states("karinoel").shape == (len("\nkarinoel\n"), 1, 12)
    with pytest.raises(UsageError, match="2 records"):
        model.hidden_states("kari\nnoel")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--context", "reset:20"), "each record is read from a zero state"),
        (("--dynamic",), "reads a text as one stream"),
    ],
)
def test_other_ways_to_read_records_are_refused(charlm, names, options, reason):
    """Failing would mean that a result of one stream is reported for a model of records."""
    refused = charlm("eval", "perplexity", names / "line", *options)
    assert (refused.code, reason in refused.err) == (2, True)


def test_samples_are_judged_record_by_record(charlm, names):
    """Failing would mean that `eval samples` judges what follows the end of a record."""
    judged = charlm("eval", "samples", names / "line", "--num", 5, "--seed", 1, "--json").record
    lines = charlm("sample", names / "line", "--num", 5, "--seed", 1).text.splitlines()
    assert judged["texts"] == lines
    assert judged["samples"]["characters"] == sum(map(len, lines))


def test_the_report_leaves_out_what_needs_one_stream(charlm, names, tmp_path):
    """Failing would mean that a report of a model of records ends with an error."""
    done = charlm("report", names / "line", "--output", tmp_path / "report.html")
    assert done.code == 0, done.err
    assert "reads a text as one stream" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_knows_where_records_begin(names):
    """Failing would mean that the exported page begins its texts as those of a model of one stream."""
    model = package.load(names / "blank", "cpu")
    about = html.describe(model, "fp16")
    assert about["separator"] == about["start"] == model.vocabulary.separator_id


def test_the_single_record_is_named(charlm, names, tmp_path):
    """Failing would mean that a wrong separator trains on one endless record."""
    (tmp_path / "text.txt").write_text("one\ntwo\nthree\n" * 20, encoding="utf-8")
    refused = charlm("train", tmp_path / "text.txt", "--set", "data.records=<|end|>", "--out", tmp_path / "run")
    assert (refused.code, "is a single record" in refused.err) == (2, True)
    assert not (tmp_path / "run" / "last.safetensors").exists()
    escaped = charlm("train", tmp_path / "text.txt", "--set", r"data.records=\n", "--out", tmp_path / "run")
    assert r'data.records: "\n"' in escaped.err


def test_info_and_runs_know_records(charlm, names):
    """Failing would mean that the key is lost in a checkpoint, or that a list of runs fails on one."""
    assert charlm("info", names / "blank", "--json").record["recipe"]["data"]["records"] == "\n\n"
    stored = json.loads(charlm("info", names / "line", "--json").text)
    assert stored["recipe"]["data"]["records"] == "line"
    assert np.isfinite(package.load(names / "line", "cpu").perplexity("kari").nats)


def test_the_example_of_the_guide_runs(charlm, tmp_path, monkeypatch):
    """Failing would mean that a reader of the guide gets an error."""
    page = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    section = page.partition("## Train on names, poems or other records\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```console\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    commands = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) == 6
    for command in commands:
        if not command.startswith("charlm "):
            subprocess.run(["bash", "-c", command.replace("python ", f"{sys.executable} ")], check=True)
            continue
        shorter = ["--max-steps", "3", "-q"] if command.startswith("charlm train") else []
        done = charlm(*shlex.split(command, comments=True)[1:], *shorter)
        assert done.code == 0, f"$ {command}\n{done.err}"
    assert (tmp_path / "checkpoints" / "names" / "best.safetensors").is_file()
