"""Vocabularies: ids and symbols in both directions, unknown characters."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.vocabulary import UNICODE_CODE_POINTS, Vocabulary, describe_characters
from charlm.errors import CharlmError, UsageError

ABC = Vocabulary("char", (97, 98, 99))


@given(st.text(min_size=1))
def test_encoding_and_decoding_are_inverse(text: str) -> None:
    """If this fails, encoding and decoding change a text."""
    vocabulary = Vocabulary.from_counts([ord(c) for c in sorted(set(text))], [1] * len(set(text)), 1)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert len(vocabulary) == len(set(text)) + 1
    assert set(ids) == set(range(1, len(vocabulary))), "an id is wasted, or <unk>'s is used"
    assert all(vocabulary.symbol_of(i) == ord(c) for i, c in zip(ids, text, strict=True))


@given(st.binary())
def test_bytes_are_their_own_ids(data: bytes) -> None:
    """If this fails, a byte model cannot read every file."""
    vocabulary = Vocabulary.of_bytes()
    assert (len(vocabulary), vocabulary.unknown_id, vocabulary.unknown_nats) == (256, None, 0.0)
    assert bytes(vocabulary.encode(data.decode("utf-8", "surrogateescape"))) == data
    assert vocabulary.decode(list(data)) == data.decode("utf-8", "replace")
    assert vocabulary.lookup(data).tolist() == list(data)


def test_the_unknown_symbol_is_always_there_as_id_0() -> None:
    """If this fails, a character outside the training text cannot be scored."""
    assert (ABC.unknown_id, ABC.symbol_of(0), ABC.shown(0), len(ABC)) == (0, None, "<unk>", 4)
    assert ABC.lookup([99, 120, 97]).tolist() == [3, 0, 1]
    assert ABC.decode([1, 0, 2]) == "a\ufffdb"
    assert ABC.id_of(120) is None


def test_counts_decide_what_is_known() -> None:
    """If this fails, min_count keeps rare characters, or the vocabulary has characters of the validation text."""
    assert Vocabulary.from_counts([99, 97, 98, 100], [5, 2, 1, 0], 1).symbols == (97, 98, 99)
    assert Vocabulary.from_counts([99, 97, 98, 100], [5, 2, 1, 0], 2).symbols == (97, 99)
    assert Vocabulary.from_counts([99], [5], 6).symbols == ()


def test_unknown_characters_of_a_prompt() -> None:
    """If this fails, an unknown character in a prompt is removed without notice, or refused although it is allowed."""
    assert ABC.encode("axb", "map") == [1, 0, 2]
    assert ABC.encode("axb", "skip") == [1, 2]
    with pytest.raises(UsageError, match=r"outside the model's vocabulary: 'x' \(U\+0078\), 'é' \(U\+00E9\)$"):
        ABC.encode("xaxé")


def test_the_price_of_an_unknown_character() -> None:
    """If this fails, the reported cost of naming unknown characters is wrong: uniform over all other code points."""
    assert ABC.unknown_nats == math.log(UNICODE_CODE_POINTS - 3) == math.log(1_112_064 - 3)


def test_the_union_keeps_all_symbols() -> None:
    """If this fails, init loses characters of the old model, or does not add those of the new text."""
    assert ABC.union(Vocabulary("char", (98, 122))).symbols == (97, 98, 99, 122)


@pytest.mark.parametrize("vocabulary", [ABC, Vocabulary.of_bytes(), Vocabulary("char", ())])
def test_a_checkpoint_keeps_it(vocabulary: Vocabulary) -> None:
    """If this fails, a checkpoint changes the vocabulary."""
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize("stored", [None, {}, {"unit": "word"}, {"unit": "char", "symbols": ["a"]}, [97]])
def test_an_invalid_vocabulary_is_refused(stored: object) -> None:
    """If this fails, an invalid vocabulary is accepted."""
    with pytest.raises(CharlmError, match="vocabulary"):
        Vocabulary.from_json(stored)


def test_characters_have_unambiguous_names() -> None:
    """If this fails, an error does not show which invisible character it is about."""
    assert describe_characters("a\u200b") == "'a' (U+0061), '\\u200b' (U+200B)"
    assert describe_characters("abcdefghij").endswith("'h' (U+0068) and 2 more")
    assert [Vocabulary.of_bytes().shown(i) for i in (65, 10, 255)] == ["A", "\\x0a", "\\xff"]
