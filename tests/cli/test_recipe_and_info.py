"""``charlm recipe`` and ``charlm info``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from charlm.config import field_names, load_recipe
from charlm.resources import shipped_files


def test_every_recipe_is_listed_with_its_figure(charlm: Callable[..., Any]) -> None:
    """Failing would mean that a recipe cannot be discovered, or promises nothing."""
    lines = charlm("recipe", "list").text.splitlines()
    for name in shipped_files("configs"):
        (row,) = [line for line in lines if line.split()[:1] == [name]]
        assert any(word in row for word in ("perplexity", "nats", "bits"))


@pytest.mark.parametrize("name", sorted(shipped_files("configs")))
def test_show_prints_the_start_of_a_recipe_of_your_own(charlm: Callable[..., Any], desk: Path, name: str) -> None:
    """Failing would mean that a copied recipe is another recipe, claims the author's result, or loses its schema."""
    shown = charlm("recipe", "show", name).text
    (desk / "mine.yaml").write_text(shown, encoding="utf-8")
    assert load_recipe("mine.yaml").recipe == load_recipe(name).recipe.model_copy(update={"reported": None})
    first, *rest = shown.splitlines()
    schema = Path(unquote(urlsplit(first.partition("$schema=")[2]).path))
    assert schema.is_file() and "corpus" in json.loads(schema.read_text(encoding="utf-8"))["properties"]
    assert set(rest) - set(shipped_files("configs")[name].read_text(encoding="utf-8").splitlines()) == {
        "# `charlm recipe list` shows what the shipped recipe reached."
    }


def test_keys_lists_every_key_and_what_is_fixed(charlm: Callable[..., Any]) -> None:
    """Failing would mean that a key exists that no help mentions."""
    lines = charlm("recipe", "keys").text.splitlines()
    for key in field_names():
        assert any(line.split()[:1] == [key] for line in lines), key
    (hidden,) = [line for line in lines if line.split()[:1] == ["model.hidden"]]
    assert "fixed" in hidden


def test_schema_is_json(charlm: Callable[..., Any]) -> None:
    """Failing would mean that editors cannot read the schema."""
    assert "corpus" in json.loads(charlm("recipe", "schema").text)["properties"]


def test_info_tells_what_is_inside_without_its_path(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a checkpoint hides what it is, or cannot be looked into."""
    assert charlm("train", "recipe.yaml", "--out", "run", "-q").code == 0
    shown = charlm("info", "run/last.safetensors").text
    assert "step 20" in shown and "full training state (resumable)" in shown and "layers.0.weight_hh" in shown
    assert "weights only" in charlm("info", "run").text
    record = charlm("info", "run", "--json").record
    assert record["tensors"]["model.layers.0.weight_hh"] == [32, 8]
    assert record["recipe"]["corpus"] == "./text.txt"


def test_info_shows_control_characters(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a checkpoint from elsewhere can write to the terminal what it likes."""
    name = "a\x1b[31mb.txt"
    (desk / "text.txt").rename(desk / name)
    assert charlm("train", "recipe.yaml", "--set", 'corpus="./a\\e[31mb.txt"', "--out", "run", "-q", "--max-steps", 1).code == 0
    shown = charlm("info", "run").text
    assert "\x1b" not in shown and "a\\x1b[31mb.txt" in shown


def test_every_key_is_one_line(charlm):
    """Failing would mean that a line end inside a field's sentence is printed as an escape."""
    assert "\\n" not in charlm("recipe", "keys").text
