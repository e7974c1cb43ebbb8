"""Recipes: a strict schema, errors that help, and what may change between two attempts at a run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from charlm import config
from charlm.config import (
    DataSection,
    ModelSection,
    Recipe,
    Section,
    apply_overrides,
    field_names,
    fields,
    find_recipe,
    load_recipe,
    parse_duration,
    reconcile,
    validate_recipe,
    value_at,
)
from charlm.errors import RecipeError
from charlm.resources import shipped_files, shipped_folder
from charlm.yaml_text import dump_yaml, parse_yaml

# -- problems --------------------------------------------------------------------------------------------------------


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
    """If this fails, a misspelt key is ignored, or its reader is not told the right one."""
    complaint = _complaint({"corpus": "x", **raw})
    assert f"{key}: unknown key" in complaint
    if meant:
        assert re.search(rf"did you mean .*{re.escape(meant)}", complaint)


def test_all_problems_are_reported_at_once() -> None:
    """If this fails, a recipe with three mistakes needs three attempts."""
    complaint = _complaint({"model": {"cell": "gpt", "hidden": 0}, "train": {"lr": "fast", "batchs": 3}})
    assert complaint.startswith("mine.yaml: 5 problems")
    for part in ("corpus: missing", "model.cell:", "model.hidden:", "train.lr:", "train.batchs: unknown key"):
        assert part in complaint
    assert '"gpt"' in complaint
    assert "'lstm'" in complaint, "the expected values are not named"


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
    """If this fails, a value that cannot be meant gets as far as training."""
    complaint = _complaint({"corpus": "x", **raw})
    section, value = next(iter(raw.items()))
    key = f"{section}.{next(iter(value))}" if isinstance(value, dict) else section
    assert key in complaint
    assert "found" in complaint or "expected" in complaint


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"model": {"cell": "gru", "reset_after": False, "engine": "torch"}}, "engine: torch has no GRU with reset_after"),
        ({"model": {"tied": True, "input": "one-hot"}}, "need an embedding"),
        ({"model": {"tied": True, "hidden": 8, "embedding": 4}}, "embedding = hidden, found 4 and 8"),
        ({"model": {"cell": "lstm", "nonlinearity": "relu"}}, "nonlinearity belongs to cell: rnn"),
        ({"model": {"cell": "gru", "variant": "peephole"}}, "variant belongs to cell: lstm, not to cell: gru"),
        ({"model": {"variant": "peephole", "engine": "native"}}, "engine: native has no LSTM with variant: peephole"),
        ({"train": {"epochs": 1, "total_steps": 5}}, "epochs and total_steps"),
        ({"train": {"batching": "windows", "drop_last": True}}, "belong to batching: streams"),
    ],
    ids=str,
)
def test_values_that_contradict_each_other_are_refused(raw: dict[str, Any], why: str) -> None:
    """If this fails, one of two contradicting values is silently ignored."""
    assert why in _complaint({"corpus": "x", **raw})


@pytest.mark.parametrize("split", [[0.9, 0.05, 0.05], [1, 0, 0], [0.5, 0.2, 0], [10000, 5000, 0], [10, 0, 1]])
def test_splits_that_are_possible(split: list[float]) -> None:
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
def test_splits_that_are_not(split: object, why: str) -> None:
    """If this fails, a text is cut otherwise than anyone meant."""
    complaint = _complaint({"corpus": "x", "data": {"split": split}})
    assert "data.split" in complaint
    assert why in complaint


def test_an_empty_section_means_its_defaults() -> None:
    """If this fails, a recipe whose keys of one section are all commented out is refused."""
    assert validate_recipe({"corpus": "x", "model": None}, "x") == Recipe(corpus="x")


@pytest.mark.parametrize(
    ("given_", "seconds"), [(90, 90), ("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2 m ", 120), (".5s", 0.5)]
)
def test_durations(given_: object, seconds: float) -> None:
    """If this fails, a time limit is read in the wrong unit."""
    assert parse_duration(given_) == seconds


@pytest.mark.parametrize("given_", ["5 minutes", "", "m", "1h30m", "-5s", "1e3s"])
def test_what_is_no_duration(given_: str) -> None:
    """If this fails, a misspelt time limit is taken for something."""
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(given_)


# -- overrides and files ---------------------------------------------------------------------------------------------


def test_overrides_are_typed_by_the_schema() -> None:
    """If this fails, --set means something else than the same value in the file."""
    raw = apply_overrides(
        {"corpus": "x", "train": {"lr": 1, "batch": 3}},
        ["train.lr=1e-4", "model.tied=true", "data.split=[10, 5, 0]", "sample.prompt=no", "train.clip=null", "corpus=a=b"],
    )
    recipe = validate_recipe(raw, "x")
    assert (recipe.train.lr, recipe.train.batch, recipe.train.clip) == (1e-4, 3, None)
    assert (recipe.model.tied, recipe.data.split, recipe.sample.prompt, recipe.corpus) == (True, [10, 5, 0], "no", "a=b")


def test_overrides_leave_what_they_are_given_alone() -> None:
    """If this fails, one recipe's overrides leak into the next."""
    raw = {"corpus": "x", "train": {"lr": 1.0}}
    apply_overrides(raw, ["train.lr=2", "model.hidden=3"])
    assert raw == {"corpus": "x", "train": {"lr": 1.0}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "expected KEY=VALUE"),
        ("train.rl=1", "no key 'train.rl'"),
        ("hidden=1", r"no key 'hidden'; did you mean model\.hidden\?"),
        ("train=1", "train is a section"),
        ("train.lr=[1", "--set train.lr="),
    ],
)
def test_overrides_that_cannot_be(override: str, message: str) -> None:
    """If this fails, a misspelt --set is ignored."""
    with pytest.raises(RecipeError, match=message):
        apply_overrides({"corpus": "x"}, [override])


