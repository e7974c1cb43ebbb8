"""Defaults for recipes without a length, from the length of their text.

They apply to recipes that set neither `epochs` nor `total_steps`, such as one that says only `corpus: mine.txt`. Recipes that
set a length are left as they are, and a value that a recipe sets is never changed. With N characters to train on:

    budget         C = 10 million characters; with `time`, as many as this machine reads in it; at most 40 epochs
    epochs         E = C / N
    hidden         512; 256 for a text below 100,000 characters
    init           orthogonal recurrent matrices
    dropout        0.13·log₂E, from 0 to 0.7, since more epochs overfit more; multiplied by √(10⁶/N) above a million characters,
                   since larger texts overfit less
    input_dropout  a third of dropout
    batch, steps   32 × 32 below 3 million characters, since short texts need many small steps; else 32 × 64
    lr             0.005 (0.001 for a plain RNN), decayed to 10 %
    weight decay   0.2; a moving average of about 500 steps is validated beside the weights
    evaluations    ten, on C/100 characters, from 2,000 to 200,000

docs/results.md has the measurements for these choices.
"""

from __future__ import annotations

import math
from typing import Any

from charlm.config import FIXED, ModelSection, Recipe, fields, value_at
from charlm.optimizers import OPTIMIZERS
from charlm.schedules import SCHEDULES

CHARACTERS = 10_000_000
"""Characters to read, unless a time is given."""
PASSES = 40
"""Maximum number of epochs."""

_LENGTH = ("epochs", "total_steps")
_SHORT, _LARGE, _LONG = 100_000, 1_000_000, 3_000_000
"""Characters: the limits for hidden, dropout and steps."""

Values = dict[str, dict[str, Any]]
"""Section → key → value."""


def needs_plan(recipe: Recipe) -> bool:
    """Whether a recipe has no length, and its schedule needs one. With a time limit, a constant schedule needs none."""
    train = recipe.train
    endless = train.time is not None and not SCHEDULES[train.schedule].needs_length
    return train.epochs is None and train.total_steps is None and not endless


def rule(characters: int, budget: float = CHARACTERS, cell: str = "lstm") -> Values:
    """The defaults for a text.

    Args:
        characters: N, the length of the training part.
        budget: C, characters to read.
        cell: the recurrence.
    """
    passes = max(1e-6, min(budget / characters, PASSES))
    read = passes * characters
    dropout = round(min(0.7, max(0.0, 0.13 * math.log2(passes))) * min(1.0, math.sqrt(_LARGE / characters)), 2)
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


_KEYS = [f"{section}.{key}" for section, keys in rule(CHARACTERS).items() for key in keys]
"""The keys that have such defaults."""


def with_defaults(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with these values for the keys that it does not set."""
    update: dict[str, Any] = {}
    for name, section in values.items():
        left_out = _keys_of(recipe, name) | _not_applicable(recipe)
        filled = {key: value for key, value in section.items() if key not in left_out}
        update[name] = getattr(recipe, name).model_copy(update=filled)
    return recipe.model_copy(update=update)


def _keys_of(recipe: Recipe, section: str) -> set[str]:
    """The keys of a section that a recipe sets. A length of ``null`` counts as not set."""
    values = getattr(recipe, section)
    return {key for key in values.model_fields_set if key not in _LENGTH or getattr(values, key) is not None}


def chosen_overrides(before: Recipe, after: Recipe) -> list[str]:
    """The values that :func:`with_defaults` filled in, as overrides such as ``model.hidden=512``."""
    parts = [(key, *key.split(".")) for key in _KEYS]
    left_out = _not_applicable(before)
    return [f"{key}={value_at(after, key)}" for key, section, name in parts if name not in _keys_of(before, section) | left_out]


def _not_applicable(recipe: Recipe) -> set[str]:
    """Keys whose defaults would conflict with the recipe."""
    left_out = set()
    if recipe.model.input == "one-hot":
        left_out.add("input_dropout")
    if recipe.model.tied and recipe.model.embedding is not None:
        left_out.add("hidden")  # the two must be equal
    optimizer = OPTIMIZERS[recipe.train.optimizer]
    if not optimizer.decoupled:
        left_out.add("weight_decay")  # it would be L2 regularisation, part of the gradient
    if not optimizer.takes_adams_lr:
        left_out.add("lr")
    return left_out


def restore_choices(recipe: Recipe, earlier: Recipe) -> Recipe:
    """The recipe of a resumed run: for keys that it does not set, the values of the run so far.

    These are the keys that cannot change, and those with defaults, even if the recipe now sets another length. A recipe
    without a length keeps the planned one, however fast the machine is today.
    """
    keys = {key for key, info in fields() if info.json_schema_extra == FIXED and "." in key} | {*_KEYS}
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
    """A recipe without a length, with its defaults, for comparison with an earlier run of it.

    Args:
        characters: N, the length of the training part.
    """
    values = rule(characters, cell=recipe.model.cell)
    if recipe.train.time is not None:  # these defaults depended on the machine's speed
        for key in ("model.dropout", "model.input_dropout", "train.epochs", "evaluate.characters"):
            section, _, name = key.partition(".")
            values[section][name] = value_at(earlier, key)
    return with_defaults(recipe, values)


def inherit_architecture(recipe: Recipe, other: ModelSection) -> Recipe:
    """The recipe of a network with another network's initial weights: the keys of the architecture that it does not set."""
    architecture = [key for key, info in ModelSection.model_fields.items() if info.json_schema_extra == FIXED]
    return with_defaults(recipe, {"model": {key: getattr(other, key) for key in architecture}})
