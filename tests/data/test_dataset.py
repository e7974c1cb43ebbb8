"""Datasets: boundaries of the parts, vocabulary, unknown characters, notices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charlm.data.dataset import Dataset, Text, open_dataset, open_text
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CharlmError, CorpusError, UsageError

TEXT = "".join(chr(97 + (i * i + i // 7) % 20) for i in range(1000))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A file of 1,000 letters."""
    path = tmp_path / "letters.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def opened(recipe_for: Callable[..., Any]) -> Callable[..., Dataset]:
    """``opened(path, "data.unit=byte", …)``: that corpus as a dataset."""

    def open_(path: Path, *overrides: str, **options: Any) -> Dataset:
        return open_dataset(recipe_for(path, *overrides), **options)

    return open_


def _read(text: Text, vocabulary: Vocabulary) -> str:
    return vocabulary.decode(text.ids(0, len(text)).tolist())


@pytest.mark.parametrize(
    ("split", "stops"),
    [
        ("[0.8, 0.1, 0.1]", (800, 900, 1000)),
        ("[0.5, 0.25, 0.0]", (500, 750, 750)),
        ("[600, 300, 50]", (600, 900, 950)),
        ("[1.0, 0.0, 0.0]", (1000, 1000, 1000)),
        ("null", (900, 950, 1000)),
    ],
)
def test_splits_by_fraction_and_count(
    corpus: Path, opened: Callable[..., Dataset], split: str, stops: tuple[int, int, int]
) -> None:
    """If this fails, a model is validated on characters that it was trained on, or on other characters than the run reports."""
    found = opened(corpus, f"data.split={split}")
    train, validation, test = stops
    assert found.splits == {"train": (0, train), "validation": (train, validation), "test": (validation, test)}
    for name, (start, stop) in found.splits.items():
        if stop > start:
            assert _read(found.text(name), found.vocabulary) == TEXT[start:stop]
    unused = [notice for notice in found.notices if "are not used" in notice]
    assert unused == (
        [f"the last {1000 - test} characters are not used: data.split does not cover them"] if test < 1000 else []
    )


