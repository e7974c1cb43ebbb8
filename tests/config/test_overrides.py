"""``KEY=VALUE`` overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from charlm.config import (
    apply_overrides,
    load_recipe,
    validate_recipe,
)
from charlm.errors import RecipeError


def test_overrides_are_typed_by_the_schema() -> None:
    """If this fails, an override and the same value in the file give different recipes."""
    raw = apply_overrides(
        {"corpus": "x", "train": {"lr": 1, "batch": 3}},
        ["train.lr=1e-4", "model.tied=true", "data.split=[10, 5, 0]", "sample.prompt=no", "train.clip=null", "corpus=a=b"],
    )
    recipe = validate_recipe(raw, "x")
    assert (recipe.train.lr, recipe.train.batch, recipe.train.clip) == (1e-4, 3, None)
    assert (recipe.model.tied, recipe.data.split, recipe.sample.prompt, recipe.corpus) == (True, [10, 5, 0], "no", "a=b")


def test_overrides_do_not_change_their_input() -> None:
    """If this fails, one recipe's overrides leak into the next."""
    raw = {"corpus": "x", "train": {"lr": 1.0}}
    apply_overrides(raw, ["train.lr=2", "model.hidden=3"])
    assert raw == {"corpus": "x", "train": {"lr": 1.0}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "^set train.lr: expected KEY=VALUE"),
        ("train.rl=1", "no key 'train.rl'"),
        ("train.steps=1", r"train\.steps is now called train\.seq_length"),
        ("hidden=1", r"no key 'hidden'; did you mean model\.hidden\?"),
        ("train=1", "train is a section"),
        ("train.lr=[1", r"^set train\.lr=\[1, line 1"),
    ],
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    """If this fails, a misspelt --set is ignored."""
    with pytest.raises(RecipeError, match=message) as caught:
        apply_overrides({"corpus": "x"}, [override])
    assert caught.value.parameter == "set", "the command line cannot name its flag"


def test_a_wrongly_typed_override_is_refused(tmp_path: Path) -> None:
    """If this fails, --set bypasses the schema."""
    path = tmp_path / "r.yaml"
    path.write_text("corpus: x\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"model\.hidden: .*found \"wide\""):
        load_recipe(str(path), ["model.hidden=wide"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [("|", "|"), (",", ","), ("\n\n", "\n\n"), (r'"\n\n"', "\n\n"), ("1", "1"), ("line", "line"), ("#", "#"), ("a: b", "a: b"),
     ("null", None), ("", None)],
)  # fmt: skip
def test_a_separator_of_records_is_text(value: str, expected: str | None) -> None:
    """If this fails, a separator that means something in YAML is refused, or a text of records is read as one stream."""
    assert apply_overrides({}, [f"data.records={value}"]) == {"data": {"records": expected}}
