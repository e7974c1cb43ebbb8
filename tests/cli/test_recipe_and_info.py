"""``charlm recipe`` and ``charlm info``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from charlm.config import field_names, load_recipe
from charlm.config.keys import PLANNED
from charlm.resources import shipped_files


def test_every_recipe_is_listed_with_its_result(charlm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a shipped recipe is not listed whole at 80 columns, or without result, time or description."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = charlm("recipe", "list").text.splitlines()
    assert max(map(len, lines)) <= 80
    for name in shipped_files("configs"):
        (number,) = [number for number, line in enumerate(lines) if line.split()[:1] == [name]]
        if load_recipe(name).recipe.reported is None:
            assert lines[number].endswith("B  not measured yet")
        else:
            assert any(word in lines[number] for word in ("perplexity", "nats", "bits"))
            minutes = lines[number].removeprefix(name).removeprefix(" " * 2).replace("< ", "").split()[0]
            assert float(minutes) > 0
        assert lines[number + 1].startswith("    ") and len(lines[number + 1]) > 20


@pytest.mark.parametrize("name", sorted(shipped_files("configs")))
def test_show_prints_the_start_of_a_recipe_of_your_own(charlm: Callable[..., Any], desk: Path, name: str) -> None:
    """Failing would mean that a copied recipe has other values, the author's result, or no schema."""
    shown = charlm("recipe", "show", name).text
    (desk / "mine.yaml").write_text(shown, encoding="utf-8")
    assert load_recipe("mine.yaml").recipe == load_recipe(name).recipe.model_copy(update={"reported": None})
    first, *rest = shown.splitlines()
    schema = Path(unquote(urlsplit(first.partition("$schema=")[2]).path))
    assert schema.is_file() and "corpus" in json.loads(schema.read_text(encoding="utf-8"))["properties"]
    added = set(rest) - set(shipped_files("configs")[name].read_text(encoding="utf-8").splitlines())
    pointer = "# `charlm recipe list` shows the result of the shipped recipe."
    assert added == ({pointer} if load_recipe(name).recipe.reported else set())


def _paragraphs(text: str) -> dict[str, str]:
    """Key → its paragraph on one line, from the output of ``charlm recipe keys``."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in text.partition("\n\n")[0].splitlines():
        name = line.split(" ")[0]
        key = name or key
        found.setdefault(key, []).append(line.removeprefix(name).strip())
    return {key: " ".join(lines) for key, lines in found.items()}


def test_keys_lists_every_key_with_its_values_and_default(charlm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a key has no help, or that its help does not say which values it takes."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = charlm("recipe", "keys").text
    assert max(map(len, shown.splitlines())) <= 80
    found = _paragraphs(shown)
    assert list(found) == list(field_names())
    assert found["model.hidden"].endswith("integer, 1 to 1,000,000; default: 512 (planned); fixed")
    assert found["train.lr"] == "Peak learning rate. number, above 0 to 1,000,000; default: 0.002 (planned)"
    assert found["model.dropout"].endswith("number, 0 to below 1; default: 0.3 (planned)")
    assert "constant | cosine | linear" in found["train.schedule"]
    assert found["train.clip"].endswith("number or null, above 0 to 1e12; default: 1")
    assert found["model.embedding"].endswith("default: `hidden`; fixed") and "Unset" not in found["model.embedding"]
    assert found["corpus"].endswith("string; required; fixed")
    assert found["reported.value"].endswith("number, 1e-6 to 1e12; required in reported")
    assert "planned: if the recipe gives no length" in shown and "fixed:   cannot change" in shown


def test_keys_can_be_filtered(charlm: Callable[..., Any]) -> None:
    """Failing would mean that other keys are listed too, or that the legend explains words that do not occur."""
    assert all(key.startswith("train.") for key in _paragraphs(charlm("recipe", "keys", "train").text))
    shown = charlm("recipe", "keys", "model.engine").text
    assert list(_paragraphs(shown)) == ["model.engine"] and "planned" not in shown and "fixed" not in shown


def test_keys_as_json(charlm: Callable[..., Any]) -> None:
    """Failing would mean that a program cannot read the allowed values of a key."""
    written = charlm("recipe", "keys", "--json").text
    assert written.count("\n") == 1
    assert [entry["key"] for entry in json.loads(written)] == list(field_names())
    (lr,) = json.loads(charlm("recipe", "keys", "train.lr", "--json").text)
    assert lr == {
        "key": "train.lr", "type": "number", "allowed": None, "minimum": 0, "maximum": 1e6, "exclusive_minimum": True,
        "exclusive_maximum": False, "required": False, "default": 0.002, "planned": True, "fixed": False,
        "help": "Peak learning rate.",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("train.rl", "did you mean train.lr?"),
        ("trian", "did you mean train?"),
        ("learning_rate", "did you mean train.lr?"),
        ("train.steps", "is now called train.seq_length"),
    ],
)
def test_an_unknown_prefix_is_refused(charlm: Callable[..., Any], prefix: str, message: str) -> None:
    """Failing would mean that a misspelt key prints an empty list."""
    done = charlm("recipe", "keys", prefix)
    assert done.code == 2 and message in done.err and not done.out


def test_the_planned_keys_are_those_that_training_chooses(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that `recipe keys` gives a default that a run without a length does not use."""
    assert charlm("train", "text.txt", "--out", "run", "--max-steps", 1, "-q").code == 0
    trained = charlm("info", "run/last.safetensors", "--json").record["recipe"]
    chosen = {
        key["key"]
        for key in json.loads(charlm("recipe", "keys", "--json").text)
        if "." in key["key"] and not key["required"]
        and (trained[key["key"].split(".")[0]] or {}).get(key["key"].split(".")[1], key["default"]) != key["default"]
    }  # fmt: skip
    same_here = {"train.batch"}  # the default suits a short text
    assert chosen == PLANNED - same_here


def test_schema_is_json(charlm: Callable[..., Any]) -> None:
    """Failing would mean that editors cannot read the schema."""
    assert "corpus" in json.loads(charlm("recipe", "schema").text)["properties"]


def test_info_tells_what_is_inside_without_its_path(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that `info` does not show what a checkpoint contains."""
    assert charlm("train", "recipe.yaml", "--out", "run", "-q").code == 0
    shown = charlm("info", "run/last.safetensors").text
    assert "step 20" in shown and "full training state (resumable)" in shown and "layers.0.weight_hh" in shown
    assert "weights only" in charlm("info", "run").text
    record = charlm("info", "run", "--json").record
    assert record["tensors"]["model.layers.0.weight_hh"] == [32, 8]
    assert record["recipe"]["corpus"] == "./text.txt"


def test_info_shows_control_characters(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a checkpoint from elsewhere can send escape sequences to the terminal."""
    name = "a\x1b[31mb.txt"
    (desk / "text.txt").rename(desk / name)
    assert charlm("train", "recipe.yaml", "--set", 'corpus="./a\\e[31mb.txt"', "--out", "run", "-q", "--max-steps", 1).code == 0
    shown = charlm("info", "run").text
    assert "\x1b" not in shown and "a\\x1b[31mb.txt" in shown
