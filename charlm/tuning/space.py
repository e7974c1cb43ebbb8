"""The space of a search: keys of a recipe with their ranges or values."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from charlm.comparison.candidates import variations, varied_key
from charlm.config import Recipe, check_key, list_keys
from charlm.errors import RecipeError
from charlm.training.defaults import needs_plan, rule

Value = int | float | str | bool | None
Settings = dict[str, Value]
"""Key → value."""

_RANGE = re.compile(r"\s*([^,]+?)\s*\.\.\s*([^,]+?)\s*")
_DIGITS = 3
"""Significant digits of a number that is drawn: more would only make it harder to read."""
_ANY = 1_000_000
"""Characters: the learning rate that charlm chooses does not depend on them."""
_TRIES = 100
"""Draws for each new candidate, before the space counts as exhausted."""


@dataclass(frozen=True)
class Values:
    """A list of values."""

    key: str
    values: tuple[Value, ...]

    def at(self, share: float) -> Value:
        """The value at a share of the list, in [0, 1)."""
        return self.values[int(share * len(self.values))]

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that show whether the recipe accepts all of them."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; uniform, or uniform in their logarithm."""

    key: str
    low: float
    high: float
    is_integer: bool
    is_log: bool

    def at(self, share: float) -> Value:
        """The value at a share of the range, in [0, 1)."""
        if self.is_integer:
            low, high = self.low - 0.5, self.high + 0.5  # so that the ends are as likely as the others
            return min(int(self.high), max(int(self.low), round(_between(low, high, share, self.is_log))))
        value = _between(self.low, self.high, share, self.is_log)
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS}g}")))

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that show whether the recipe accepts all of them."""
        return (int(self.low), int(self.high)) if self.is_integer else (self.low, self.high)


Dimension = Values | Range


def _between(low: float, high: float, share: float, is_log: bool) -> float:
    return low * (high / low) ** share if is_log else low + (high - low) * share


def dimension(text: str) -> Dimension:
    """``train.lr=0.001..0.01`` or ``model.cell=lstm,gru``.

    A range is uniform in the logarithm, except that of a probability (dropout) and one that begins at 0.

    Raises:
        RecipeError: neither form, a key that no recipe has, or a range of a key that is no number.
    """
    key, (_, _, values) = varied_key(text), text.partition("=")
    found = _RANGE.fullmatch(values)
    if found is None:
        if not values.strip():
            raise RecipeError(f"{text}: expected KEY=LOW..HIGH or KEY=VALUE,VALUE,…", parameter="search")
        return Values(key, tuple(json.loads(one.partition("=")[2]) for one in variations(text, parameter="search")))
    try:
        check_key(key, text)
        (described,) = list_keys(key)
    except RecipeError as error:
        raise RecipeError(str(error), parameter="search") from None
    kinds = described.type.split(" or ")
    if not {"integer", "number"} & set(kinds):
        raise RecipeError(f"{text}: {key} is no number; list its values, such as {key}=VALUE,VALUE", parameter="search")
    is_integer = "number" not in kinds
    try:
        low, high = (float(int(end)) if is_integer else float(end) for end in found.groups())
    except ValueError:
        wanted = "whole numbers" if is_integer else "numbers"
        raise RecipeError(f"{text}: expected {wanted}, as in {key}=LOW..HIGH", parameter="search") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RecipeError(f"{text}: expected LOW below HIGH", parameter="search")
    is_probability = (described.minimum, described.maximum) == (0, 1)
    return Range(key, low, high, is_integer, is_log=low > 0 and not is_probability)


def default_space(recipe: Recipe, is_timed: bool) -> list[str]:
    """The space that suits a character-level model.

    Args:
        recipe: the range of the learning rate is around its value, or around the one that charlm would choose.
        is_timed: whether all candidates train for the same time. Only then is the size of model and batch searched:
            with equally many steps, the larger one always reads more characters or computes more.
    """
    is_planned = needs_plan(recipe) and "lr" not in recipe.train.model_fields_set
    lr = rule(_ANY, cell=recipe.model.cell)["train"]["lr"] if is_planned else recipe.train.lr
    space = [f"train.lr={lr / 5:.3g}..{lr * 5:.3g}", "model.dropout=0..0.6"]
    if is_timed:
        space += ["model.hidden=128,192,256,384,512,768", "model.layers=1,2", "train.batch=16,32,64"]
        space += ["train.seq_length=32,64,128"]
    return space


def draw(space: Sequence[Dimension], number: int, seed: int) -> list[Settings]:
    """Different settings: all of a small space of lists, otherwise drawn at random. More only extend the list.

    Args:
        number: how many at most.
        seed: determines them.
    """
    lists = [one.values for one in space if isinstance(one, Values)]
    if len(lists) == len(space) and math.prod(map(len, lists)) <= number:
        return [dict(zip([one.key for one in space], values, strict=True)) for values in itertools.product(*lists)]
    generator = random.Random(seed)
    found: list[Settings] = []
    for _ in range(_TRIES * number):
        settings = {one.key: one.at(generator.random()) for one in space}
        if settings not in found:
            found.append(settings)
        if len(found) == number:
            break
    return found


def as_overrides(settings: Settings) -> list[str]:
    """``KEY=VALUE`` for each key."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
