"""What a network is compared with: an n-gram whose probabilities are those of its formulas, and compressors as they are."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.evaluation import baselines
from charlm.evaluation.baselines import COMPRESSORS, compressor_bits, discounts_of, ngram_bits, ngram_probabilities

texts = st.integers(1, 4).flatmap(
    lambda kinds: st.tuples(
        st.just(kinds + 1),
        st.lists(st.integers(0, kinds), max_size=120),
        st.lists(st.integers(0, kinds), min_size=2, max_size=25),
    )
)
"""(V, training text, text)."""


def _array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def _slow(train: list[int], text: list[int], V: int, order: int) -> list[float]:
    """The probabilities of ``text[1:]`` by an n-gram, substring by substring, as the docstring's formula says."""
    occurrences: Counter[tuple[int, ...]] = Counter()
    before: defaultdict[tuple[int, ...], set[int | None]] = defaultdict(set)
    for k in range(1, order + 1):
        for start in range(len(train) - k + 1):
            gram = tuple(train[start : start + k])
            occurrences[gram] += 1
            before[gram].add(train[start - 1] if start else None)
    predecessors = {gram: len(found) for gram, found in before.items()}

    @cache
    def discounts(k: int, is_highest: bool) -> np.ndarray:
        counts = [c for gram, c in (occurrences if is_highest else predecessors).items() if len(gram) == k]
        return discounts_of([counts.count(n) for n in (1, 2, 3, 4)])

    def p(context: tuple[int, ...], character: int, is_highest: bool = False) -> float:
        D = discounts(len(context) + 1, is_highest)
        row = [(occurrences if is_highest else predecessors).get((*context, v), 0) for v in range(V)]
        lower = p(context[1:], character) if context else 1 / V
        if sum(row) == 0:
            return lower
        own = row[character] - D[min(row[character], 3)]
        return float((own + sum(D[min(c, 3)] for c in row) * lower) / sum(row))

    found = []
    for at in range(1, len(text)):
        context = tuple(text[max(0, at - order + 1) : at])
        found.append(p(context, text[at], is_highest=len(context) == order - 1))
    return found


@given(texts)
def test_the_ngram_is_what_its_formula_says(drawn: tuple[int, list[int], list[int]]) -> None:
    """If this fails, substrings that the fast way leaves out mattered, or counts are of something else."""
    V, train, text = drawn
    for order, found in enumerate(islice(ngram_probabilities(_array(train), _array(text), V), 6), 1):
        assert found == pytest.approx(_slow(train, text, V, order), rel=1e-12)


def test_on_a_text_with_repetitions_too(english: Callable[..., str]) -> None:
    """If this fails, the discounts are not those of all n-grams of the training text, also those that were left out."""
    train, text = [list(english(n, seed=s).encode()) for n, s in ((1500, 7), (80, 8))]
    for order, found in enumerate(islice(ngram_probabilities(_array(train), _array(text), 128), 8), 1):
        assert found == pytest.approx(_slow(train, text, 128, order), rel=1e-12)


@given(texts)
def test_probabilities_of_all_symbols_sum_to_one(drawn: tuple[int, list[int], list[int]]) -> None:
    """If this fails, the n-gram's bits are no code length, and comparing with them means nothing."""
    V, train, text = drawn
    last = [[p[-1] for p in islice(ngram_probabilities(_array(train), _array([*text, v]), V), 8)] for v in range(V)]
    assert np.sum(last, axis=0) == pytest.approx(np.ones(8))
    assert np.min(last) > 0


def test_what_was_never_seen_costs_bits_but_not_infinitely_many() -> None:
    """If this fails, one <unk> makes the result infinite, or an unknown character is free."""
    train = _array([1, 2, 3, 4] * 50)
    known, _ = ngram_bits(train, _array([1, 2, 3, 4, 1, 2, 3]), 5)
    unknown, _ = ngram_bits(train, _array([1, 2, 3, 0, 1, 2, 3]), 5)
    assert math.isfinite(unknown)
    assert unknown > known + math.log2(5)


def test_the_order_is_chosen_on_the_training_text_alone(english: Callable[..., str]) -> None:
    """If this fails, the n-gram has looked at what it is to predict."""
    train = np.frombuffer(english(4000).encode(), dtype=np.uint8).astype(np.int64)
    other = np.frombuffer(english(400, seed=8).encode(), dtype=np.uint8).astype(np.int64)
    noise = np.random.default_rng(1).integers(0, 128, 400)
    held_back = [-np.log2(p).sum() for p in islice(ngram_probabilities(train[:3800], train[3800:], 128), baselines.ORDERS)]
    expected = 1 + int(np.argmin(held_back))
    assert expected > 2
    for text in (train[:400], other, noise):
        bits, order = ngram_bits(train, text, 128)
        assert order == expected
        assert bits == pytest.approx(-np.log2(list(islice(ngram_probabilities(train, text, 128), order))[-1]).sum())


@pytest.mark.parametrize("size", range(5))
def test_a_training_text_of_almost_nothing_will_do(size: int) -> None:
    """If this fails, a tiny corpus ends in a traceback."""
    bits, order = ngram_bits(_array([1, 0, 1, 1][:size]), _array([0, 1, 1]), 2)
    assert order >= 1
    assert math.isfinite(bits) and bits > 0


def test_discounts_are_those_of_chen_and_goodman() -> None:
    """If this fails, the smoothing is another than the one it is named after."""
    Y = 100 / (100 + 2 * 40)
    assert discounts_of([100, 40, 20, 10]) == pytest.approx([0, 1 - 2 * Y * 40 / 100, 2 - 3 * Y * 20 / 40, 3 - 4 * Y * 10 / 20])
    for too_few in ([0, 0, 0, 0], [5, 3, 0, 1], [5, 1, 9, 1]):
        assert discounts_of(too_few).tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressors_figure_is_what_the_text_adds(name: str, english: Callable[..., str]) -> None:
    """If this fails, the result is not that of the text after the training text, or not of the strongest setting."""
    train, text = english(5000).encode(), english(500, seed=8).encode()
    strongest: dict[str, Callable[[bytes], bytes]] = {
        "gzip": lambda data: gzip.compress(data, compresslevel=9),
        "bz2": lambda data: bz2.compress(data, compresslevel=9),
        "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
    grown = len(strongest[name](train + text)) - len(strongest[name](train))
    assert compressor_bits(name, train, text) == 8 * grown > 0


def test_xz_remembers_all_of_the_training_text() -> None:
    """If this fails, xz forgets what a text of this size has at its beginning."""
    noise = np.random.default_rng(1).integers(97, 113, 400_000, dtype=np.uint8).tobytes()  # 4 bits each
    assert compressor_bits("xz", noise, noise[:20_000]) < 4_000
    assert compressor_bits("gzip", noise, noise[:20_000]) > 80_000