def test_splits_by_files(tmp_path: Path, corpus: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, separate validation and test files are mixed into the training text."""
    (tmp_path / "v.txt").write_text("abcabc!", encoding="utf-8")
    (tmp_path / "t.txt").write_text("cba", encoding="utf-8")
    found = opened(corpus, "data.split={validation: v.txt, test: ./t.txt}")
    assert found.splits == {"train": (0, 1000), "validation": (1000, 1007), "test": (1007, 1010)}
    assert _read(found.text("train"), found.vocabulary) == TEXT
    assert _read(found.text("validation"), found.vocabulary) == "abcabc\ufffd"
    assert _read(found.text("test"), found.vocabulary) == "cba"
    assert found.unknown == {"train": 0, "validation": 1, "test": 0}
    only_test = opened(corpus, "data.split={test: t.txt}")
    assert only_test.splits == {"train": (0, 1000), "validation": (1000, 1000), "test": (1000, 1003)}


def test_a_part_that_is_empty_cannot_be_scored(corpus: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, scoring an empty part divides by zero."""
    with pytest.raises(UsageError, match=r"the test part of letters\.txt has 0 characters.*data\.split"):
        opened(corpus, "data.split=[0.9, 0.1, 0]").text("test")


@pytest.mark.parametrize("split", ["[2000, 1, 0]", "[0.0001, 0.5, 0.4]"])
def test_impossible_splits(corpus: Path, opened: Callable[..., Dataset], split: str) -> None:
    """If this fails, training begins on nothing."""
    with pytest.raises(UsageError) as caught:
        opened(corpus, f"data.split={split}")
    assert "split" in str(caught.value)


@pytest.mark.parametrize("content", ["", "x"])
def test_a_text_needs_two_characters(tmp_path: Path, opened: Callable[..., Dataset], content: str) -> None:
    """If this fails, training starts on a text with nothing to predict."""
    path = tmp_path / "short.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CharlmError, match=r"short\.txt"):
        opened(path)


def test_the_vocabulary_comes_from_the_training_part(tmp_path: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, the vocabulary has characters of the validation text, and perplexity is too low."""
    path = tmp_path / "t.txt"
    path.write_text("ab" * 40 + "abXbYaXbab" + "abcZababab", encoding="utf-8")
    found = opened(path)
    assert found.vocabulary.symbols == (97, 98)
    assert found.unknown == {"train": 0, "validation": 3, "test": 2}
    assert found.text("validation").ids(0, 10).tolist() == [1, 2, 0, 2, 0, 1, 0, 2, 1, 2]


def test_unknown_error_refuses_and_names_the_characters(tmp_path: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, `unknown: error` lets unknown characters through, or does not say which they are."""
    path = tmp_path / "t.txt"
    path.write_text("ab" * 40 + "abXbYaXbab" + "ababababab", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"'X' \(U\+0058\), 'Y' \(U\+0059\)") as caught:
        opened(path, "data.unknown=error")
    assert "data.unknown: map" in str(caught.value)
    path.write_text("ab" * 50, encoding="utf-8")
    assert opened(path, "data.unknown=error").unknown == {"train": 0, "validation": 0, "test": 0}


def test_min_count_makes_rare_characters_unknown(tmp_path: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, characters below min_count stay known, or are not counted as unknown."""
    path = tmp_path / "t.txt"
    path.write_text("ab" * 38 + "cccd" + "ab" * 10, encoding="utf-8")
    found = opened(path, "data.min_count=3")
    assert found.vocabulary.symbols == (97, 98, 99)
    assert found.unknown["train"] == 1
    assert found.text("train").ids(76, 80).tolist() == [3, 3, 3, 0]


def test_characters_seen_once_are_marked(tmp_path: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, <unk> is trained on frequent characters or on none."""
    path = tmp_path / "t.txt"
    path.write_text("ab" * 39 + "cd" + "ccddabababababababab", encoding="utf-8")
    train = opened(path).text("train")
    assert np.flatnonzero(train.occurs_once(0, len(train))).tolist() == [78, 79]


def test_bytes_have_no_unknowns(tmp_path: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, `unit: byte` cannot read any file, or invents unknown bytes."""
    path = tmp_path / "t.bin"
    data = bytes(range(256)) * 2 + b"\xff\xfe\r\n" * 50
    path.write_bytes(data)
    found = opened(path, "data.unit=byte", "data.newlines=keep")
    assert len(found.vocabulary) == 256
    assert set(found.unknown.values()) == {0}
    ids = np.concatenate([found.text(name).ids(0, 10**6) for name in ("train", "validation", "test")])
    assert bytes(ids.tolist()) == data
    assert not found.seen_once.any()


def test_notices_say_how_reading_changed_the_text(tmp_path: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, line ends are converted without a notice."""
    path = tmp_path / "t.txt"
    path.write_bytes(b"ab\r\ncd\r\n" * 20 + b"ab\ncd\r" * 5)
    found = opened(path)
    assert any("converted 45 CRLF or CR line ends to LF" in notice for notice in found.notices)
    assert ord("\r") not in found.vocabulary.symbols
    kept = opened(path, "data.newlines=keep")
    assert kept.notices == ()
    assert ord("\r") in kept.vocabulary.symbols


def test_the_fingerprint_identifies_the_text(corpus: Path, opened: Callable[..., Dataset], tmp_path: Path) -> None:
    """If this fails, a checkpoint cannot identify its text, or reveals its path."""
    found = opened(corpus).fingerprint()
    assert found["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (found["name"], found["bytes"], found["characters"]) == ("letters.txt", 1000, 1000)
    assert found["splits"] == {"train": [0, 800], "validation": [800, 900], "test": [900, 1000]}
    assert str(tmp_path) not in str(found)
    corpus.write_text(TEXT[:-1] + "!", encoding="utf-8")
    assert opened(corpus).fingerprint()["sha256"] != found["sha256"], "a changed file is read from the cache"


def test_a_given_vocabulary_is_kept_or_grown(corpus: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, a resumed model reads other ids than before, or init adds no new characters."""
    old = Vocabulary("char", (97, 98, 8364))
    kept = opened(corpus, vocabulary=old)
    assert kept.vocabulary is old
    assert kept.unknown["train"] == sum(c not in "ab" for c in TEXT[:800])
    grown = opened(corpus, vocabulary=old, grow=True)
    assert set(grown.vocabulary.symbols) == {ord(c) for c in TEXT[:800]} | {8364}


def test_a_file_is_read_with_the_settings_of_the_model(tmp_path: Path, recipe_for: Callable[..., Any]) -> None:
    """If this fails, a file is read with other settings than the model's corpus."""
    path = tmp_path / "new.txt"
    path.write_bytes("abé\r\na".encode())
    vocabulary = Vocabulary("char", (10, 97, 98))
    section = recipe_for(path).recipe.data
    text, encoded = open_text(str(path), section, "none", vocabulary)
    assert text.ids(0, len(text)).tolist() == [2, 3, 0, 1, 2]
    assert encoded.converted_line_ends == 1
    assert not text.occurs_once(0, len(text)).any()
    with pytest.raises(UsageError, match=r"nowhere\.txt does not exist"):
        open_text(str(tmp_path / "nowhere.txt"), section, "none", vocabulary)
    path.write_text("a", encoding="utf-8")
    with pytest.raises(CorpusError, match="at least two"):
        open_text(str(path), section, "none", vocabulary)


def test_a_vocabulary_without_characters_is_refused(corpus: Path, opened: Callable[..., Dataset]) -> None:
    """If this fails, a `min_count` above every count causes a traceback."""
    with pytest.raises(UsageError, match="min_count"):
        opened(corpus, "data.min_count=5000")
