"""Values of a recipe: types, ranges, durations, splits."""

from __future__ import annotations

import math
from typing import Any

import pytest

from charlm.config import (
    DataSection,
    ModelSection,
    Recipe,
    Section,
    validate_recipe,
)
from charlm.config.values import parse_duration
from charlm.errors import RecipeError
from charlm.yaml_text import dump_yaml, parse_yaml


def _complaint(raw: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        validate_recipe(raw, "mine.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"corpus": 7},
        {"corpus": ""},
        {"model": {"hidden": 1e3}},
        {"model": {"hidden": "512"}},
        {"model": {"hidden": True}},
        {"model": {"dropout": 1.0}},
        {"model": {"dropout": -0.1}},
        {"model": {"tied": "yes"}},
        {"model": [1]},
        {"train": "fast"},
        {"train": {"lr": 0}},
        {"train": {"lr": math.nan}},
        {"train": {"betas": [0.9]}},
        {"train": {"seed": -1}},
        {"train": {"seed": 2**63}},
        {"train": {"batch": 0}},
        {"train": {"time": "soon"}},
        {"train": {"time": 0}},
        {"train": {"precision": "fp64"}},
        {"data": {"unit": "word"}},
        {"data": {"min_count": 0}},
        {"data": {"unknown_rate": 1.5}},
        {"sample": {"prompt": 3}},
        {"sample": {"temperature": -1}},
        {"reported": {"metric": "loss", "value": 1}},
    ],
    ids=str,
)
def test_wrong_types_and_ranges_are_refused(raw: dict[str, Any]) -> None:
    """If this fails, an impossible value reaches training."""
    complaint = _complaint({"corpus": "x", **raw})
    section, value = next(iter(raw.items()))
    key = f"{section}.{next(iter(value))}" if isinstance(value, dict) else section
    assert key in complaint
    assert "found" in complaint or "expected" in complaint


@pytest.mark.parametrize("split", [[0.9, 0.05, 0.05], [1, 0, 0], [0.5, 0.2, 0], [10000, 5000, 0], [10, 0, 1]])
def test_possible_splits_are_accepted(split: list[float]) -> None:
    """If this fails, a legal split (an empty validation, say) is refused."""
    assert validate_recipe({"corpus": "x", "data": {"split": split}}, "x").data.split == split


@pytest.mark.parametrize(
    ("split", "why"),
    [
        ([0.9, 0.2, 0.1], "sum to at most 1"),
        ([0.9, 0.1], "three parts"),
        ([0, 0.5, 0.5], "training first and not empty"),
        ([0.9, -0.1, 0.2], "three parts"),
        ([100, 0.5, 0], "sum to at most 1"),
        ("half", ""),
        ({"validation": "a.txt", "tset": "b.txt"}, "unknown key"),
    ],
)
def test_impossible_splits_are_refused(split: object, why: str) -> None:
    """If this fails, an impossible split is accepted."""
    complaint = _complaint({"corpus": "x", "data": {"split": split}})
    assert "data.split" in complaint
    assert why in complaint


@pytest.mark.parametrize(
    ("given_", "seconds"), [(90, 90), ("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2 m ", 120), (".5s", 0.5)]
)
def test_durations(given_: object, seconds: float) -> None:
    """If this fails, a time limit is read in the wrong unit."""
    assert parse_duration(given_) == seconds


@pytest.mark.parametrize("given_", ["5 minutes", "", "m", "1h30m", "-5s", "1e3s"])
def test_other_texts_are_not_durations(given_: str) -> None:
    """If this fails, a misspelt time limit is read as some duration."""
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(given_)


def test_every_default_is_a_value_that_a_recipe_may_give() -> None:
    """If this fails, a recipe that states a default (as config.yaml does) is refused."""
    raw = Recipe(corpus="x").model_dump(mode="json")
    assert validate_recipe(parse_yaml(dump_yaml(raw), "dumped"), "x") == Recipe(corpus="x")


def test_sections_cannot_be_changed_after_validation() -> None:
    """If this fails, code can give a recipe values that validation would refuse."""
    for section in (Recipe, DataSection, ModelSection):
        assert issubclass(section, Section)
        assert section.model_config["frozen"]
