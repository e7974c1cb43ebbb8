"""Copies are found with their places, as brute force finds them, and form is judged by the documented rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.symbols import Symbols
from charlm.data.vocabulary import Vocabulary
from charlm.errors import UsageError
from charlm.evaluation import form, matches
from charlm.evaluation.matches import NGRAMS
from charlm.evaluation.samples import Novelty, draw, novelty
from charlm.sampling import SamplingParams, sample


def points(text: str) -> Any:
    return np.array([ord(character) for character in text], dtype=np.uint32)


def compare(samples: list[str], training: str, heldout: str | None = None, unit: str = "char") -> Novelty:
    other = Symbols.of_text(heldout, unit) if heldout is not None else None
    return novelty([points(one) for one in samples], Symbols.of_text(training, unit), other, unit)


def longest_by_force(one: str, training: str) -> int:
    """Brute force."""
    return max(
        (stop - start for start in range(len(one)) for stop in range(start + 1, len(one) + 1) if one[start:stop] in training),
        default=0,
    )


def check(samples: list[str], training: str) -> None:
    """Everything that is exact, against brute force."""
    found = compare(samples, training).samples
    for match, one in zip(found.matches, samples, strict=True):
        assert match.length == longest_by_force(one, training)
        if match.length:
            assert one[match.at : match.at + match.length] == training[match.place : match.place + match.length]
    for n in NGRAMS:
        grams = [one[start : start + n] for one in samples for start in range(len(one) - n + 1)]
        expected = sum(gram not in training for gram in grams) / len(grams) if grams else None
        assert found.new[n] == (None if expected is None else pytest.approx(expected))


texts = st.text(alphabet="ab", max_size=90)
pieces = st.lists(st.text(alphabet="ab", min_size=1, max_size=70), min_size=1, max_size=3)


@given(pieces, st.text(alphabet="abc", min_size=1, max_size=120))
def test_matches_are_those_of_brute_force(samples: list[str], training: str) -> None:
    """If this fails, a copy is overlooked, or something is called a copy that is none."""
    check(samples, training)


@given(pieces, texts, st.integers(0, 60), st.integers(1, 80))
def test_copies_are_those_of_brute_force(samples: list[str], training: str, start: int, length: int) -> None:
    """If this fails, long copies, which are found by a search for their length, are cut short."""
    copied = (training + "ab")[start : start + length]
    check([*samples, f"b{copied}a"], training + "ab")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Blocks of seven symbols, and room for three places."""
    monkeypatch.setattr(matches, "_BLOCK", 7)
    monkeypatch.setattr(matches, "_PLACES", 3)
    return monkeypatch


def test_blocks_and_forgotten_places_change_nothing(small: pytest.MonkeyPatch, english: Callable[..., str]) -> None:
    """If this fails, matches over the ends of blocks are lost, or those of which not all places are remembered."""
    training = english(700)
    check([training[100:290] + "x" + training[400:480], "xxx" + training[5:9], english(80, 3)], training)
    check(["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"], "b" + "a" * 60 + "b" * 60)


@pytest.mark.parametrize("bits", [0, 2])
def test_hashes_that_collide_change_nothing(monkeypatch: pytest.MonkeyPatch, english: Callable[..., str], bits: int) -> None:
    """If this fails, equal hashes are taken for equal text, or a copy is missed beside another text of its hash."""
    monkeypatch.setattr(matches, "_mixed", lambda symbols: symbols.astype(np.uint64) & np.uint64((1 << bits) - 1))
    training = english(400)
    check([training[100:170] + "x", "king" + training[30:39], english(60, 3)], training)


def test_a_copied_sample_is_found_with_its_place(english: Callable[..., str]) -> None:
    """If this fails, memorised text is not noticed."""
    training = english(20_000)
    copied = training[12_345:13_345]
    found = compare([english(500, 3), f"☃{copied}☃"], training, english(3000, 5))
    match = found.samples.matches[1]
    assert (match.sample, match.length, match.at) == (1, 1000, 1)
    assert training.index(copied) == match.place
    assert found.samples.matches[0].length < 60
    assert found.heldout is not None
    assert [match.sample for match in found.heldout.matches] == [0, 1]
    assert found.samples.new[50] is not None and found.samples.new[50] < 0.5 < (found.heldout.new[50] or 0)
    assert found.training_characters == 20_000