def test_a_wrongly_typed_override_is_refused(tmp_path: Path) -> None:
    """If this fails, --set bypasses the schema."""
    path = tmp_path / "r.yaml"
    path.write_text("corpus: x\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"model\.hidden: .*found \"wide\""):
        load_recipe(str(path), ["model.hidden=wide"])


def test_a_recipe_that_says_only_its_corpus_is_complete(tmp_path: Path) -> None:
    """If this fails, the simplest recipe does not work (a byte-order mark, as Windows editors write it, included)."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfcorpus: text.txt\n")
    loaded = load_recipe(str(path))
    assert (loaded.name, loaded.folder, loaded.recipe) == ("mine", tmp_path.resolve(), Recipe(corpus="text.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected keys"),
        (b"- a\n", "found a list"),
        (b"corpus: \xff\n", "byte 8 is not UTF-8"),
        (b"text", "expected keys"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, message: str) -> None:
    """If this fails, a wrong file ends in a traceback."""
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "message"), [("helo", "did you mean 'hello'"), ("./no.yaml", "does not exist"), (".", "is a folder")]
)
def test_recipes_that_are_not_there(name: str, message: str) -> None:
    """If this fails, a misspelt recipe name is not explained."""
    with pytest.raises(RecipeError, match=message) as caught:
        find_recipe(name)
    assert "hello" in str(caught.value), "the shipped recipes are not listed"


# -- between two attempts --------------------------------------------------------------------------------------------


def _recipe(**sections: Any) -> Recipe:
    return validate_recipe({"corpus": "x", **sections}, "x")


def test_fixed_fields_cannot_change_and_both_values_are_named() -> None:
    """If this fails, a resumed run is another model or reads its text in another order."""
    before = _recipe(model={"hidden": 8, "cell": "gru"}, train={"seed": 1, "lr": 0.1})
    now = _recipe(model={"hidden": 9, "cell": "gru"}, train={"seed": 2, "lr": 0.2})
    with pytest.raises(RecipeError) as caught:
        reconcile(before, now)
    message = str(caught.value)
    assert "model.hidden: was 8, is now 9" in message
    assert "train.seed: was 1, is now 2" in message
    assert "train.lr" not in message
    assert "--overwrite" in message


def test_the_newest_value_of_other_fields_wins_and_is_said() -> None:
    """If this fails, a changed learning rate is refused, or taken without a word."""
    before = _recipe(
        model={"dropout": 0.1}, train={"lr": 0.1, "total_steps": 5}, reported={"metric": "validation_nats", "value": 2}
    )
    now = _recipe(model={"dropout": 0.2}, train={"lr": 0.2, "total_steps": 5})
    assert reconcile(before, now) == ["model.dropout: was 0.1, goes on with 0.2", "train.lr: was 0.1, goes on with 0.2"]
    assert reconcile(now, now) == []


def test_everything_that_makes_another_model_or_order_is_fixed() -> None:
    """If this fails, a field was added or changed without deciding what happens to it on resume."""
    free = {name for name, info in fields() if info.json_schema_extra != config.FIXED}
    sections = ("evaluate.", "checkpoint.", "sample.")
    assert {name for name in free if not name.startswith(sections)} == {
        "model.dropout", "model.input_dropout", "model.locked_dropout", "model.weight_drop", "model.engine",
        "model.forget_bias", "model.init",
        "reported.metric", "reported.value", "reported.note",
        "train.lr", "train.betas", "train.weight_decay", "train.clip", "train.schedule", "train.warmup",
        "train.lr_final", "train.decay_ratio", "train.gamma", "train.gamma_every", "train.average", "train.epochs",
        "train.total_steps", "train.time", "train.threads",
    }  # fmt: skip


# -- the schema ------------------------------------------------------------------------------------------------------


def test_every_field_is_explained() -> None:
    """If this fails, the help and the editors' schema have a gap."""
    assert [name for name, info in fields() if not info.description] == []


