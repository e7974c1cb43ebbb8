"""The search over the settings of a recipe: what it draws, what it keeps, and that it repeats nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from charlm.comparison.jobs import Job, Jobs, SilentReporter
from charlm.config import load_recipe
from charlm.errors import RecipeError, UsageError
from charlm.training.trainer import Trainer
from charlm.tuning import Tuned, tune
from charlm.tuning.space import Range, Values, default_space, dimension, draw

RECIPE = """\
corpus: ./text.txt
model: {hidden: 8, dropout: 0}
train: {batch: 4, seq_length: 16, total_steps: 16, threads: 1, precision: fp32, lr: 0.01}
sample: {length: 12}
"""


@pytest.fixture
def recipe(tmp_path: Path, english: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a tiny recipe, in the current folder."""
    (tmp_path / "text.txt").write_text(english(3000), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "tiny.yaml"


def results(found: Tuned) -> list[Any]:
    """The table of a search."""
    return [(trial.number, trial.settings, trial.rung, trial.steps, trial.validation_nats) for trial in found.trials]


# -- the space --


def test_ranges_and_values_are_told_apart() -> None:
    """Failing would mean that a range is read as text, or that a probability is drawn near 0 only."""
    assert dimension("train.lr=0.001..0.01") == Range("train.lr", 0.001, 0.01, is_integer=False, is_log=True)
    assert dimension("train.lr = 1e-3 .. 1e-2") == dimension("train.lr=0.001..0.01")
    assert dimension("model.hidden=64..512") == Range("model.hidden", 64, 512, is_integer=True, is_log=True)
    assert dimension("model.dropout=0.1..0.5") == Range("model.dropout", 0.1, 0.5, is_integer=False, is_log=False)
    assert dimension("train.weight_decay=0..1") == Range("train.weight_decay", 0, 1, is_integer=False, is_log=False)
    assert dimension("model.cell=lstm,gru") == Values("model.cell", ("lstm", "gru"))
    assert dimension("train.clip=null,1") == Values("train.clip", (None, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.lr", "expected KEY=LOW..HIGH or KEY=VALUE,VALUE"),
        ("train.lr=", "expected KEY=LOW..HIGH or KEY=VALUE,VALUE"),
        ("train.lr=0.01..0.001", "expected LOW below HIGH"),
        ("train.lr=0..inf", "expected LOW below HIGH"),
        ("train.lr=low..high", "expected numbers"),
        ("model.hidden=1.5..3", "expected whole numbers"),
        ("model.cell=gru..lstm", "model.cell is no number; list its values"),
        ("model.hiden=4..8", "model.hidden"),
        ("model.hiden=4,8", "model.hidden"),
    ],
)
def test_slips_are_explained(text: str, words: str) -> None:
    """Failing would mean a traceback, or a search over a key that does nothing."""
    with pytest.raises(RecipeError, match=words) as caught:
        dimension(text)
    assert str(caught.value).startswith("search ")


def test_settings_are_drawn_within_their_ranges_and_never_twice() -> None:
    """Failing would mean that a candidate is trained twice, or that a search cannot be repeated."""
    space = [dimension(text) for text in ("train.lr=0.001..0.01", "model.hidden=4..7", "model.cell=rnn,gru")]
    found = draw(space, 50, seed=3)
    assert len(found) == 50 and all(found.count(settings) == 1 for settings in found)
    assert all(0.001 <= settings["train.lr"] <= 0.01 for settings in found)  # type: ignore[operator]
    assert {settings["model.hidden"] for settings in found} == {4, 5, 6, 7}
    assert {settings["model.cell"] for settings in found} == {"rnn", "gru"}
    assert draw(space, 20, seed=3) == found[:20] != draw(space, 20, seed=4)
    logs = sum(settings["train.lr"] < 0.00316 for settings in found)  # type: ignore[operator]
    assert 15 < logs < 35, "half of a range that is uniform in the logarithm"
    assert len(draw([dimension("model.hidden=4..7")], 50, seed=1)) == 4


def test_a_small_space_is_searched_completely() -> None:
    """Failing would mean that a value that the user lists is left to chance."""
    space = [dimension("model.hidden=4,8"), dimension("model.cell=rnn,gru")]
    pairs = [tuple(settings.values()) for settings in draw(space, 4, seed=1)]
    assert pairs == [(4, "rnn"), (4, "gru"), (8, "rnn"), (8, "gru")]
    assert len(draw(space, 3, seed=1)) == 3


def test_sizes_are_searched_only_at_equal_time(recipe: str) -> None:
    """Failing would mean that the largest model wins because it may compute longest."""
    loaded = load_recipe(recipe)
    assert default_space(loaded.recipe, is_timed=False) == ["train.lr=0.002..0.05", "model.dropout=0..0.6"]
    keys = {dimension(text).key for text in default_space(loaded.recipe, is_timed=True)}
    assert default_space(load_recipe("./text.txt").recipe, is_timed=True)[0] == "train.lr=0.001..0.025"
    assert default_space(load_recipe("./text.txt", ["model.cell=rnn"]).recipe, is_timed=True)[0] == "train.lr=0.0002..0.005"
    assert keys >= {"train.lr", "model.hidden", "model.layers", "train.batch", "train.seq_length"}


# -- halving --


def test_the_better_half_is_trained_twice_as_long(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a good candidate is dropped, or that the recipe as it is leaves the table."""
    asked: list[tuple[str, int | None]] = []

    def train(self: Jobs, planned: Iterable[Job], total: int, first: int = 1) -> dict[Job, dict[str, Any]]:
        records = {}
        for job in planned:
            values = job.candidate.load().recipe.train  # the lower the rate, the better
            asked.append((job.name, values.total_steps))
            records[job] = {"nats_per_character": values.lr, "step": values.total_steps}
        assert (total, first) in {(11, 1), (11, 7), (11, 10)}
        return records

    monkeypatch.setattr(Jobs, "train", train)
    found = tune(recipe, {"train.lr": "0.9,0.1,0.5,0.3,0.7"}, ["train.lr=1"], rungs=3)
    rungs = [sorted(name[10:12] for name, steps in asked if steps == length) for length in (4, 8, 16)]
    assert rungs == [["00", "01", "02", "03", "04", "05"], ["00", "02", "04"], ["00", "02"]]
    assert found.best.settings == {"train.lr": 0.1} and found.best.change == pytest.approx(-0.9)
    assert [trial.number for trial in found.trials] == [2, 0, 4, 3, 5, 1]


def test_a_recipe_with_epochs_is_halved_in_epochs(recipe: str) -> None:
    """Failing would mean that a recipe which counts epochs cannot be searched, or that its last rung is shorter."""
    path = Path(recipe)
    path.write_text(RECIPE.replace("total_steps: 16", "epochs: 1"), encoding="utf-8")
    found = tune(recipe, ["train.lr=0.01,0.02"], rungs=2)
    epoch = found.best.steps
    assert epoch is not None and epoch > 20
    assert [trial.steps for trial in found.trials if trial.rung == 1] == [round(epoch / 2)]


def test_time_becomes_steps_by_the_speed_of_each_candidate(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a slow candidate gets more time, or that a repeated search plans other lengths."""
    monkeypatch.setattr(
        "charlm.comparison.equal.seconds_per_step",
        lambda candidate, device, seconds: seconds / (20 if "model.hidden=4" in candidate.overrides else 10),
    )
    found = tune(recipe, ["model.hidden=4,6"], time="30s", rungs=2, out="timed")
    assert {trial.number: trial.steps for trial in found.trials if trial.rung == 2 and trial.number == 0} == {0: 10}
    first = {trial.number: trial.steps for trial in found.trials}
    assert first[1] == (20 if found.trials[0].number == 1 or found.trials[1].number == 1 else 10)
    monkeypatch.setattr("charlm.comparison.equal.seconds_per_step", None)
    assert results(tune(recipe, ["model.hidden=4,6"], time="30s", rungs=2, out="timed")) == results(found)


def test_an_interrupted_search_continues_and_ends_with_the_same_table(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that Ctrl-C costs the work of hours, or that the result depends on it."""

    class Interrupts(SilentReporter):
        def run_begins(self, name: str, number: int, total: int, is_finished: bool) -> None:
            if number == 4:
                raise KeyboardInterrupt

    settings: dict[str, Any] = {"search": {"train.lr": "0.001..0.1"}, "candidates": 4, "rungs": 2}
    whole = tune(recipe, **settings, out="whole")
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, **settings, out="interrupted", reporter=Interrupts())
    assert "candidates" not in json.loads(Path("interrupted/tune.json").read_text(encoding="utf-8"))
    assert results(tune(recipe, **settings, out="interrupted")) == results(whole)

    def never(self: Trainer) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(Trainer, "_train_step", never)
    again = tune(recipe, **settings, out="interrupted")
    stored = json.loads(Path("interrupted/tune.json").read_text(encoding="utf-8"))
    assert stored["candidates"] == again.as_json()["candidates"] and len(stored["candidates"]) == 5
    with pytest.raises(UsageError, match=r"(?s)another search:\n  candidates: was 4, is now 5\n.*Repeat its command"):
        tune(recipe, **(settings | {"candidates": 5}), out="interrupted")
    Path("interrupted/tune.json").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not written by charlm"):
        tune(recipe, **settings, out="interrupted")


def test_a_search_side_by_side_has_the_same_table(recipe: str) -> None:
    """Failing would mean that `jobs` changes which candidate wins."""
    settings: dict[str, Any] = {"search": ["train.lr=0.002,0.05"], "rungs": 1}
    assert results(tune(recipe, **settings, out="two", jobs=2)) == results(tune(recipe, **settings, out="one"))


def test_a_candidate_that_diverges_is_the_worst(recipe: str) -> None:
    """Failing would mean that one bad learning rate ends a search, or wins it."""
    relu = ["train.clip=null", "train.optimizer=sgd", "model.cell=rnn", "model.nonlinearity=relu"]
    found = tune(recipe, ["train.lr=1e6,0.02"], relu, rungs=2)
    assert [trial.number for trial in found.trials if trial.rung == 1] == [1]
    assert found.trials[-1].validation_nats is None and found.trials[-1].steps is None
    assert len(found.notices) == 1 and found.notices[0].startswith("candidate-01, rung 1 is left out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"search": ["train.lr=0.01,-1"]}, r"search .*train\.lr"),
        ({"search": ["train.lr=0.01,0.02", "train.lr=1..2"]}, "searched twice"),
        ({"search": ["train.total_steps=5,10"]}, "steps and time give the length"),
        ({"steps": 5, "time": "5s"}, "keep one"),
        ({"time": "soon"}, "^time soon"),
        ({"candidates": 0}, "^candidates 0: expected 1 or more"),
        ({"overrides": ["data.split=[1,0,0]"]}, "no validation part"),
    ],
)
def test_impossible_searches_are_refused_before_anything_is_trained(
    recipe: str, arguments: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a slip is found after hours, or not at all."""
    monkeypatch.setattr(Jobs, "train", None)
    with pytest.raises(UsageError, match=words):
        tune(recipe, **arguments)
    assert not Path("checkpoints").exists()
