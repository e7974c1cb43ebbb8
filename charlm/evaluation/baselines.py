"""Baselines on the same training text: a Kneser–Ney n-gram and three compressors.

A network should need fewer bits per character than these. The n-gram reads the same ids as the network, ``<unk>`` included;
the first character is not scored and has no context. Compressors read bytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.data.dataset import Dataset
from charlm.evaluation.texts import EvaluationText
from charlm.progress import Progress

ORDERS = 20
"""The highest order of n-grams: a character and the 19 before it."""

TRAINING_CHARACTERS = 20_000_000
"""Only the last characters of a longer training text are used: an n-gram needs 150 bytes of memory per character."""

TEXT_CHARACTERS = 20_000_000
"""Maximum length of the scored text, for the same reason."""

_HELD_BACK = 20  # the order is chosen on the last 1/20 of the training text

_Ids = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


def measure_baselines(corpus: Dataset, evaluated: EvaluationText, progress: Progress) -> dict[str, Any]:
    """Measure every baseline on a text, after the training part of the corpus.

    Args:
        progress: receives (methods done, all methods).

    Returns:
        ``ngram``, ``gzip``, ``bz2`` and ``xz`` in bits per scored character; ``ngram_order``, ``training_characters``.
    """
    unit, text = corpus.vocabulary.unit, evaluated.text
    scored, methods = len(text) - 1, 1 + len(COMPRESSORS)
    start, stop = corpus.splits["train"]
    used = min(stop - start, TRAINING_CHARACTERS)
    train = corpus.text("train")
    progress(0, methods)
    bits, order = ngram_bits(train.ids(len(train) - used, len(train)), text.ids(0, len(text)), len(corpus.vocabulary))
    found: dict[str, Any] = {"ngram": bits / scored, "ngram_order": order}
    before = corpus.encoded.symbols(stop - used, stop).utf8(0, used, unit)
    after = evaluated.symbols.utf8(0, len(text), unit)
    for done, name in enumerate(COMPRESSORS, 1):
        progress(done, methods)
        found[name] = compressor_bits(name, before, after) / scored
    return {**found, "training_characters": used}


# --------------------------------------------------------------------------------------------------------------------
# n-gram
# --------------------------------------------------------------------------------------------------------------------


def ngram_bits(train: _Ids, text: _Ids, symbols: int) -> tuple[float, int]:
    """The bits of the best n-gram for a text, and its order.

    The order is chosen on the training text only: its first 19/20 give the counts, and the rest is predicted.

    Args:
        train: ids of the training text.
        text: M ids; M − 1 are scored.
        symbols: V.
    """
    end = len(train) - max(2, len(train) // _HELD_BACK)
    chosen = ngram_probabilities(train[: max(0, end)], train[max(0, end) :], symbols)
    order = 1 + int(np.argmin([_bits(p) for p in islice(chosen, ORDERS)]))
    return _bits(next(islice(ngram_probabilities(train, text, symbols), order - 1, None))), order


def _bits(probabilities: _Floats) -> float:
    return -float(np.log2(probabilities).sum())


def ngram_probabilities(train: _Ids, text: _Ids, symbols: int) -> Iterator[_Floats]:
    """The probability of each character of a text but the first, ``(M − 1,)``, by a 1-gram, then by a 2-gram, and so on.

    Interpolated modified Kneser–Ney: with w a character, h the k − 1 before it, and h′ these without the first,

        p_k(w | h) = (c(hw) − D(c(hw))) / Σ_v c(hv)  +  (Σ_v D(c(hv)) / Σ_v c(hv)) · p_{k−1}(w | h′)

    down to p_0 = 1/V. At the highest order c counts occurrences in the training text; below it, the number of different
    characters before hw (the beginning of the text is one more). If h never occurred, p_k = p_{k−1}. From Chen and Goodman,
    *An Empirical Study of Smoothing Techniques for Language Modeling* (1999).

    Args:
        train: N ids of the training text.
        text: M ids; the first has no context.
        symbols: V, more than any id.
    """
    N, joined = len(train), np.concatenate([train, text])
    lower = np.full(len(text), 1 / symbols)
    # A k-gram is identified by the id of its first k − 1 characters and by its last character.
    ends, contexts = np.arange(len(joined)), np.zeros(len(joined), dtype=np.int64)
    shorter: _Grams | None = None
    for order in count(1):
        keys, ids = np.unique(contexts * symbols + joined[ends], return_inverse=True)
        grams = _Grams(N, order, ends, ids, keys // symbols)
        if shorter is not None:
            lower = shorter.interpolated(_predecessors(shorter, grams), lower)
        yield grams.interpolated(grams.counts, lower)[1:]
        followed = grams.is_needed[ids] & (ends + 1 != N) & (ends + 1 != len(joined))
        ends, contexts, shorter = ends[followed] + 1, ids[followed], grams


class _Grams:
    """The G different k-grams of training text and text.

    An occurrence in the training text is left out if its first k − 1 characters occur once there and never in the text: then
    the k-gram also occurs once, and the text does not need it. This holds for nearly all long k-grams.

    Attributes:
        N: length of the training text; the text follows it.
        ends: ascending positions, in both, at which a k-gram ends; ``trained`` of them in the training text.
        ids: the k-gram at each position, below G.
        contexts: ``(G,)`` id of the first k − 1 characters.
        counts: ``(G,)`` occurrences in the training text.
        is_needed: ``(G,)`` whether longer k-grams that begin with it are needed.
        left_out: number of occurrences in the training text that are left out.
    """

    def __init__(self, N: int, order: int, ends: _Ids, ids: _Ids, contexts: _Ids) -> None:
        self.N, self.ends, self.ids, self.contexts = N, ends, ids, contexts
        self.trained = int(np.searchsorted(ends, N))
        self.counts = np.bincount(ids[: self.trained], minlength=len(contexts))
        is_read = np.bincount(ids[self.trained :], minlength=len(contexts)) > 0
        self.is_needed = (self.counts > 1) | ((self.counts == 1) & is_read)
        self.left_out = max(0, N - order + 1) - self.trained

    def interpolated(self, counts: _Ids, lower: _Floats) -> _Floats:
        """p_k of the text's characters, ``(M,)``, from p_{k−1}; counts: ``(G,)`` c(hw)."""
        # K-grams that are left out occur once, after one character.
        discounts = discounts_of(np.bincount(counts, minlength=5)[1:5] + [self.left_out, 0, 0, 0])[np.minimum(counts, 3)]
        total, spared = np.bincount(self.contexts, counts), np.bincount(self.contexts, discounts)
        ids, at = self.ids[self.trained :], self.ends[self.trained :] - self.N
        seen = total[self.contexts[ids]] > 0
        ids, at = ids[seen], at[seen]
        h = self.contexts[ids]
        p = lower.copy()
        p[at] = ((counts - discounts)[ids] + spared[h] * lower[at]) / total[h]
        return p


