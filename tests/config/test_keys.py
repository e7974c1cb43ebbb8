"""The list of keys and the JSON Schema."""

from __future__ import annotations

import json

import pytest

from charlm.config import Recipe, field_names, fields, json_schema, list_keys, validate_recipe, value_at
from charlm.config.keys import Key
from charlm.errors import RecipeError, UsageError
from charlm.resources import shipped_folder


def test_every_field_is_explained() -> None:
    """If this fails, the help and the editors' schema have a gap."""
    assert [name for name, info in fields() if not info.description] == []


def test_the_schema_file_is_up_to_date() -> None:
    """If this fails, editors use an old schema: run `charlm recipe schema > configs/recipe.schema.json`."""
    stored = json.loads((shipped_folder("configs") / "recipe.schema.json").read_text(encoding="utf-8"))
    assert stored == json_schema()


def test_dotted_names_reach_their_values() -> None:
    """If this fails, a field is skipped when two recipes are compared."""
    recipe = Recipe(corpus="x")
    names = list(field_names())
    assert len(names) == len(set(names))
    assert (value_at(recipe, "train.lr"), value_at(recipe, "reported.value"), value_at(recipe, "corpus")) == (2e-3, None, "x")


def test_keys_without_a_value_say_how_it_is_chosen() -> None:
    """If this fails, `recipe keys` shows a default of null, which explains nothing."""
    unset = [key for key in list_keys() if key.default is None and not key.required]
    assert [key.key for key in unset if " Unset: " not in key.help] == []
    assert [key.key for key in list_keys() if key.default is not None and "Unset" in key.help] == []


@pytest.mark.parametrize("key", [key for key in list_keys() if key.allowed or key.maximum is not None], ids=lambda key: key.key)
def test_listed_bounds_are_those_of_the_schema(key: Key) -> None:
    """If this fails, a value that the list allows is refused, or one that it excludes is accepted."""

    def is_accepted(value: object) -> bool:
        section, _, name = key.key.partition(".")
        reported = {"metric": "validation_nats", "value": 1.0}
        values = {**(reported if section == "reported" else {}), name: [value] * 2 if key.type.startswith("list") else value}
        try:
            validate_recipe({"corpus": "x", section: values}, "x")
        except RecipeError as error:
            return f"  {key.key}" not in str(error)  # a contradiction between values names the section only
        return True

    if key.allowed:
        assert all(map(is_accepted, key.allowed)) and not is_accepted("another")
    else:
        assert key.minimum is not None and key.maximum is not None
        assert is_accepted(key.minimum) != key.exclusive_minimum and is_accepted(key.maximum) != key.exclusive_maximum
        assert not is_accepted(key.minimum - 1) and not is_accepted(key.maximum * 2)


def test_sections_and_keys_can_be_selected() -> None:
    """If this fails, a section lists keys of another one, or a key also lists those that begin like it (lr, lr_final)."""
    assert {key.key.partition(".")[0] for key in list_keys("sample")} == {"sample"}
    assert [key.key for key in list_keys("train.lr")] == ["train.lr"]
    with pytest.raises(UsageError, match=r"no key or section 'train\.l'; did you mean train\.lr\?"):
        list_keys("train.l")
