"""``charlm cache``: what the cache holds, and the removal of encoded texts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cache(charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two encoded texts: ``text.txt``, used now, and ``old.txt``, used 40 days ago."""
    monkeypatch.setenv("CHARLM_CACHE", str(desk / "cache"))
    (desk / "old.txt").write_text("once upon a time\n" * 50, encoding="utf-8")
    assert charlm("corpus", "show", "./old.txt").code == 0
    (entry,) = (desk / "cache" / "encodings").iterdir()
    then = time.time() - 40 * 24 * 3600
    os.utime(entry, (then, then))
    assert charlm("corpus", "show", "./text.txt").code == 0
    return desk / "cache"


def _entries(cache: Path) -> int:
    return len(list((cache / "encodings").iterdir()))


def test_show_lists_the_texts_and_removes_nothing(charlm: Callable[..., Any], cache: Path) -> None:
    """Failing would mean that the size of the cache is wrong, or that looking at it empties it."""
    shown = charlm("cache", "show", "--json").record
    old, young = shown["texts"]
    assert (old["name"], old["characters"], young["name"], young["characters"]) == ("old.txt", 850, "text.txt", 3000)
    files = [path for path in (cache / "encodings").rglob("*") if path.is_file()]
    assert shown["bytes"] == old["bytes"] + young["bytes"] == sum(path.stat().st_size for path in files)
    done = charlm("cache")
    assert done.code == 0 and "old.txt" in done.text and "40 days ago" in done.text and "2 encoded texts" in done.text
    assert [text["name"] for text in charlm("cache", "show", "--older-than", "30d", "--json").record["texts"]] == ["old.txt"]
    assert _entries(cache) == 2


def test_prune_removes_old_texts_or_all(charlm: Callable[..., Any], cache: Path) -> None:
    """Failing would mean that a text in daily use is removed, or that the cache cannot be emptied."""
    done = charlm("cache", "prune", "--older-than", "30d")
    assert done.code == 0 and "removed 1 encoded text," in done.text and _entries(cache) == 1
    assert charlm("cache", "prune", "--json").record["removed"] == 1 and _entries(cache) == 0
    assert charlm("cache", "prune").code == 0 and charlm("cache").code == 0
    assert charlm("train", "recipe.yaml", "-q", "--max-steps", "1").code == 0, "a removed text is not encoded again"


@pytest.mark.parametrize("age", ["30", "d", "-3d", "1y", ""])
def test_an_age_without_a_unit_is_refused(charlm: Callable[..., Any], cache: Path, age: str) -> None:
    """Failing would mean that a mistyped age empties the cache."""
    refused = charlm("cache", "prune", f"--older-than={age}")
    assert refused.code == 2 and "--older-than" in refused.err and _entries(cache) == 2
