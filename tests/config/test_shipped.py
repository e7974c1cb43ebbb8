"""The shipped recipes."""

from __future__ import annotations

import re

import pytest
import yaml

from charlm.config import (
    load_recipe,
    validate_recipe,
)
from charlm.resources import shipped_files
from charlm.yaml_text import dump_yaml, parse_yaml

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
    """If this fails, a key of a shipped recipe is not explained: comment it on its line or on the line above."""
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
    """If this fails, a shipped recipe needs a text that users do not have."""
    assert load_recipe(name).recipe.corpus in shipped_files("corpora")
