"""Recipes from files and names."""

from __future__ import annotations

from pathlib import Path

import pytest

from charlm.config import (
    Recipe,
    find_recipe,
    load_recipe,
)
from charlm.errors import RecipeError


def test_a_recipe_that_says_only_its_corpus_is_complete(tmp_path: Path) -> None:
    """If this fails, the simplest recipe is refused, or one with a byte-order mark (Windows editors write one)."""
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
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """If this fails, a wrong file ends in a traceback."""
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "message"), [("helo", "did you mean 'hello'"), ("./no.yaml", "does not exist"), (".", "is a folder")]
)
def test_missing_recipes_are_explained(name: str, message: str) -> None:
    """If this fails, a misspelt recipe name is not explained."""
    with pytest.raises(RecipeError, match=message) as caught:
        find_recipe(name)
    assert "hello" in str(caught.value), "the shipped recipes are not listed"