def test_every_default_is_a_value_that_a_recipe_may_give() -> None:
    """If this fails, writing a default down (as config.yaml does) is an error."""
    raw = Recipe(corpus="x").model_dump(mode="json")
    assert validate_recipe(parse_yaml(dump_yaml(raw), "dumped"), "x") == Recipe(corpus="x")


def test_sections_cannot_be_changed_after_validation() -> None:
    """If this fails, code can bring a recipe into a state that validation would have refused."""
    for section in (Recipe, DataSection, ModelSection):
        assert issubclass(section, Section)
        assert section.model_config["frozen"]


def test_the_schema_file_is_up_to_date() -> None:
    """If this fails, editors complete and check recipes by an old schema: write charlm.config.json_schema() there."""
    stored = json.loads((shipped_folder("configs") / "recipe.schema.json").read_text(encoding="utf-8"))
    assert stored == config.json_schema()


# -- what is shipped -------------------------------------------------------------------------------------------------

SHIPPED = shipped_files("configs")


def test_there_are_shipped_recipes() -> None:
    """If this fails, the parametrised tests below test nothing."""
    assert {"hello", "shakespeare"} <= SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads(name: str) -> None:
    """If this fails, charlm ships a recipe that it refuses."""
    loaded = load_recipe(name)
    assert loaded.name == name
    again = validate_recipe(parse_yaml(dump_yaml(loaded.recipe.model_dump(mode="json")), "dumped"), "dumped")
    assert again == loaded.recipe


def _leaf_lines(node: yaml.Node, path: str = "") -> list[tuple[str, int]]:
    """The dotted name and the line (from 0) of every key that has a value of its own."""
    found = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{path}{key.value}"
            inner = _leaf_lines(value, f"{name}.")
            found += inner or [(name, key.start_mark.line)]
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_of_a_shipped_recipe_is_commented(name: str) -> None:
    """If this fails, a shipped recipe leaves its reader alone with a key: comment it on its line or on the line above."""
    text = SHIPPED[name].read_text(encoding="utf-8")
    lines = text.splitlines()
    bare = []
    for key, line in _leaf_lines(yaml.compose(text, Loader=yaml.SafeLoader)):
        above = lines[line - 1].strip() if line else ""
        explains_itself = key == "reported.note"  # it is a comment
        if not (explains_itself or re.search(r"\s#\s*\S", lines[line]) or above.startswith("#")):
            bare.append(key)
    assert bare == []


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_name_shipped_corpora(name: str) -> None:
    """If this fails, a shipped recipe needs a text that its user does not have."""
    assert load_recipe(name).recipe.corpus in shipped_files("corpora")


def test_dotted_names_reach_their_values() -> None:
    """If this fails, a field is skipped when two recipes are compared."""
    recipe = Recipe(corpus="x")
    names = list(field_names())
    assert len(names) == len(set(names))
    assert (value_at(recipe, "train.lr"), value_at(recipe, "reported.value"), value_at(recipe, "corpus")) == (2e-3, None, "x")


def test_synonyms_lead_to_keys_that_exist() -> None:
    """If this fails, a user of another program is sent to a key that no recipe has, or a key of ours is called a synonym."""
    names = set(field_names())
    assert set(config._SYNONYMS.values()) <= names
    assert not config._SYNONYMS.keys() & {f"{name}" for name in names}


def test_a_wrong_override_is_blamed_and_not_the_file(tmp_path: Path) -> None:
    """If this fails, a slip on the command line is looked for in a shipped recipe."""
    path = tmp_path / "r.yaml"
    path.write_text("corpus: x\ntrain: {lr: fast, epochs: 2}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["model.hidden=wide", "train.lr=1", "data.split=[1, 2]"])
    message = str(caught.value)
    assert "--set model.hidden=wide: 1 problem\n  model.hidden: " in message
    assert "--set data.split=[1, 2]: 1 problem" in message
    assert str(path) not in message
    with pytest.raises(RecipeError, match=r"r\.yaml: 1 problem\n  train\.lr"):
        load_recipe(str(path))
    with pytest.raises(RecipeError, match=r"^--set model\.embedding=\.\.\.|r\.yaml with --set model\.tied=true"):
        load_recipe(str(path), ["train.lr=1", "model.tied=true", "model.embedding=3"])
