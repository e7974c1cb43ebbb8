"""Finds parts of samples in a training text, exactly.

Matches are found by hashing. The training text is read once for each n: its n-grams get rolling hashes (Karp and Rabin 1987),
and those that are hashes of the samples' n-grams are compared symbol by symbol, so that no collision counts. The longest match
is found by a search for its length: a longer match begins only where a shorter one does. Memory does not grow with the
training text, except by eight bytes for each place of a match (at most a million).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charlm.data.symbols import CodePoints, Symbols
from charlm.progress import Progress

NGRAMS = (5, 10, 20, 50)
"""The n of new n-grams."""

_BLOCK = 1 << 20  # symbols of the training text at a time
_PLACES = 1 << 20  # places of the training text that are remembered from one length to the next
_BUCKETS = 1 << 22  # of the filter before hashes are looked up

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


class Search:
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
