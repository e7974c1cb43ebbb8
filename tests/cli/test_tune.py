"""``charlm tune``: the table, the JSON, the recipe of the best candidate, and that a stopped one can be resumed."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.training.trainer import Trainer

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def test_the_best_recipe_trains_and_reaches_its_result(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that the result of a search cannot be repeated."""
    command = ("tune", "recipe.yaml", "--search", "train.lr=0.001,0.03", "--search", "model.hidden=4..9", "--rungs", "2")
    first = charlm(*command, "--candidates", "3", "-o", "best.yaml", "--json")
    assert first.code == 0, first.err
    assert first.record.keys() == {"candidates", "best", "overrides", "folder", "notices"}
    best = first.record["candidates"][0]
    assert best.keys() == {"number", "settings", "rung", "steps", "validation_nats", "perplexity", "change", "folder"}
    assert best["number"] == first.record["best"] and best["rung"] == 2 and best["steps"] == 20
    assert "train the best candidate: charlm train best.yaml" in first.err
    done = charlm("train", "best.yaml", "--json", "-q")
    assert done.code == 0 and done.record["nats_per_character"] == best["validation_nats"]
    again = charlm(*command, "--candidates", "3", "--json")
    assert again.record == first.record and "trained already" in again.err
    line = next(line for line in again.err.splitlines() if line.startswith("train the best"))
    by_overrides = charlm(*shlex.split(line.partition("charlm ")[2]), "--out", "other", "--json", "-q")
    assert by_overrides.record["nats_per_character"] == best["validation_nats"]


def test_the_table_fits_80_columns(charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that the table of the default search is broken over lines."""
    monkeypatch.setattr("charlm.comparison.equal.seconds_per_step", lambda candidate, device, seconds: seconds / 3)
    sizes = [word for text in ("train.lr=0.00123..0.01", "model.dropout=0..0.6", "model.hidden=4,6", "model.layers=1,2",
                               "train.batch=2,3", "train.seq_length=10,12") for word in ("--search", text)]  # fmt: skip
    command = ("tune", "recipe.yaml", "--time", "1h", "--candidates", "2", "--rungs", "1", *sizes)
    done = charlm(*command)
    assert done.code == 0, done.err
    lines = [line.split() for line in done.text.splitlines() if line.strip()]
    assert lines[0] == ["#", "rung", "steps", "nats", "change", "lr", "dropout", "hidden", "layers", "batch", "seq_length"]
    assert [len(line) for line in lines[2:5]] == [11, 11, 11] and {line[0] for line in lines[2:5]} == {"0", "1", "2"}
    monkeypatch.setattr("charlm.cli.tune.columns", lambda: 80)
    narrow = charlm(*command).text
    assert max(len(line.rstrip()) for line in narrow[: narrow.index("best: candidate")].splitlines()) <= 80
    assert re.search("^ ?# +rung +steps +nats +change *$", narrow, re.MULTILINE)
    assert re.search("^ ?# +lr +dropout +hidden +layers +batch +seq_length *$", narrow, re.MULTILINE)
    assert "\x1b" not in done.text and "measure it on the test part" in done.text


def test_the_examples_of_the_guide_run(charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that somebody who copies a command from the guide gets an error."""
    monkeypatch.setattr("charlm.comparison.equal.seconds_per_step", lambda candidate, device, seconds: seconds / 2)
    (desk / "mine.yaml").write_text((desk / "recipe.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (desk / "mine.txt").write_text((desk / "text.txt").read_text(encoding="utf-8"), encoding="utf-8")
    lines = re.findall(r"^\$ charlm (tune .*?)(?: +#.*)?$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 3
    for number, line in enumerate(lines):
        done = charlm(*shlex.split(line), "--candidates", "1", "--rungs", "1", "--jobs", "1", "--out", f"runs-{number}")
        assert done.code == 0, done.err
    assert (desk / "best.yaml").exists()


def test_an_interrupted_search_says_how_to_resume(
    charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that Ctrl-C costs the search, or that the printed command does another one."""
    evaluate = Trainer._evaluate

    def interrupted(self: Trainer, regular: bool) -> Any:
        signal.raise_signal(signal.SIGINT)
        return evaluate(self, regular)

    command = ("tune", "recipe.yaml", "--search", "train.lr=0.001..0.03", "--candidates", "2", "--rungs", "1", "-o", "b.yaml")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_evaluate", interrupted)
        stopped = charlm(*command)
    assert stopped.code == 130 and "Traceback" not in stopped.err and not stopped.text
    (line,) = (line for line in stopped.err.splitlines() if line.startswith("resume with: charlm "))
    assert tuple(shlex.split(line.removeprefix("resume with: charlm "))[:2]) == command[:2]
    done = charlm(*shlex.split(line.removeprefix("resume with: charlm ")))
    assert done.code == 0 and (desk / "b.yaml").exists(), done.err
    assert done.text == charlm(*command, "--out", "never-interrupted").text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "train.lr=0.1..0.01"], "--search train.lr=0.1..0.01: expected LOW below HIGH"),
        (["--search", "model.cell=gru..lstm"], "--search model.cell=gru..lstm: model.cell is no number; list its values"),
        (["--search", "train.lr=-1..1"], "train.lr"),
        (["--search", "model.cell=gru,lsmt"], "model.cell"),
        (["--steps", "5", "--time", "5s"], "--steps 5: steps and time both give the length; keep one"),
        (["--time", "soon"], "--time soon"),
        (["-o", "text.txt"], "--output text.txt exists, and was not written by charlm tune"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_slips_are_refused_in_a_sentence(charlm: Callable[..., Any], desk: Path, arguments: list[str], words: str) -> None:
    """Failing would mean that a slip costs a training, a file or a traceback."""
    before = (desk / "text.txt").read_bytes()
    done = charlm("tune", "recipe.yaml", *arguments)
    assert done.code == 2 and not done.text and words in " ".join(done.err.split()), done.err
    assert "Traceback" not in done.err and not (desk / "checkpoints").exists()
    assert (desk / "text.txt").read_bytes() == before
