"""A checkpoint or a run's folder from a stranger: charlm reads no other text than the one that was trained on."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

SECRET = "the private text of somebody, without any hidden meaning\n" * 3
"""Characters that the model knows."""


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """An empty cache."""
    folder = tmp_path_factory.mktemp("own") / "cache"
    monkeypatch.setenv("CHARLM_CACHE", str(folder))
    return folder


@pytest.fixture
def gift(trained, desk, own_cache):
    """``gift("../x", bytes=…, sha256=…)``: a run's folder whose checkpoint names that text; by default of SECRET's size."""

    def make(corpus, *, config=None, **recorded):
        from charlm import checkpoint
        from charlm.checkpoint import Checkpoint

        folder = desk / "gift"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        stored = checkpoint.load(trained / "run" / "best.safetensors")
        claimed = {**stored.corpus, "bytes": len(SECRET), "sha256": "0" * 64, **recorded}
        recipe = stored.recipe.model_copy(update={"corpus": corpus})
        changed = Checkpoint(recipe, stored.vocabulary, claimed, stored.resolved, stored.progress, stored.weights)
        checkpoint.save(folder / "best.safetensors", changed)
        if config is not None:
            (folder / "config.yaml").write_text(f"corpus: {config}\n", encoding="utf-8")
        return folder

    return make


@pytest.fixture
def secret(tmp_path_factory):
    """A private file outside of every folder of the run."""
    path = tmp_path_factory.mktemp("home") / "secret.txt"
    path.write_text(SECRET, encoding="utf-8")
    return path


def kept(cache: Path) -> list[str]:
    return [str(path) for path in cache.rglob("*") if path.is_file()]


def assert_nothing_came_out(done, cache):
    assert done.code in (1, 2), done.err
    assert done.out == b""
    assert "private" not in done.err and "Traceback" not in done.err
    assert hashlib.sha256(SECRET.encode()).hexdigest()[:12] not in done.err
    assert "FILE" in done.err, "the user is not told what to do"
    assert kept(cache) == []


@pytest.mark.parametrize("form", ["absolute", "~", "..", "glob", "glob without /"])
def test_a_checkpoint_that_names_other_folders_is_refused(charlm, gift, secret, own_cache, desk, monkeypatch, form):
    """If this fails, a stranger's checkpoint makes charlm read a private file, even one whose sha256 he knows."""
    monkeypatch.setenv("HOME", str(secret.parent))
    shutil.copy(secret, desk / "secret.txt")
    name = {
        "absolute": str(secret),
        "~": "~/secret.txt",
        "..": "../secret.txt",
        "glob": "./s*.txt",
        "glob without /": "secre*",
    }[form]
    claims = {"bytes": len(SECRET), "sha256": hashlib.sha256(SECRET.encode()).hexdigest()}
    for recorded in ({}, claims):
        done = charlm("eval", "perplexity", gift(name, **recorded))
        assert_nothing_came_out(done, own_cache)
        assert done.code == 2


@pytest.mark.parametrize("content", [SECRET.encode(), SECRET.encode()[:-1], SECRET.encode()[:-2] + b"\xff\xfe"])
def test_a_config_that_names_a_private_file_gets_nothing(charlm, gift, secret, own_cache, content):
    """If this fails, a file beside a stranger's checkpoint makes charlm copy, score or show a private text."""
    secret.write_bytes(content)
    done = charlm("eval", "perplexity", gift("./secret.txt", config=secret))
    assert_nothing_came_out(done, own_cache)
    assert "0xFF" not in done.err


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_a_config_that_names_a_private_folder_gets_nothing(charlm, gift, secret, own_cache, pattern):
    """If this fails, a private folder is copied into the cache, a text file after the other."""
    (secret.parent / "more.txt").write_text(SECRET, encoding="utf-8")
    config = secret.parent / pattern if pattern else secret.parent
    assert_nothing_came_out(charlm("eval", "perplexity", gift("./folder/", config=config)), own_cache)
    two = 2 * len(SECRET)
    assert_nothing_came_out(charlm("eval", "perplexity", gift("./folder/", config=config, bytes=two)), own_cache)


