"""Checkpoints of every format that a release has written still open. Each format has a fixture, made once and kept for ever.

``format-1``: 20 of 30 steps of a GRU of 8 units, averaged weights, engine `reference`; its recipe has the old keys' names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.checkpoint import describe, load
from charlm.config import RENAMED, load_recipe, validate_recipe, with_present_names
from charlm.errors import RecipeError

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """The run of format 1, with its text."""
    return Path(shutil.copytree(FIXTURES / "format-1", tmp_path / "run"))


def test_a_checkpoint_of_format_1_opens(old_run: Path) -> None:
    """If this fails, everybody's older models are lost."""
    assert b'"format": 1' in (old_run / "last.safetensors").read_bytes()[:4096].replace(b"\\", b"")
    stored = load(old_run / "last.safetensors")
    train = stored.recipe.train
    assert (train.seq_length, train.total_steps, train.batching) == (6, 30, "streams")
    assert stored.recipe.reported is not None and stored.recipe.reported.value == 2.0
    assert stored.progress["step"] == 20 and stored.average and stored.optimizer
    assert describe(old_run / "best.safetensors")["recipe"]["train"]["seq_length"] == 6


def test_its_model_predicts_as_it_did(charlm_run: Callable[..., Any], old_run: Path) -> None:
    """If this fails, an older model opens as another model. (The number is what the charlm that wrote it measured.)"""
    done = charlm_run("eval", "perplexity", old_run / "last.safetensors", old_run / "text.txt", "--json")
    assert json.loads(done)["nats_per_character"] == pytest.approx(2.7189923, abs=2e-6)


def test_its_run_resumes_and_finds_its_text(charlm_run: Callable[..., Any], old_run: Path) -> None:
    """If this fails, a run of an older charlm cannot be resumed, or cannot be measured on its own text."""
    recipe = old_run.parent / "recipe.yaml"
    values = with_present_names(load_recipe(str(old_run / "config.yaml"), stored=True).recipe.model_dump(mode="json"))
    recipe.write_text(json.dumps({**values, "corpus": "./run/text.txt"}), encoding="utf-8")
    done = json.loads(charlm_run("train", recipe, "--out", old_run, "--resume", "must", "--json", "-q"))
    assert (done["resumed_from"], done["step"], done["stopped_because"]) == (20, 30, "finished")
    assert json.loads(charlm_run("eval", "perplexity", old_run, "--json"))["split"] == "validation"


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_and_the_new_one_named(old: str, tmp_path: Path) -> None:
    """If this fails, an older recipe says only that a key is unknown, or is silently trained with defaults."""
    section, _, name = old.rpartition(".")
    with pytest.raises(RecipeError, match=f"now called {RENAMED[old]}"):
        validate_recipe({"corpus": "x", **({section: {name: 8}} if section else {name: 8})}, "x.yaml")
    if section:
        (tmp_path / "x.yaml").write_text("corpus: x\n", encoding="utf-8")
        with pytest.raises(RecipeError, match=f"now called {RENAMED[old]}"):
            load_recipe(str(tmp_path / "x.yaml"), [f"{old}=8"])


@pytest.fixture
def charlm_run(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., str]:
    """Run a command that must succeed; returns what it wrote to stdout."""
    from charlm.cli.app import run

    def call(*arguments: str | Path) -> str:
        capfdbinary.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        assert code == 0, err
        return out.decode()

    return call
