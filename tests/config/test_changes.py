"""Changes of a recipe between two attempts at a run."""

from __future__ import annotations

from typing import Any

import pytest

from charlm.config import (
    FIXED,
    Recipe,
    fields,
    reconcile,
    validate_recipe,
)
from charlm.errors import RecipeError


def _recipe(**sections: Any) -> Recipe:
    return validate_recipe({"corpus": "x", **sections}, "x")


def test_fixed_fields_cannot_change_and_both_values_are_named() -> None:
    """If this fails, a resumed run has another model or another order of the text."""
    before = _recipe(model={"hidden": 8, "cell": "gru"}, train={"seed": 1, "lr": 0.1})
    now = _recipe(model={"hidden": 9, "cell": "gru"}, train={"seed": 2, "lr": 0.2})
    with pytest.raises(RecipeError) as caught:
        reconcile(before, now)
    message = str(caught.value)
    assert "model.hidden: was 8, is now 9" in message
    assert "train.seed: was 1, is now 2" in message
    assert "train.lr" not in message
    assert "overwrite=True" in message and "out='DIR'" in message, "it does not say how to start a new run"


def test_the_newest_value_of_other_fields_wins_and_is_said() -> None:
    """If this fails, a changed learning rate is refused, or used without a report."""
    before = _recipe(
        model={"dropout": 0.1}, train={"lr": 0.1, "total_steps": 5}, reported={"metric": "validation_nats", "value": 2}
    )
    now = _recipe(model={"dropout": 0.2}, train={"lr": 0.2, "total_steps": 5})
    assert reconcile(before, now) == ["model.dropout: was 0.1, continues with 0.2", "train.lr: was 0.1, continues with 0.2"]
    assert reconcile(now, now) == []


def test_everything_that_makes_another_model_or_order_is_fixed() -> None:
    """If this fails, a field was added without a decision whether it may change on resume."""
    free = {name for name, info in fields() if info.json_schema_extra != FIXED}
    sections = ("evaluate.", "checkpoint.", "sample.")
    assert {name for name in free if not name.startswith(sections)} == {
        "model.dropout", "model.input_dropout", "model.locked_dropout", "model.weight_drop", "model.engine",
        "model.forget_bias", "model.init",
        "reported.metric", "reported.value", "reported.minutes", "reported.note",
        "train.lr", "train.betas", "train.weight_decay", "train.clip", "train.schedule", "train.warmup",
        "train.lr_final", "train.decay_ratio", "train.gamma", "train.gamma_every", "train.average", "train.epochs",
        "train.total_steps", "train.time", "train.deterministic", "train.threads", "train.accumulate",
    }  # fmt: skip