def test_the_right_text_is_found_through_a_config(charlm, gift, secret):
    """If this fails, a user's own run cannot be evaluated from another folder."""
    claims = {"bytes": len(SECRET), "sha256": hashlib.sha256(SECRET.encode()).hexdigest()}
    done = charlm("eval", "perplexity", gift("./secret.txt", config=secret, **claims), "--split", "train", "--json")
    assert (done.code, done.record["sha256"]) == (0, claims["sha256"]), done.err


def test_a_config_is_not_read_through_a_link(charlm, gift, secret, own_cache):
    """If this fails, pieces of any file appear in the message that it is not a recipe."""
    folder = gift("./secret.txt")
    (folder / "config.yaml").symlink_to(secret)
    assert_nothing_came_out(charlm("eval", "perplexity", folder), own_cache)


@pytest.mark.parametrize("what", ["fifo", "device", "link to a device", "link", "kernel"])
def test_what_is_no_ordinary_file_is_not_read(charlm, gift, secret, own_cache, what):
    """If this fails, a stranger's folder makes charlm wait for ever, or read a device."""
    folder = gift("./text.dat", config={"device": "/dev/zero", "kernel": "/proc/kmsg"}.get(what))
    if what == "fifo":
        os.mkfifo(folder / "text.dat")
    elif what.startswith("link"):
        (folder / "text.dat").symlink_to(secret if what == "link" else "/dev/zero")
    assert_nothing_came_out(charlm("eval", "perplexity", folder), own_cache)


def test_validation_files_are_guarded_too(charlm, gift, secret, own_cache, desk):
    """If this fails, a private file is read as the validation text of a card that everybody has."""
    folder = gift("./text.txt", config=f"hello\ndata: {{split: {{validation: {secret}}}}}")
    assert_nothing_came_out(charlm("eval", "perplexity", folder), own_cache)


def test_a_resumed_checkpoint_cannot_name_a_validation_file(charlm, desk, secret, own_cache):
    """If this fails, resuming a stranger's checkpoint copies a private file into the cache."""
    from dataclasses import replace

    from charlm import checkpoint
    from charlm.config import SplitFiles

    assert charlm("train", "recipe.yaml", "--out", "run", "--max-steps", 2, "-q").code == 0
    shutil.rmtree(own_cache)
    for name in ("last", "best"):
        stored = checkpoint.load(desk / "run" / f"{name}.safetensors")
        data = stored.recipe.data.model_copy(update={"split": SplitFiles(validation=str(secret))})
        changed = replace(stored, recipe=stored.recipe.model_copy(update={"data": data}))
        checkpoint.save(desk / "run" / f"{name}.safetensors", changed)
    done = charlm("train", "recipe.yaml", "--out", "run", "--resume", "must", "--max-steps", 3, "-q")
    assert done.code != 0
    assert "not the text" in done.err
    assert kept(own_cache) == []


def test_a_run_whose_recipe_names_a_text_above_it_keeps_only_the_name(charlm, desk):
    """If this fails, checkpoints name folders that another machine does not have, and that are refused there."""
    (desk / "recipes").mkdir()
    recipe = (desk / "recipe.yaml").read_text(encoding="utf-8").replace("./text.txt", "../text.txt")
    (desk / "recipes" / "r.yaml").write_text(recipe, encoding="utf-8")
    assert charlm("train", "recipes/r.yaml", "--out", "run", "--max-steps", 2, "-q").code == 0
    assert charlm("info", "run", "--json").record["recipe"]["corpus"] == "./text.txt"
    assert charlm("eval", "perplexity", "run").code == 0


def test_a_part_that_is_empty_names_the_others(charlm, desk):
    """If this fails, a user whose recipe has no validation part is not told how to evaluate."""
    set_ = ("--set", "data.split=[1.0, 0.0, 0.0]")
    assert charlm("train", "recipe.yaml", "--out", "run", *set_, "--max-steps", 2, "-q").code == 0
    done = charlm("eval", "perplexity", "run")
    assert done.code == 2
    assert "--split train" in done.err
    assert charlm("eval", "perplexity", "run", "--split", "train").code == 0
