"""The recipe of a text that came without one: what a recipe leaves open follows from the length of its text.

It applies to recipes that give no planned length (neither `epochs` nor `updates`), such as one that says only
`corpus: mine.txt`; who gives a length has a plan. What such a recipe does say stays as it is. With N characters to train on:

    read           C = 10 million characters, at most 40 passes; with `time` alone, what this machine reads in nine tenths of it
    passes         E = C / N
    hidden         512; 256 for a text below 100,000 characters
    init           orthogonal recurrent matrices
    dropout        0.13·log₂E, from 0 to 0.7: the more often a text is read, the easier it is learned by heart
    input_dropout  a third of it
    batch, steps   32 × 32 below 3 million characters, since many small updates are what a short text needs; else 32 × 64
    lr             0.005 (0.001 for a plain RNN), cooled to 10 %
    weight decay   0.2; a moving average of some 500 updates is validated beside the weights
    evaluations    ten, on C/100 characters, from 20,000 to 200,000

docs/results.md has the measurements behind it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from charlm.config import Recipe
from charlm.model.language_model import LanguageModel
from charlm.training.plan import Resolved
from charlm.training.update import Updater

CHARACTERS = 10_000_000
PASSES = 40

_SHORT, _LONG = 100_000, 3_000_000
_WARM_UP, _TIMED_SECONDS = 3, 2.0

Values = dict[str, dict[str, Any]]
"""Section → key → value."""


def is_open(recipe: Recipe) -> bool:
    """Whether a recipe leaves its length to us. A schedule without an end needs none: it runs until the time is over."""
    train = recipe.train
    endless = train.time is not None and train.schedule != "cosine"
    return train.epochs is None and train.updates is None and not endless


def rule(characters: int, budget: float = CHARACTERS, cell: str = "lstm") -> Values:
    """What follows from a text's length.

    Args:
        characters: N, of the training part.
        budget: C, characters to read.
        cell: the recurrence.
    """
    passes = max(1e-6, min(budget / characters, PASSES))
    read = passes * characters
    dropout = round(min(0.7, max(0.0, 0.13 * math.log2(passes))), 2)
    return {
        "model": {
            "hidden": 256 if characters < _SHORT else 512, "init": "orthogonal", "dropout": dropout,
            "input_dropout": round(dropout / 3, 2),
        },
        "train": {
            "batch": 32, "steps": 32 if characters < _LONG else 64,
            "lr": 0.001 if cell == "rnn" else 0.005, "lr_final": 0.1, "weight_decay": 0.2, "average": 0.998,
            "epochs": round(passes, 4),
        },
        "evaluate": {"characters": int(min(200_000, max(20_000, read / 100)))},
    }  # fmt: skip


def fill(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with these values wherever it says nothing itself."""
    update: dict[str, Any] = {}
    for name, section in values.items():
        mine = getattr(recipe, name)
        left_out = mine.model_fields_set | _not_applicable(recipe)
        update[name] = mine.model_copy(update={key: value for key, value in section.items() if key not in left_out})
    return recipe.model_copy(update=update)


def chosen(before: Recipe, after: Recipe) -> list[str]:
    """What :func:`fill` has filled in, as overrides that a user could write: ``model.hidden=512`` and so on."""
    return [
        f"{section}.{key}={getattr(getattr(after, section), key)}"
        for section, keys in rule(CHARACTERS).items()
        for key in keys
        if key not in getattr(before, section).model_fields_set and key not in _not_applicable(before)
    ]


def _not_applicable(recipe: Recipe) -> set[str]:
    """Keys that would make no sense beside what the recipe says."""
    left_out = set()
    if recipe.model.input == "one-hot":
        left_out.add("input_dropout")
    if recipe.model.tied and recipe.model.embedding is not None:
        left_out.add("hidden")  # the two must be equal
    if recipe.train.optimizer not in ("adam", "adamw"):
        left_out |= {"lr", "weight_decay"}
    return left_out


def as_before(recipe: Recipe, earlier: Recipe) -> Recipe:
    """What a run that goes on had been given: the same values, whatever the machine's speed is today."""
    values = {
        section: {key: getattr(getattr(earlier, section), key) for key in keys} for section, keys in rule(CHARACTERS).items()
    }
    return fill(recipe, values)


def characters_in(seconds: float, recipe: Recipe, characters: int, symbols: int, resolved: Resolved) -> float:
    """How many characters this machine reads in a time, from a few updates of the network that the rule would choose.

    Args:
        seconds: of the whole run; a tenth is for start, validation and saving.
        characters: N, of the training part.
        symbols: V.
    """
    planned = fill(recipe, rule(characters, cell=recipe.model.cell))
    model = LanguageModel(planned.model, symbols, resolved.engine)
    model.initialise(0)
    model.to(resolved.device)
    update = Updater(model, planned.train, resolved.precision)
    shape = (planned.train.steps, planned.train.batch)
    ids = torch.randint(symbols, shape, generator=torch.Generator().manual_seed(0)).to(resolved.device)
    state, done = model.zero_state(shape[1]), 0
    began = time.perf_counter()
    while done < 2 * _WARM_UP or time.perf_counter() - began < min(_TIMED_SECONDS, seconds / 20):
        if done == _WARM_UP:
            began = time.perf_counter()
        state = update(ids, ids, ids.numel(), state, 1e-4).state
        done += 1
    per_update = (time.perf_counter() - began) / (done - _WARM_UP)
    return max(1.0, 0.9 * seconds - 3) / per_update * ids.numel()
