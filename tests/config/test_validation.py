"""Problems of a recipe: all at once, with the closest key, blamed on their origin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from charlm.config import (
    Recipe,
    field_names,
    load_recipe,
    validate_recipe,
)
from charlm.config.suggestions import SYNONYMS
from charlm.errors import RecipeError


def _complaint(raw: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        validate_recipe(raw, "mine.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "key", "meant"),
    [
        ({"train": {"learning_rate": 1}}, "train.learning_rate", "train.lr"),
        ({"train": {"batch_size": 1}}, "train.batch_size", "train.batch"),
        ({"block_size": 1}, "block_size", "train.seq_length"),
        ({"model": {"n_layer": 1}}, "model.n_layer", "model.layers"),
        ({"train": {"optimiser": "sgd"}}, "train.optimiser", "train.optimizer"),
        ({"model": {"hiden": 3}}, "model.hiden", "model.hidden"),
        ({"modle": {}}, "modle", "model"),
        ({"train": {"dropout": 0.1}}, "train.dropout", "model.dropout"),
        ({"hidden": 12}, "hidden", "model.hidden"),
        ({"evaluate": {"evry": 5}}, "evaluate.evry", ".every"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_closest(raw: dict[str, Any], key: str, meant: str | None) -> None:
    """If this fails, a misspelt key is ignored, or the error does not name the right one."""
    complaint = _complaint({"corpus": "x", **raw})
    assert f"{key}: unknown key" in complaint
    if meant:
        assert re.search(rf"did you mean .*{re.escape(meant)}", complaint)


def test_synonyms_lead_to_keys_that_exist() -> None:
    """If this fails, a user of another program is told a key that does not exist, or a key is listed as a synonym."""
    names = set(field_names())
    assert set(SYNONYMS.values()) <= names
    assert not SYNONYMS.keys() & names


def test_all_problems_are_reported_at_once() -> None:
    """If this fails, a recipe with three mistakes needs three attempts."""
    complaint = _complaint({"model": {"cell": "gpt", "hidden": 0}, "train": {"lr": "fast", "batchs": 3}})
    assert complaint.startswith("mine.yaml: 5 problems")
    for part in ("corpus: missing", "model.cell:", "model.hidden:", "train.lr:", "train.batchs: unknown key"):
        assert part in complaint
    assert '"gpt"' in complaint
    assert "'lstm'" in complaint, "the expected values are not named"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"model": {"cell": "gru", "reset_after": False, "engine": "torch"}}, "engine: torch has no GRU with reset_after"),
        ({"model": {"tied": True, "input": "one-hot"}}, "need an embedding"),
        ({"model": {"tied": True, "hidden": 8, "embedding": 4}}, "embedding = hidden, found 4 and 8"),
        ({"model": {"cell": "lstm", "nonlinearity": "relu"}}, "nonlinearity belongs to cell: rnn"),
        ({"model": {"cell": "gru", "variant": "peephole"}}, "variant belongs to cell: lstm, not to cell: gru"),
        ({"model": {"variant": "peephole", "engine": "torch"}}, "engine: torch has no LSTM with variant: peephole"),
        ({"train": {"epochs": 1, "total_steps": 5}}, "epochs and total_steps"),
        ({"train": {"batching": "windows", "drop_last": True}}, "belong to batching: streams"),
    ],
    ids=str,
)
def test_values_that_contradict_each_other_are_refused(raw: dict[str, Any], why: str) -> None:
    """If this fails, one of two contradicting values is silently ignored."""
    assert why in _complaint({"corpus": "x", **raw})


def test_an_empty_section_means_its_defaults() -> None:
    """If this fails, a recipe whose keys of one section are all commented out is refused."""
    assert validate_recipe({"corpus": "x", "model": None}, "x") == Recipe(corpus="x")


def test_a_wrong_override_is_blamed_and_not_the_file(tmp_path: Path) -> None:
    """If this fails, the error about a wrong override names the file, which is correct."""
    path = tmp_path / "r.yaml"
    path.write_text("corpus: x\ntrain: {lr: fast, epochs: 2}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["model.hidden=wide", "train.lr=1", "data.split=[1, 2]"])
    message = str(caught.value)
    assert caught.value.parameter == "set"
    assert message.startswith("set data.split=[1, 2], model.hidden=wide: 2 problems\n")
    assert "  model.hidden: " in message and "  data.split: " in message
    assert str(path) not in message
    both = rf"^set model\.hidden=wide: 1 problem\n  model\.hidden: .*\n{re.escape(str(path))}: 1 problem\n  train\.lr: "
    with pytest.raises(RecipeError, match=both):
        load_recipe(str(path), ["model.hidden=wide"])
    with pytest.raises(RecipeError, match=r"r\.yaml: 1 problem\n  train\.lr"):
        load_recipe(str(path))
    with pytest.raises(RecipeError, match=r"r\.yaml with model\.tied=true and model\.embedding=3: 1 problem\n  model: tied"):
        load_recipe(str(path), ["train.lr=1", "model.tied=true", "model.embedding=3"])