def _predecessors(shorter: _Grams, longer: _Grams) -> _Ids:
    """``(G,)`` the number of different characters before each of the shorter k-grams in the training text.

    This is the number of different longer k-grams that end with it; each is counted at one of its ends. An end without a
    longer k-gram belongs to one that is left out, or to the beginning of the text.
    """
    is_one = np.ones(shorter.N, dtype=np.bool_)
    longer_ends, longer_ids = longer.ends[: longer.trained], longer.ids[: longer.trained]
    is_one[longer_ends] = False
    last = np.full(len(longer.counts), -1)
    last[longer_ids] = longer_ends
    is_one[last[last >= 0]] = True
    ends, ids = shorter.ends[: shorter.trained], shorter.ids[: shorter.trained]
    return np.bincount(ids[is_one[ends]], minlength=len(shorter.counts))


def discounts_of(counts_of_counts: npt.ArrayLike) -> _Floats:
    """D(0) = 0, D(1), D(2), D(3 and more), from the numbers of n-grams with count 1, 2, 3, 4 (Chen and Goodman).

    If these are too few for the formula, or a discount is not positive: ½, 1, 1½.
    """
    n1, n2, n3, n4 = (int(n) for n in np.asarray(counts_of_counts))
    if min(n1, n2, n3) > 0:
        Y = n1 / (n1 + 2 * n2)
        D = np.array([0, 1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3])
        if D[1:].min() > 0:
            return D
    return np.array([0, 0.5, 1, 1.5])


# --------------------------------------------------------------------------------------------------------------------
# Compressors
# --------------------------------------------------------------------------------------------------------------------


def _xz(data: bytes) -> bytes:
    # A dictionary of the size of the text holds all of it, and needs no more memory.
    strongest = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(len(data), 1 << 12)}
    return lzma.compress(data, filters=[strongest])


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9),
    "bz2": lambda data: bz2.compress(data, 9),
    "xz": _xz,
}
"""Each at its highest level. gzip has a window of 32 kB, bz2 blocks of 900 kB, xz a window of the whole text."""


COMPRESSIBLE = 1000
"""Minimum characters for compressors, which write whole bytes and blocks: a shorter text may seem to cost nothing."""


def compressor_bits(name: str, train: bytes, text: bytes) -> int:
    """The growth of the compressed training text in bits if the text is appended."""
    compress = COMPRESSORS[name]
    return 8 * (len(compress(train + text)) - len(compress(train)))
