"""Defaults for recipes without a length, from the length of their text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from charlm.checkpoint import load
from charlm.config import LoadedRecipe, Recipe, apply_overrides, validate_recipe
from charlm.evaluation.perplexity import carried
from charlm.training import defaults
from charlm.training.plan import Limits
from charlm.training.run import observed
from charlm.training.start import Options, start


def _recipe(**sections: Any) -> Recipe:
    return validate_recipe({"corpus": "./mine.txt"} | sections, "a test")


@pytest.mark.parametrize("budget", [1, 1e3, 1e5, defaults.CHARACTERS])
@pytest.mark.parametrize("characters", [1, 20, 1_000, 20_000, 99_999, 100_000, 1_000_000, 3_000_000, 100_000_000, 10**11])
def test_every_length_and_time_gives_a_recipe(characters: int, budget: float) -> None:
    """If this fails, some text cannot be trained on without a recipe, or its checkpoint cannot be read."""
    planned = defaults.with_defaults(_recipe(), defaults.rule(characters, budget))
    checked = validate_recipe(planned.model_dump(mode="json"), "the plan")
    assert checked.train.epochs is not None
    assert checked.train.epochs * characters <= budget * 1.01 or budget < 1e-6 * characters * 1.01
    assert checked.train.epochs <= defaults.PASSES


def test_more_epochs_get_more_dropout() -> None:
    """If this fails, a short text is overfitted, or a long one is regularised without need."""
    dropouts = [defaults.rule(characters)["model"]["dropout"] for characters in (10**8, 10**7, 10**6, 10**5, 10**4)]
    assert dropouts == sorted(dropouts)
    assert dropouts[:2] == [0, 0] and dropouts[2] == pytest.approx(0.43, abs=0.01) and dropouts[-1] > 0.6


def test_values_of_the_recipe_stay() -> None:
    """If this fails, a default replaces a value that a user set."""
    recipe = _recipe(model={"hidden": 48, "input": "one-hot"}, train={"lr": 0.01, "average": 0})
    planned = defaults.with_defaults(recipe, defaults.rule(10**6))
    assert (planned.model.hidden, planned.train.lr, planned.train.average, planned.model.input_dropout) == (48, 0.01, 0, 0)
    assert planned.model.dropout > 0.3 and planned.train.weight_decay == 0.2
    sgd = defaults.with_defaults(_recipe(train={"optimizer": "sgd", "lr": 1}), defaults.rule(10**6))
    assert sgd.train.weight_decay == 0
    adam = defaults.with_defaults(_recipe(train={"optimizer": "adam"}), defaults.rule(10**6))
    assert (adam.train.weight_decay, adam.train.lr) == (0, 0.005)


@pytest.mark.parametrize(
    ("train", "needs_plan"),
    [
        ({}, True),
        ({"time": "5m"}, True),
        ({"time": "5m", "schedule": "constant"}, False),
        ({"schedule": "constant"}, True),
        ({"epochs": 3}, False),
        ({"total_steps": 30}, False),
    ],
)
def test_recipes_that_set_a_length_need_no_plan(train: dict[str, Any], needs_plan: bool) -> None:
    """If this fails, a full recipe is changed behind its author's back, or an empty one has no end."""
    assert defaults.needs_plan(_recipe(train=train)) is needs_plan


def _started(
    corpus: Path,
    out: Path,
    *overrides: str,
    max_steps: int | None,
    resume: Any = "never",
    max_seconds: float | None = None,
) -> Any:
    """A recipe that says only its corpus, ready to run."""
    recipe = validate_recipe(apply_overrides({"corpus": str(corpus)}, ("train.threads=1", *overrides)), "a test")
    limits = Limits(time.monotonic(), max_steps, max_seconds)
    return start(LoadedRecipe("mine", recipe, corpus.parent), Options(out, limits, resume=resume, device="cpu"))


