"""``charlm init``: a commented recipe that trains as the text itself would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.yaml_text import parse_yaml

FEW_STEPS = ("--max-steps", "3", "-q")
SMALL = ("--set", "model.hidden=8", "--set", "train.threads=1", "--set", "train.precision=fp32")


def _steps(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["nats"] for line in map(json.loads, lines) if line["kind"] == "step"]


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_the_recipe_trains_as_the_text_does(charlm: Callable[..., Any], desk: Path, cell: str) -> None:
    """Failing would mean that the printed values are not those that `charlm train TEXT` chooses."""
    overrides = (*SMALL, "--set", f"model.cell={cell}")
    made = charlm("init", "text.txt", *overrides)
    assert made.code == 0 and made.err == ""
    (desk / "mine.yaml").write_bytes(made.out)
    assert charlm("train", "mine.yaml", "--out", "by-recipe", *FEW_STEPS).code == 0
    assert charlm("train", "text.txt", "--out", "by-text", *overrides, *FEW_STEPS).code == 0
    assert _steps(desk / "by-recipe") == _steps(desk / "by-text")
    recipes = [parse_yaml((desk / run / "config.yaml").read_text("utf-8"), run) for run in ("by-recipe", "by-text")]
    assert [recipe["data"].pop("split") for recipe in recipes] == [[0.9, 0.05, 0.05], None]
    assert recipes[0] == recipes[1]


def test_every_key_has_a_comment(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a beginner finds a key without an explanation, or a key that was set is missing."""
    text = charlm("init", "text.txt", "--set", "train.gamma=0.5", "--set", "sample.prompt=a: #b").text
    keys = [line for line in text.splitlines() if line.startswith("  ")]
    assert all("  # " in line for line in keys)
    assert "  gamma: 0.5  # factor on the learning rate" in text
    assert parse_yaml(text, "it")["sample"]["prompt"] == "a: #b"
    assert parse_yaml(text, "it")["train"]["epochs"] == 40 and "lr: 0.005" in text


def test_a_list_of_short_lines_gets_a_hint(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a user with a list of names does not learn of data.records, or that prose gets the hint."""
    (desk / "names.txt").write_text("ann\nbob\ncyril\ndan\n" * 30, encoding="utf-8")
    hint = "# records: line"
    made = charlm("init", "names.txt").text
    assert hint in made and "records" not in parse_yaml(made, "it")["data"]
    assert hint not in charlm("init", "text.txt").text
    asked = charlm("init", "names.txt", "--set", "data.records=line").text
    assert hint not in asked and parse_yaml(asked, "it")["data"]["records"] == "line"


def test_a_name_that_yaml_would_misread_is_quoted(charlm: Callable[..., Any], desk: Path, english: Callable[..., str]) -> None:
    """Failing would mean that an odd file name makes a recipe that names another file."""
    name = "no: #1, it's [mine]" + " long" * 40 + ".txt"
    (desk / name).write_text(english(3000), encoding="utf-8")
    assert parse_yaml(charlm("init", f"./{name}").text, "it")["corpus"] == f"./{name}"


def test_a_corpus_keeps_the_split_of_its_card(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a recipe for a corpus silently changes what is validated on."""
    made = charlm("init", "hello")
    recipe = parse_yaml(made.text, "it")
    assert made.code == 0 and recipe["corpus"] == "hello" and "data" not in recipe


def test_a_recipe_is_not_a_text(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a mistaken argument gives a recipe about a recipe."""
    refused = charlm("init", "recipe.yaml")
    assert refused.code == 2 and "recipe already" in refused.err
    assert charlm("init", "missing.txt").code == 2
