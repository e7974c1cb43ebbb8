"""The recipe of a text that came without one: what a recipe leaves open follows from the length of its text.

It applies to recipes that give no planned length (neither `epochs` nor `total_steps`), such as one that says only
`corpus: mine.txt`; who gives a length has a plan. What such a recipe does say stays as it is. With N characters to train on:

    read           C = 10 million characters; with `time` alone, what this machine reads in it; at most 40 passes
    passes         E = C / N
    hidden         512; 256 for a text below 100,000 characters
    init           orthogonal recurrent matrices
    dropout        0.13·log₂E, from 0 to 0.7: the more often a text is read, the easier it is learned by heart; √(10⁶/N) of that
                   above a million characters, of which there is more to learn
    input_dropout  a third of it
    batch, steps   32 × 32 below 3 million characters, since many small updates are what a short text needs; else 32 × 64
    lr             0.005 (0.001 for a plain RNN), cooled to 10 %
    weight decay   0.2; a moving average of some 500 updates is validated beside the weights
    evaluations    ten, on C/100 characters, from 2,000 to 200,000

docs/results.md has the measurements behind it.
"""

from __future__ import annotations

import math
import time
from typing import Any

from charlm.config import FIXED, ModelSection, Recipe, fields, value_at
from charlm.data.dataset import Dataset
from charlm.data.streams import Batches
from charlm.evaluation import perplexity
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.optimizers import OPTIMIZERS
from charlm.schedules import SCHEDULES
from charlm.threads import Tuner
from charlm.training.plan import EXACT_CHARACTERS, Resolved, read_by_an_evaluation
from charlm.training.update import Updater
from charlm.training.weight_average import WeightAverage

CHARACTERS = 10_000_000
PASSES = 40

_LENGTH = ("epochs", "total_steps")
_SHORT, _MUCH, _LONG = 100_000, 1_000_000, 3_000_000
_EVALUATIONS = 10
_WARM_UP, _TIMED_SECONDS = 3, 2.0

Values = dict[str, dict[str, Any]]
"""Section → key → value."""


def needs_plan(recipe: Recipe) -> bool:
    """Whether a recipe leaves its length to charlm. A schedule that needs no length runs until the time is over."""
    train = recipe.train
    endless = train.time is not None and not SCHEDULES[train.schedule].needs_length
    return train.epochs is None and train.total_steps is None and not endless


def rule(characters: int, budget: float = CHARACTERS, cell: str = "lstm") -> Values:
    """What follows from a text's length.

    Args:
        characters: N, of the training part.
        budget: C, characters to read.
        cell: the recurrence.
    """
    passes = max(1e-6, min(budget / characters, PASSES))
    read = passes * characters
    dropout = round(min(0.7, max(0.0, 0.13 * math.log2(passes))) * min(1.0, math.sqrt(_MUCH / characters)), 2)
    return {
        "model": {
            "hidden": 256 if characters < _SHORT else 512, "init": "orthogonal", "dropout": dropout,
            "input_dropout": round(dropout / 3, 2),
        },
        "train": {
            "batch": 32, "seq_length": 32 if characters < _LONG else 64,
            "lr": 0.001 if cell == "rnn" else 0.005, "lr_final": 0.1, "weight_decay": 0.2, "average": 0.998,
            "epochs": float(f"{passes:.4g}"),
        },
        "evaluate": {"characters": int(min(200_000, max(2_000, read / 100)))},
    }  # fmt: skip


_CHOSEN = [f"{section}.{key}" for section, keys in rule(CHARACTERS).items() for key in keys]
"""What the rule has a say in."""


