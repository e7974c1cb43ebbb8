"""``charlm corpus``: the list of texts, their statistics, and your own text under a name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.data import cards, corpora
from charlm.data.cards import Card
from charlm.data.sources import SourceFile, Sources

SHIPPED = ("code", "enwik8", "hello", "latex", "ptb", "shakespeare", "text8", "time-machine")


def test_list_names_every_card(charlm: Callable[..., Any]) -> None:
    """Failing would mean that a shipped corpus cannot be discovered."""
    done = charlm("corpus", "list")
    assert done.code == 0
    assert all(name in done.text for name in SHIPPED)
    listed = charlm("corpus", "list", "--json").record
    assert listed["text8"]["bytes"] == 100_000_000
    assert listed["text8"]["addresses"][0] == "https://mattmahoney.net/dc/text8.zip"


def test_a_narrow_terminal_gets_the_description_below_the_facts(
    charlm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that descriptions are broken into a column of single words in a common terminal."""
    monkeypatch.setattr("charlm.cli.corpus.columns", lambda: 80)
    lines = charlm("corpus", "list").text.splitlines()
    assert lines[0].split() == ["name", "bytes", "found"]
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == list(SHIPPED)
    described = [line for line in lines if line.startswith("    ")]
    assert max(map(len, described)) <= 80 and "Licence: public domain" in " ".join(map(str.strip, described))


def test_show_names_the_addresses(charlm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a user cannot see where a text comes from, or that counts of a split are shown rounded."""
    content = "a card's text\n" * 200
    card = Card(
        description="a text",
        licence="public domain",
        urls=["https://one.test/text.txt", "https://two.test/text.txt"],
        files=["text.txt"],
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        bytes=len(content),
        split=[1234, 500, 500],
    )
    monkeypatch.setattr(cards, "cards", lambda: {"mine": card})
    monkeypatch.setattr(corpora, "cards", lambda: {"mine": card})
    monkeypatch.setenv("CHARLM_CORPORA", str(tmp_path))
    (tmp_path / "text.txt").write_text(content, encoding="utf-8")
    shown = charlm("corpus", "show", "mine").text
    assert "addresses:   https://one.test/text.txt\n             https://two.test/text.txt\n" in shown
    assert "(1,234, 500, 500)" in shown


def test_fetch_tells_which_address_failed(charlm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a host with a changed text stays unnoticed."""
    found = Sources("mine", (SourceFile("text", tmp_path / "text"),), notices=("no download from https://one.test: HTTP 404",))
    monkeypatch.setattr(corpora, "locate", lambda *_, **__: found)
    done = charlm("corpus", "fetch", "mine")
    assert done.text.strip() == str(tmp_path / "text")
    assert "no download from https://one.test: HTTP 404" in done.err


def test_show_names_invisible_characters(charlm: Callable[..., Any], tmp_path: Path) -> None:
    """Failing would mean that invisible characters are not shown, or that offsets differ from those in training."""
    path = tmp_path / "odd.txt"
    path.write_text("abcd " * 200 + "\u200b\x1b", encoding="utf-8")
    done = charlm("corpus", "show", str(path), "--json")
    assert done.code == 0
    assert done.record["characters"] == 1002
    shown = charlm("corpus", "show", str(path)).text
    assert "U+200B" in shown and "U+001B" in shown
    assert "\x1b" not in shown and "\u200b" not in shown
    assert "train 0–901" in shown
    assert "gzip" in shown and "xz" in shown


def test_an_added_text_trains_under_its_name(
    charlm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that the added card is not found, or that a change of the file is not noticed."""
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "mine.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40, encoding="utf-8")
    assert charlm("corpus", "add", "my-text", str(text)).code == 0
    assert "my-text" in charlm("corpus", "list").text
    Path("r.yaml").write_text(
        "corpus: my-text\nmodel: {hidden: 8}\ntrain: {batch: 2, seq_length: 8, total_steps: 3}\n", encoding="utf-8"
    )
    assert charlm("train", "r.yaml", "--out", "run", "-q").code == 0
    assert charlm("eval", "perplexity", "run").code == 0

    text.write_text("something else entirely\n" * 40, encoding="utf-8")
    changed = charlm("eval", "perplexity", "run")
    assert changed.code != 0
    assert "sha256" in changed.err


@pytest.mark.parametrize("name", ["My Text", "ümlaut", "a/b", "shakespeare"])
def test_an_invalid_name_is_refused(charlm: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """Failing would mean that a card replaces a shipped one, or has a name that a recipe cannot contain."""
    path = tmp_path / "x.txt"
    path.write_text("some text", encoding="utf-8")
    assert charlm("corpus", "add", name, str(path)).code == 2


def test_a_card_is_overwritten_only_on_request(
    charlm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that `corpus add` replaces a card unasked, or does not name the flag that replaces it."""
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "data"))
    path = tmp_path / "x.txt"
    path.write_text("some text", encoding="utf-8")
    assert charlm("corpus", "add", "my-text", str(path)).code == 0
    refused = charlm("corpus", "add", "my-text", str(path))
    assert refused.code == 2 and "--force" in refused.err
    assert charlm("corpus", "add", "my-text", str(path), "--force").code == 0


def test_an_unknown_corpus_names_the_closest(charlm: Callable[..., Any]) -> None:
    """Failing would mean that the error for a misspelt name has no suggestion."""
    done = charlm("corpus", "show", "shakspeare")
    assert done.code == 2
    assert "shakespeare" in done.err


def test_only_an_added_corpus_can_be_removed(
    charlm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a name cannot be taken back, or that removing it deletes the user's text."""
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "data"))
    path = tmp_path / "x.txt"
    path.write_text("some text", encoding="utf-8")
    assert charlm("corpus", "add", "my-text", str(path)).code == 0
    for name in ("shakespeare", "my-txt", "../corpora/my-text", ""):
        assert charlm("corpus", "remove", name).code == 2
    assert charlm("corpus", "remove", "my-text").code == 0
    assert "my-text" not in charlm("corpus", "list").text and path.read_text("utf-8") == "some text"
    assert charlm("corpus", "add", "my-text", str(path)).code == 0