def test_a_run_reports_stores_and_resumes_with_its_defaults(tmp_path: Path, english_file: Path) -> None:
    """If this fails, defaults are not reported, or a resumed run is planned again and refused."""
    first = _started(english_file, tmp_path, max_steps=3)
    (said,) = [notice for notice in first.notices if "chosen" in notice]
    assert "model.hidden=256" in said and "train.epochs=40" in said
    list(observed(first.trainer))
    first.trainer.folder.close()
    stored = load(tmp_path / "last.safetensors").recipe
    assert (stored.model.hidden, stored.train.epochs, stored.train.average) == (256, 40, 0.998)
    again = _started(english_file, tmp_path, max_steps=4, resume="must")
    assert not [notice for notice in again.notices if "changed" in notice or "chosen" in notice]
    list(observed(again.trainer))
    again.trainer.folder.close()
    assert again.trainer.resumed_from == 3
    assert again.trainer.plan == first.trainer.plan


def test_a_time_is_a_budget(tmp_path: Path, english_file: Path) -> None:
    """If this fails, `time` alone does not shape the schedule, or a resumed run forgets what it was planned for."""
    overrides = ["train.time=20s", "model.hidden=8", "train.batch=2", "train.seq_length=4"]
    passes = []
    for resume in ("never", "must"):
        begun = _started(english_file, tmp_path, *overrides, max_steps=1, resume=resume)
        passes.append(begun.trainer.recipe.train.epochs)
        list(observed(begun.trainer))
        begun.trainer.folder.close()
    assert passes[0] == passes[1] > 0
    line = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["learning_rate"] == pytest.approx(0.005)


SMALL = ("model.hidden=8", "train.batch=2", "train.seq_length=4")
"""So slow for each character that a few seconds are less than 40 passes."""


def test_a_time_limit_plans_the_length(tmp_path: Path, english_file: Path) -> None:
    """If this fails, `--max-time` cuts the cosine of a long plan in its middle, or a resumed run is planned again."""
    first = _ended(_started(english_file, tmp_path, *SMALL, max_steps=1, max_seconds=4.0))
    epochs = first.trainer.recipe.train.epochs
    assert 0 < epochs < 40
    assert load(tmp_path / "last.safetensors").recipe.train.time is None, "a limit of the command is not the recipe's"
    for limit in (None, 60.0):
        again = _ended(_started(english_file, tmp_path, *SMALL, max_steps=2, max_seconds=limit, resume="must"))
        assert again.trainer.recipe.train.epochs == epochs
        assert not [notice for notice in again.notices if "planned length" in notice]


def test_a_time_limit_leaves_a_given_length_alone(tmp_path: Path, english_file: Path) -> None:
    """If this fails, a limit changes the schedule of a recipe that gives its length."""
    begun = _ended(_started(english_file, tmp_path, "train.total_steps=5000", max_steps=1, max_seconds=4.0))
    assert begun.trainer.plan.total_steps == 5000


def test_another_time_replans_a_resumed_run_once(tmp_path: Path, english_file: Path) -> None:
    """If this fails, `--set train.time=…` cannot lengthen a planned run, or lengthens it at each resume."""
    first = _ended(_started(english_file, tmp_path, *SMALL, max_steps=1, max_seconds=3.0))
    longer = _ended(_started(english_file, tmp_path, *SMALL, "train.time=8s", max_steps=2, resume="must"))
    assert longer.trainer.plan.total_steps > first.trainer.plan.total_steps
    assert [notice for notice in longer.notices if f"now {longer.trainer.plan.total_steps:,} steps" in notice]
    again = _ended(_started(english_file, tmp_path, *SMALL, "train.time=8s", max_steps=3, resume="must"))
    assert again.trainer.plan.total_steps == longer.trainer.plan.total_steps
    assert not [notice for notice in again.notices if "planned length" in notice]


def test_another_length_keeps_what_was_chosen(tmp_path: Path, english_file: Path) -> None:
    """If this fails, a planned run that is lengthened continues with another learning rate and dropout than before."""
    first = _ended(_started(english_file, tmp_path, "model.hidden=8", max_steps=1))
    again = _started(english_file, tmp_path, "model.hidden=8", "train.total_steps=5000", max_steps=2, resume="must")
    again.trainer.folder.close()
    was, now = first.trainer.recipe, again.trainer.recipe
    assert (now.model, now.evaluate) == (was.model, was.evaluate)
    assert now.train == was.train.model_copy(update={"epochs": None, "total_steps": 5000})


