"""Does a model copy its training text, and is its text well formed? The same numbers for held-out text say what is normal.

    longest match     the longest part of a sample that occurs in the training text, and where: exact
    new n-grams       share of the n-grams (n = 5, 10, 20, 50) of a sample that do not occur in the training text: exact; for
                      words: McCoy et al., *How Much Do Language Models Copy From Their Training Data?* (2023)
    brackets          share of the brackets that belong to a pair, of the same kind and nested
    environments      share of LaTeX's ``\\begin`` and ``\\end`` that belong to a pair
    python            share of the functions that parse: each ``def`` with its body, without a last one that may be cut
    words             share of the words that occur in the training text, without the first and the last

Matches are found by hashing. The training text is read once for each n: its n-grams get rolling hashes (Karp and Rabin 1987),
and those that are hashes of the samples' n-grams are compared symbol by symbol, so that no collision counts. The longest match
is found by a search for its length: a longer match begins only where a shorter one does. Memory does not grow with the
training text, except by eight bytes for each place of a match (at most a million).
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from charlm.data.symbols import CodePoints, Symbols, to_text
from charlm.data.vocabulary import Vocabulary
from charlm.errors import UsageError
from charlm.evaluation.features import BRACKETS
from charlm.evaluation.limits import JUDGED_CHARACTERS
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.sampling import SamplingParams, generate_parallel, until_separator

NGRAMS = (5, 10, 20, 50)
"""The n of new n-grams."""

_BLOCK = 1 << 20  # symbols of the training text at a time
_PLACES = 1 << 20  # places of the training text that are remembered from one length to the next
_BUCKETS = 1 << 22  # of the filter before hashes are looked up
_DRAWN_TOGETHER = 64
_DEFINITION = re.compile(r"^[ \t]*def \w+\(.*:$", re.MULTILINE)
_RECOGNISED_BY = 1_000_000  # characters
_FEWEST_DEFINITIONS = 5  # in a training text that is Python

_Ints = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Match:
    """A longest match.

    Attributes:
        sample: number of the sample.
        length: in characters (bytes); 0: none.
        at: where it begins in the sample.
        place: where it begins in the training text.
    """

    sample: int
    length: int
    at: int
    place: int


@dataclass(frozen=True)
class Quality:
    """What samples, or pieces of a held-out text, look like. A share is ``None`` where there is nothing to count.

    Attributes:
        characters: of all of them.
        matches: for each sample, its longest match with the training text.
        new: n → share of the n-grams that the training text lacks.
        brackets, environments, python, words: shares that are well formed; see the module.
    """

    characters: int
    matches: tuple[Match, ...]
    new: dict[int, float | None]
    brackets: float | None
    environments: float | None
    python: float | None
    words: float | None


@dataclass(frozen=True)
class Novelty:
    """Samples beside pieces of a held-out text; ``heldout`` is ``None`` if there is none.

    Attributes:
        training_characters: length of the training text.
    """

    samples: Quality
    heldout: Quality | None
    training_characters: int


def novelty(
    samples: Sequence[CodePoints],
    training: Symbols,
    heldout: Symbols | None,
    unit: str,
    *,
    progress: Progress | None = None,
) -> Novelty:
    """Compare samples with a training text, and pieces of a held-out text of the same number and lengths beside them.

    Args:
        samples: code points or bytes of each, at most 200,000 in all.
        training: what the model was trained on.
        heldout: what it was not trained on; a shorter text than a sample is one piece.
        unit: ``char`` or ``byte``.
        progress: (characters of the training text read, to read), for the n-grams, which is most of the time.

    Raises:
        UsageError: there are no samples, or they are too long together.
    """
    total = sum(map(len, samples))
    if not total or total > JUDGED_CHARACTERS:
        raise UsageError(f"the samples have {total:,} characters together; expected 1 to {JUDGED_CHARACTERS:,}")
    pieces = _pieces(heldout, [len(sample) for sample in samples]) if heldout is not None else []
    search = _Search([*samples, *pieces], training, progress)
    search.read_ngrams()
    matches = search.longest()
    is_python = len(_DEFINITION.findall(training.characters(0, _RECOGNISED_BY))) >= _FEWEST_DEFINITIONS
    texts = [to_text(piece) for piece in [*samples, *pieces]]
    words = [_words(text, unit)[1:-1] for text in texts]
    known = _known_words({word for some in words for word in some}, training, unit)

    def quality(first: int, last: int) -> Quality:
        here = texts[first:last]
        own = tuple(Match(match.sample - first, match.length, match.at, match.place) for match in matches[first:last])
        own_words = [word for some in words[first:last] for word in some]
        return Quality(
            characters=sum(map(len, here)),
            matches=own,
            new={n: search.new(n, first, last) for n in NGRAMS},
            brackets=_share(map(_bracket_pairs, here)),
            environments=_share(map(_environment_pairs, here)),
            python=_share(map(_functions, here)) if is_python else None,
            words=sum(word in known for word in own_words) / len(own_words) if own_words else None,
        )

    return Novelty(
        quality(0, len(samples)), quality(len(samples), len(texts)) if pieces else None, len(training)
    )  # fmt: skip


def draw(
    model: LanguageModel,
    vocabulary: Vocabulary,
    params: SamplingParams,
    seed: int,
    num: int,
    length: int,
    progress: Progress | None = None,
) -> list[CodePoints]:
    """The samples that ``charlm sample --num N --length M --seed S`` writes, as code points or bytes.

    Args:
        progress: (characters drawn, to draw).

    Raises:
        DivergedError: the scores are NaN or infinite.
    """
    symbols = np.array([vocabulary.symbol_of(index) or 0 for index in range(len(vocabulary))], dtype=np.uint32)
    drawn: list[CodePoints] = []
    for start in range(0, num, _DRAWN_TOGETHER):
        numbers = range(start, min(start + _DRAWN_TOGETHER, num))
        rows = []
        for row in islice(generate_parallel(model, vocabulary, [], params, seed, numbers), length):
            rows.append(row)
            if progress is not None and len(rows) % 128 == 0:
                progress(start * length + len(rows) * len(numbers), num * length)
        columns = np.array(rows, dtype=np.int64).T
        drawn += [symbols[list(until_separator(column.tolist(), vocabulary))] for column in columns]
    return drawn


def _pieces(heldout: Symbols, lengths: Sequence[int]) -> list[CodePoints]:
    """Pieces of these lengths, spread evenly; the whole text once where it is shorter than a piece."""
    if len(heldout) <= max(lengths):
        return [heldout.read(0, len(heldout))]
    starts = [number * (len(heldout) - length) // max(1, len(lengths) - 1) for number, length in enumerate(lengths)]
    return [heldout.read(start, start + length) for start, length in zip(starts, lengths, strict=True)]


# --------------------------------------------------------------------------------------------------------------------
# Matches
# --------------------------------------------------------------------------------------------------------------------

_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2⁶⁴


def _mixed(symbols: CodePoints) -> _Hashes:
    """A 64-bit number for each symbol (SplitMix64)."""
    z = symbols.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


class _Rolling:
    """Hashes of n-grams: Σ v(s_j)·B^j modulo 2⁶⁴, j = 0 … n − 1, from differences of prefix sums."""

    def __init__(self) -> None:
        self._powers = self._inverses = np.ones(1, dtype=np.uint64)

    def __call__(self, values: _Hashes, n: int) -> _Hashes:
        """``(K,)`` numbers of symbols → ``(K − n + 1,)``."""
        if len(self._powers) < len(values):
            base = np.full(len(values), _BASE, dtype=np.uint64)
            inverse = np.full(len(values), pow(_BASE, -1, 1 << 64), dtype=np.uint64)
            base[0] = inverse[0] = 1
            self._powers, self._inverses = np.multiply.accumulate(base), np.multiply.accumulate(inverse)
        sums = np.zeros(len(values) + 1, dtype=np.uint64)
        np.cumsum(values * self._powers[: len(values)], out=sums[1:])
        return np.asarray((sums[n:] - sums[:-n]) * self._inverses[: len(values) - n + 1], dtype=np.uint64)


class _Search:
    """Looks for parts of P pieces, M symbols together, in a training text of N symbols."""

    def __init__(self, pieces: Sequence[CodePoints], training: Symbols, progress: Progress | None) -> None:
        self._training, self._keys, self._progress = training, _mixed(training.alphabet), progress
        self._joined = np.concatenate(pieces)
        self._values = _mixed(self._joined)
        self._ends = np.cumsum([len(piece) for piece in pieces])
        self._starts = self._ends - [len(piece) for piece in pieces]
        self._end_of = np.repeat(self._ends, [len(piece) for piece in pieces])
        self._rolling = _Rolling()
        self._found: dict[int, _Ints] = {}
        self._hits: dict[int, _Ints] = {}

    def read_ngrams(self) -> None:
        """Find each n-gram for the n of :data:`NGRAMS`."""
        for number, n in enumerate(NGRAMS):
            at = self._positions(n, np.arange(len(self._joined)))
            found = np.full(len(self._joined), -1, dtype=np.int64)
            first, hits, inverse = self._look_up(n, at, None, number)
            found[at] = self._verified(n, at, first[inverse])
            self._found[n] = found
            if hits is not None:
                self._hits[n] = hits

    def new(self, n: int, first: int, last: int) -> float | None:
        """Share of the n-grams of some pieces that the training text lacks; ``None``: there are none.

        Args:
            first, last: numbers of the first piece and after the last.
        """
        inside = np.zeros(len(self._joined), dtype=np.bool_)
        inside[self._starts[first] : self._ends[last - 1]] = True
        at = self._positions(n, np.flatnonzero(inside))
        return float((self._found[n][at] < 0).mean()) if len(at) else None

    def longest(self) -> list[Match]:
        """Each piece's longest match."""
        open_: dict[int, _Bracket] = {}
        done: dict[int, Match] = {}
        for number, (start, end) in enumerate(zip(self._starts.tolist(), self._ends.tolist(), strict=True)):
            bracket = _Bracket(0, end - start + 1, start, -1, np.arange(start, end))
            for n in NGRAMS:
                at = start + np.flatnonzero(self._found[n][start:end] >= 0)
                if not len(at):
                    bracket.high = min(bracket.high, n)
                    break
                bracket.low, bracket.at, bracket.place = n, int(at[0]), int(self._found[n][at[0]])
                bracket.candidates = at
            open_[number] = bracket
        while open_:
            groups: dict[int, list[int]] = {}
            for number, bracket in list(open_.items()):
                if bracket.high - bracket.low > 1:
                    groups.setdefault(bracket.next(), []).append(number)
                else:
                    start = int(self._starts[number])
                    done[number] = Match(number, bracket.low, bracket.at - start, bracket.place)
                    del open_[number]
            for n, numbers in groups.items():
                self._narrow(n, [open_[number] for number in numbers])
        return [done[number] for number in range(len(self._ends))]

    def _narrow(self, n: int, brackets: list[_Bracket]) -> None:
        """Find out which of the pieces have a match of length n."""
        at = self._positions(n, np.unique(np.concatenate([bracket.candidates for bracket in brackets])))
        levels = [level for level in self._hits if level <= min(bracket.low for bracket in brackets)]
        first, _, inverse = self._look_up(n, at, self._hits[max(levels)] if levels else None)
        hit = first[inverse] >= 0
        at, places = at[hit], first[inverse][hit]
        for bracket in brackets:
            own = np.flatnonzero(np.isin(at, bracket.candidates, assume_unique=True))
            for index in own.tolist():
                place = int(self._verified(n, at[index : index + 1], places[index : index + 1])[0])
                if place >= 0:
                    bracket.low, bracket.at, bracket.place, bracket.candidates = n, int(at[index]), place, at[own]
                    break
            else:
                bracket.high = n

    def _positions(self, n: int, at: _Ints) -> _Ints:
        """Those of the positions at which a piece has n symbols left."""
        return np.asarray(at[at + n <= self._end_of[at]], dtype=np.int64)

    def _look_up(self, n: int, at: _Ints, among: _Ints | None, number: int = -1) -> tuple[_Ints, _Ints | None, _Ints]:
        """Look for the hashes of the pieces' n-grams among those of the training text.

        Args:
            at: positions of the n-grams in the pieces.
            among: the only places that are possible; ``None``: all.
            number: of the pass, for the progress; −1: none is told, and only first places are wanted.

        Returns:
            ``(U,)`` the first place of each different hash or −1; all places of them, ``None`` if they are too many
            or not wanted; and
            ``(K,)`` the number of the hash for each position.
        """
        own = self._rolling(self._values, n)[at] if len(at) else np.empty(0, dtype=np.uint64)
        different, inverse = np.unique(own, return_inverse=True)
        first = np.full(len(different), -1, dtype=np.int64)
        hits: list[_Ints] | None = [] if number >= 0 else None
        count, wanted = 0, np.arange(len(different))
        for places, hashes in self._training_hashes(n, among):
            if not len(wanted):
                break
            looked_up = different[wanted]
            filter_ = np.zeros(_BUCKETS, dtype=np.bool_)
            filter_[_bucket(looked_up)] = True
            kept = np.flatnonzero(filter_[_bucket(hashes)])
            which = np.minimum(np.searchsorted(looked_up, hashes[kept]), len(looked_up) - 1)
            equal = looked_up[which] == hashes[kept]
            kept, which = places[kept[equal]], wanted[which[equal]]
            new = first[which] < 0
            numbers, index = np.unique(which[new], return_index=True)
            first[numbers] = kept[new][index]
            count += len(kept)
            hits = [*hits, kept] if hits is not None and count <= _PLACES else None
            if hits is None:  # one place of each is enough
                wanted = wanted[first[wanted] < 0]
            if self._progress is not None and number >= 0 and len(places):
                N = len(self._training)
                self._progress(number * N + int(places[-1]) + 1, len(NGRAMS) * N)
        return first, np.concatenate(hits) if hits else (None if hits is None else np.empty(0, np.int64)), inverse

    def _training_hashes(self, n: int, among: _Ints | None) -> Iterator[tuple[_Ints, _Hashes]]:
        """(places, hashes of the n-grams there), block by block."""
        N, indices = len(self._training), self._training.indices
        if among is not None and len(among) * n <= N:
            among = among[among + n <= N]
            for start in range(0, len(among), max(1, _BLOCK // n)):
                places = among[start : start + max(1, _BLOCK // n)]
                values = self._keys[indices[places[:, None] + np.arange(n)]]
                powers = np.multiply.accumulate(np.array([1] + [_BASE] * (n - 1), dtype=np.uint64))
                yield places, (values * powers).sum(axis=1, dtype=np.uint64)
            return
        for start in range(0, N - n + 1, _BLOCK):
            stop = min(start + _BLOCK, N - n + 1)
            yield np.arange(start, stop), self._rolling(self._keys[indices[start : stop + n - 1]], n)

    def _verified(self, n: int, at: _Ints, places: _Ints) -> _Ints:
        """The places, each compared symbol by symbol; another place, or −1, where only the hashes were equal."""
        places = places.copy()
        for start in range(0, len(at), max(1, _BLOCK // n)):
            part = slice(start, start + max(1, _BLOCK // n))
            index = np.flatnonzero(places[part] >= 0) + start
            own = self._joined[at[index][:, None] + np.arange(n)]
            other = self._training.alphabet[self._training.indices[places[index][:, None] + np.arange(n)]]
            for wrong in index[(own != other).any(axis=1)].tolist():
                places[wrong] = self._scan(self._joined[at[wrong] : at[wrong] + n])
        return places

    def _scan(self, gram: CodePoints) -> int:
        """The first place of one n-gram in the training text without hashes, or −1."""
        wanted, n = gram.astype("<u4").tobytes(), len(gram)
        for start in range(0, len(self._training) - n + 1, _BLOCK):
            block = self._training.read(start, start + _BLOCK + n - 1).astype("<u4").tobytes()
            found = block.find(wanted)
            while found % 4 > 0 and found >= 0:
                found = block.find(wanted, found + 1)
            if found >= 0:
                return start + found // 4
        return -1


@dataclass
class _Bracket:
    """What is known of a piece's longest match: longer than or as long as ``low``, shorter than ``high``."""

    low: int
    high: int
    at: int
    place: int
    candidates: _Ints

    def next(self) -> int:
        """The length to try: twice the known one, or the middle."""
        return max(self.low + 1, min(2 * self.low, (self.low + self.high) // 2))


def _bucket(hashes: _Hashes) -> npt.NDArray[np.int64]:
    return (hashes >> np.uint64(64 - (_BUCKETS.bit_length() - 1))).astype(np.int64)


# --------------------------------------------------------------------------------------------------------------------
# Form
# --------------------------------------------------------------------------------------------------------------------


def _share(counts: Iterable[tuple[int, int]]) -> float | None:
    """Σ good ÷ Σ all; ``None`` if there are none."""
    good, total = (sum(column) for column in zip(*counts, strict=True))
    return good / total if total else None


def _bracket_pairs(text: str) -> tuple[int, int]:
    """How many brackets belong to a pair, and how many there are."""
    stack: list[str] = []
    good = total = 0
    for mark in re.findall(r"\\.|[()\[\]{}]", text, re.DOTALL):
        if len(mark) > 1:
            continue
        total += 1
        if mark not in BRACKETS:
            stack.append(mark)
        elif stack and stack[-1] == BRACKETS[mark]:
            stack.pop()
            good += 2
    return good, total


def _environment_pairs(text: str) -> tuple[int, int]:
    """How many of LaTeX's begin and end belong to a pair, and how many there are."""
    stack: list[str] = []
    good = total = 0
    for kind, name in re.findall(r"\\(begin|end)\{([A-Za-z]+\*?)\}", text):
        total += 1
        if kind == "begin":
            stack.append(name)
        elif stack and stack[-1] == name:
            stack.pop()
            good += 2
    return good, total


def _functions(text: str) -> tuple[int, int]:
    """How many Python functions parse, and how many there are: each ``def`` and all lines after it that are indented more.

    The last one may be cut, and counts only if another line follows it.
    """
    good = total = stop = 0
    for match in re.finditer(r"^([ \t]*)(?:async )?def ", text, re.MULTILINE):
        if match.start() >= stop:  # not inside a function that has been counted
            # The next line that is not blank, not indented more, and not the end of a long signature.
            after = re.compile(rf"^(?!{match[1]}[ \t]|[ \t]*(?:\n|\Z)|[ \t]*[)\]}}])", re.MULTILINE).search(text, match.end())
            if after is not None:
                stop = after.start()
                good += _parses(textwrap.dedent(text[match.start() : stop]))
                total += 1
    return good, total


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _words(text: str, unit: str) -> list[str]:
    return re.findall(r"[A-Za-z\x80-\xff]+" if unit == "byte" else r"[^\W\d_]+", text)


def _known_words(wanted: set[str], training: Symbols, unit: str) -> set[str]:
    """Which of the words the training text has."""
    missing, N = set(wanted), len(training)
    overlap = max(map(len, wanted), default=0) + 1
    for start in range(0, N, _BLOCK):
        if not missing:
            break
        # A word that a block cuts is whole in the next one, unless it is longer than all wanted ones.
        low, high = max(0, start - overlap - 1), min(N, start + _BLOCK + 1)
        words = _words(training.characters(low, high), unit)
        missing.difference_update(words[low > 0 : len(words) - (high < N)])
    return wanted - missing