def with_defaults(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with these values wherever it says nothing itself."""
    update: dict[str, Any] = {}
    for name, section in values.items():
        mine = getattr(recipe, name)
        left_out = _said(recipe, name) | _not_applicable(recipe)
        update[name] = mine.model_copy(update={key: value for key, value in section.items() if key not in left_out})
    return recipe.model_copy(update=update)


def _said(recipe: Recipe, section: str) -> set[str]:
    """The keys of a section that a recipe gives. A length of ``null`` is none."""
    mine = getattr(recipe, section)
    return {key for key in mine.model_fields_set if key not in _LENGTH or getattr(mine, key) is not None}


def chosen_overrides(before: Recipe, after: Recipe) -> list[str]:
    """What :func:`with_defaults` has filled in, as overrides that a user could write: ``model.hidden=512`` and so on."""
    parts = [(key, *key.split(".")) for key in _CHOSEN]
    left_out = _not_applicable(before)
    return [f"{key}={value_at(after, key)}" for key, section, name in parts if name not in _said(before, section) | left_out]


def _not_applicable(recipe: Recipe) -> set[str]:
    """Keys that would make no sense beside what the recipe says."""
    left_out = set()
    if recipe.model.input == "one-hot":
        left_out.add("input_dropout")
    if recipe.model.tied and recipe.model.embedding is not None:
        left_out.add("hidden")  # the two must be equal
    optimizer = OPTIMIZERS[recipe.train.optimizer]
    if not optimizer.decoupled:
        left_out.add("weight_decay")  # it would be no decay, but a part of the gradient
    if not optimizer.takes_adams_lr:
        left_out.add("lr")
    return left_out


def restore_choices(recipe: Recipe, earlier: Recipe) -> Recipe:
    """The recipe of a resumed run: what it does not say stays as the run had it.

    That holds for what cannot change and for all that was chosen for the text, also if the recipe now gives another length; a
    recipe without a length keeps the planned one, whatever the machine's speed is today.
    """
    keys = {key for key, info in fields() if info.json_schema_extra == FIXED and "." in key} | {*_CHOSEN}
    if needs_plan(recipe):
        keys |= {f"train.{key}" for key in _LENGTH}
    else:
        keys -= {f"train.{key}" for key in _LENGTH}
    values: Values = {}
    for key in keys:
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value_at(earlier, key)
    return with_defaults(recipe, values)


def as_planned(recipe: Recipe, earlier: Recipe, characters: int) -> Recipe:
    """What training gives a recipe without a length, for comparison with what an earlier run of it had been given.

    Args:
        characters: N, of the training part.
    """
    values = rule(characters, cell=recipe.model.cell)
    if recipe.train.time is not None:  # then the machine's speed had a say
        for key in ("model.dropout", "model.input_dropout", "train.epochs", "evaluate.characters"):
            section, _, name = key.partition(".")
            values[section][name] = value_at(earlier, key)
    return with_defaults(recipe, values)


def inherit_architecture(recipe: Recipe, other: ModelSection) -> Recipe:
    """The recipe of a network that begins with another's weights: what it does not say of its architecture, the other says."""
    architecture = [key for key, info in ModelSection.model_fields.items() if info.json_schema_extra == FIXED]
    return with_defaults(recipe, {"model": {key: getattr(other, key) for key in architecture}})


def characters_in(seconds: float, recipe: Recipe, dataset: Dataset, resolved: Resolved, started_at: float) -> float:
    """How many characters this machine reads in a time, from a few updates of the network that the rule would choose.

    What else a run does is taken off: its start, evaluations, and a part for samples, saving and slower moments.

    Args:
        seconds: of the whole run.
        started_at: of the run, by :func:`time.monotonic`.
    """
    characters = len(dataset.text("train"))
    planned = with_defaults(recipe, rule(max(1, characters), cell=recipe.model.cell))
    model = LanguageModel(planned.model, len(dataset.vocabulary), resolved.engine)
    model.initialise(0)
    model.to(resolved.device)
    batches = Batches(dataset.text("train"), planned.train, 0.0)
    per_character = _seconds_per_character(planned, model, batches, resolved, min(_TIMED_SECONDS, seconds / 20))
    start, stop = dataset.splits["validation"]
    closing = 0.0
    if stop - start > 1:
        exact = perplexity.seconds_per_character(model, dataset.text("validation"))
        closing = min(seconds / 5, 1 + 1.4 * exact * min(stop - start, EXACT_CHARACTERS))
    left = 0.85 * (seconds - (time.monotonic() - started_at) - closing) / per_character
    planned = with_defaults(recipe, rule(max(1, characters), max(1.0, left), recipe.model.cell))
    read = (_EVALUATIONS + 1) * read_by_an_evaluation(planned, max(1, stop - start))
    # An evaluation has no backward pass, which is two thirds of an update. Half the time at least is for learning.
    return max(1.0, left / 2, left - read / 3)


def _seconds_per_character(recipe: Recipe, model: LanguageModel, batches: Batches, resolved: Resolved, seconds: float) -> float:
    """What an update takes, by some seconds of them on the text itself, for each of its characters."""
    update, average = Updater(model, recipe.train, resolved.precision), WeightAverage(model, 0.5)
    tuner = Tuner("training", model.is_thread_invariant)
    state, done, read, began = model.zero_state(batches.shape.batch), 0, 0, time.perf_counter()
    while done < 2 * _WARM_UP or time.perf_counter() - began < seconds:
        if done == _WARM_UP:
            read, began = 0, time.perf_counter()
        batch = batches.batch(0, done % batches.epoch_length(0))
        inputs, targets = batch.inputs.to(resolved.device), batch.targets.to(resolved.device)
        with tuner.piece(batch.scored):
            state = update(inputs, targets, batch.scored, state, 1e-4, Dropout(recipe.model, 0, done)).state
        done, read = done + 1, read + batch.scored
        average.update(done)
    return (time.perf_counter() - began) / read