def test_the_heldout_pieces_have_the_lengths_of_the_samples(english: Callable[..., str]) -> None:
    """If this fails, longer pieces, which have longer matches, are compared with shorter samples."""
    found = compare(["a" * 30, "b" * 50, "c" * 30], english(500), english(400, 2))
    assert found.heldout is not None and (found.heldout.characters, len(found.heldout.matches)) == (110, 3)
    short = compare(["a" * 30, "b" * 50], english(500), "abc")
    assert short.heldout is not None and (short.heldout.characters, len(short.heldout.matches)) == (3, 1)
    assert compare(["a"], "ab").heldout is None


@pytest.mark.parametrize(
    ("text", "brackets", "environments"),
    [
        ("(a [b] {c})", 1.0, None),
        ("(a [b) c]", 0.5, None),
        (r"( \( ) ]", 2 / 3, None),
        (r"\begin{a}x\end{a}", 1.0, 1.0),
        (r"\begin{a}\begin{b*}\end{b*}", 1.0, 2 / 3),
        (r"\begin{a}\end{b}", 1.0, 0.0),
        ("plain", None, None),
    ],
)
def test_pairs(text: str, brackets: float | None, environments: float | None) -> None:
    """If this fails, well-formed text is called broken, or broken text well formed."""
    found = compare([text], "abc").samples
    assert found.brackets == (None if brackets is None else pytest.approx(brackets))
    assert found.environments == (None if environments is None else pytest.approx(environments))


def test_python_functions_that_parse() -> None:
    """If this fails, functions are cut wrongly, or errors in them are not seen."""
    code = (
        "    return cut\n"
        "@wraps\ndef one(a,\n    b\n):\n    def inner():\n        return 1\n\n    return inner\n\n"
        "class A:\n    async def two(self):\n        if x:\n            pass\n"
        "    def three(self):\n        return (\n\nx = 1\n"
        "def last():\n    retur"
    )
    training = "def f():\n    pass\n" * 5
    assert compare([code], training).samples.python == pytest.approx(2 / 3)
    assert compare([code], "from here on, the class of def is\n" * 9).samples.python is None, "this is not Python"
    assert compare(["x = 1\n"], training).samples.python is None
    for odd in ("def f():\n    '\\d'\n", "def f():\n    \x00\n", f"def f():\n    {'(' * 500}1{')' * 500}\n"):
        assert compare([odd + "x\n"], training).samples.python in (0.0, 1.0)


def test_known_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, words that the training text has are called invented, or cut words are counted."""
    training = "the king's über horse; sleeps"
    for block in (3, 1 << 20):
        monkeypatch.setattr(form, "_BLOCK", block)
        assert compare(["ing the king über orse horses sle"], training).samples.words == pytest.approx(3 / 5)
    assert compare(["one two"], training).samples.words is None
    as_bytes = "x the über y".encode().decode("latin-1")
    assert compare([as_bytes], training, unit="byte").samples.words == 1.0


def test_drawn_samples_are_those_of_charlm_sample(network: Callable[..., Any]) -> None:
    """If this fails, other samples are judged than those that the user can write with the same seed."""
    vocabulary = Vocabulary("char", tuple(sorted(ord(letter) for letter in "abc\n")))
    model = network(len(vocabulary), hidden=5)
    told: list[tuple[int, int]] = []
    drawn = draw(model, vocabulary, SamplingParams(0.7), 3, 70, 150, progress=lambda *now: told.append(now))
    assert [len(one) for one in drawn] == [150] * 70
    for number in (0, 1, 69):
        expected = sample(model, vocabulary, "", 150, SamplingParams(0.7), 3, number)
        assert "".join(map(chr, drawn[number].tolist())) == expected
    assert told[0] == (128 * 64, 70 * 150)


def test_too_much_and_nothing_are_refused() -> None:
    """If this fails, the memory fills up, or nothing is judged."""
    for samples in ([], [""], ["a" * 100_000, "b" * 100_001]):
        with pytest.raises(UsageError, match="expected 1 to 200,000"):
            compare(samples, "abc")