def test_a_short_time_is_mostly_for_training(tmp_path: Path) -> None:
    """If this fails, a run of a minute has one step, or its checkpoint cannot be read."""
    text = tmp_path / "long.txt"
    text.write_text("so it goes, and so it goes on. " * 20_000, encoding="utf-8")
    begun = _started(text, tmp_path / "r", "train.time=2s", "model.hidden=8", max_steps=1)
    assert begun.trainer.plan.total_steps > 20
    _ended(begun)
    assert load(tmp_path / "r" / "last.safetensors").recipe.train.epochs > 0


def _ended(begun: Any) -> Any:
    list(observed(begun.trainer))
    begun.trainer.folder.close()
    return begun


def test_no_length_is_a_length_of_null(tmp_path: Path, english_file: Path) -> None:
    """If this fails, `epochs: null` plans no end, and the cosine cannot be drawn."""
    begun = _ended(_started(english_file, tmp_path, "train.epochs=null", "model.hidden=8", max_steps=1))
    assert begun.trainer.recipe.train.epochs == 40


@pytest.mark.parametrize("length", ["train.total_steps=5", "train.epochs=3"])
def test_a_run_that_had_a_length_keeps_it(tmp_path: Path, english_file: Path, length: str) -> None:
    """If this fails, resuming without the old `--set` gives another plan, or none."""
    first = _ended(_started(english_file, tmp_path, length, "model.hidden=8", "model.layers=2", max_steps=1))
    again = _ended(_started(english_file, tmp_path, max_steps=2, resume="must"))
    assert again.trainer.plan.total_steps == first.trainer.plan.total_steps
    assert again.trainer.recipe.model == first.trainer.recipe.model


def test_a_planned_run_can_be_given_another_length(tmp_path: Path, english_file: Path) -> None:
    """If this fails, more epochs are refused for widths and batches that the user never gave."""
    first = _ended(_started(english_file, tmp_path, "train.batch=8", max_steps=1))
    again = _ended(_started(english_file, tmp_path, "train.epochs=60", max_steps=2, resume="must"))
    assert again.trainer.resumed_from == 1 and again.trainer.recipe.train.epochs == 60
    assert again.trainer.recipe.model.hidden == first.trainer.recipe.model.hidden == 256
    assert again.trainer.batches.shape == first.trainer.batches.shape


def test_fine_tuning_takes_the_architecture_from_the_checkpoint(tmp_path: Path, english_file: Path) -> None:
    """If this fails, the guide's command for fine-tuning is refused, since a short text gets another width."""
    _ended(_started(english_file, tmp_path / "a", "model.hidden=24", "model.layers=2", "model.cell=gru", max_steps=1))
    recipe = validate_recipe({"corpus": str(english_file)}, "a test")
    options = Options(tmp_path / "b", Limits(time.monotonic(), 1), init=str(tmp_path / "a"), device="cpu")
    section = _ended(start(LoadedRecipe("mine", recipe, tmp_path), options)).trainer.recipe.model
    assert (section.cell, section.hidden, section.layers) == ("gru", 24, 2)


def test_a_lost_best_is_measured_anew(tmp_path: Path, english_file: Path) -> None:
    """If this fails, a run's result belongs to weights that are in none of its files."""
    overrides = ["model.hidden=8", "train.total_steps=6", "train.average=0.9"]
    _ended(_started(english_file, tmp_path, *overrides, max_steps=None))
    (tmp_path / "best.safetensors").unlink()
    begun = _started(english_file, tmp_path, *overrides, max_steps=None, resume="must")
    record = list(observed(begun.trainer))[-1].record
    begun.trainer.folder.close()
    best = load(tmp_path / "best.safetensors").model(begun.trainer.resolved.device)
    exact = carried(best, begun.trainer.dataset.text("validation"))
    assert record["nats_per_character"] == pytest.approx(exact.nats_per_character, rel=1e-6)
