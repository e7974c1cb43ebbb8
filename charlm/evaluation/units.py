"""What single units track: how well each hidden unit separates, or orders, the characters of a text by a feature.

Karpathy, Johnson and Fei-Fei found units that track quotes, the position in the line and the depth of brackets (*Visualizing
and Understanding Recurrent Networks*, 2015). Here all units and features are searched. The best of many units always looks
good on the characters that it was chosen on, so its score is measured on later ones.

    score of a binary feature   AUC, the probability that the unit is higher at a random character with the feature than at
                                one without; ties count half (Mann and Whitney 1947). 0.5: no relation
    score of a number           Spearman's ρ, the correlation of ranks. 0: no relation
    chance                      the same choice and measurement with the features moved along the text, circularly
    untrained                   the same with an untrained network of the same shape, which also holds the last characters

Both scores use ranks, so a unit's scale and saturation do not matter. A unit that is low where the feature is high is taken
with its sign changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from charlm.data.dataset import Text
from charlm.data.symbols import Symbols
from charlm.errors import CorpusError, UsageError
from charlm.evaluation.features import Feature, Syntax, features
from charlm.evaluation.hidden_states import hidden_states
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress

POSITIONS = 50_000
"""Characters of a longer text that are used, in blocks that are spread evenly over it."""

_VALUES = 1 << 26  # states that are kept, two bytes each: with many units, fewer characters are used
_BLOCK = 5_000
_LEAD = 1_000  # characters read before a block, so that neither states nor features begin from nothing
_CHOSEN_ON = 0.6  # share of the characters that units are chosen on
_SHIFTS = 20
_FEWEST = 30  # characters with a feature, and without, in each part
_FEWEST_STRETCHES = 5
_UNITS_AT_ONCE = 32
_PASSAGE = 1_000

_Keys = npt.NDArray[np.uint16]
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class UnitScore:
    """The unit that tracks a feature best.

    Attributes:
        feature: its name.
        measure: ``auc`` or ``spearman``.
        state: ``h`` or ``c``.
        layer, unit: counted from 0.
        sign: −1: the unit is low where the feature is high.
        score: on the characters that it was not chosen on.
        chosen_score: on those that it was chosen on; too good.
        chance: mean score of the best units for moved features.
        chance_high: the highest of these 20 scores. A feature that no unit tracks passes it once in 21 times.
        untrained: score of the best unit of an untrained network.
        passage: where in the text the feature changes most, among the characters that the unit was not chosen on.
    """

    feature: str
    measure: str
    state: str
    layer: int
    unit: int
    sign: int
    score: float
    chosen_score: float
    chance: float
    chance_high: float
    untrained: float
    passage: tuple[int, int]

    @property
    def gain(self) -> float:
        """How much better than chance and than an untrained network, where 1 is perfect instead of useless."""
        scale = 2 if self.measure == "auc" else 1
        return scale * (self.score - max(self.untrained, self.chance_high))


@dataclass(frozen=True)
class Units:
    """The best unit for each feature of a text.

    Attributes:
        scores: the strongest first: see :attr:`UnitScore.gain`.
        left_out: feature → why it has no score.
        chosen_on: characters that units were chosen on.
        measured_on: characters that they were measured on, later in the text.
    """

    scores: tuple[UnitScore, ...]
    left_out: dict[str, str]
    chosen_on: int
    measured_on: int


def units(model: LanguageModel, text: Text, symbols: Symbols, *, progress: Progress | None = None) -> Units:
    """Find the unit that tracks each feature best.

    At most 50,000 characters are used, in blocks of 5,000 that are spread evenly over the text; each is read from a zero state,
    after 1,000 characters that only prepare it. Units are chosen on the first 60 % of them, and measured on the rest.

    Args:
        text: N characters.
        symbols: the same N characters, as code points or bytes.
        progress: (characters read, characters to read), for all states and for the untrained network.

    Raises:
        UsageError: the text has several records.
        CorpusError: no feature occurs often enough.
        DivergedError: the states are NaN or infinite.
    """
    text.require_one_stream()
    names, L, H = model.layers[0].entry.state, model.section.layers, model.section.hidden
    blocks = _blocks(symbols, min(POSITIONS, max(_BLOCK, _VALUES // (len(names) * L * H))))
    known = _features(symbols, blocks)
    positions = sum(stop - start for _, start, stop in blocks)
    cut = int(positions * _CHOSEN_ON)
    reasons = {feature.name: _why_not(feature, cut) for feature in known}
    used = [feature for feature in known if not reasons[feature.name]]
    if not used:
        raise CorpusError(
            f"no feature occurs often enough in this text of {len(text):,} characters; one must begin "
            f"{_FEWEST_STRETCHES} times in the first {100 * _CHOSEN_ON:.0f} % and in the rest; give a longer text"
        )
    parts = _Part(used, slice(0, cut)), _Part(used, slice(cut, positions))
    untrained = LanguageModel(model.section, model.vocabulary_size, model.engine.name)
    untrained.initialise(0)
    reading = _Reading(text, blocks, 2 * len(names) * positions, progress)
    best = _choose(reading.keys(model), *parts)
    least = _choose(reading.keys(untrained.to(model.output_bias.device)), *parts)
    scores = []
    for number, feature in enumerate(used):
        row, offset = int(best.rows[0, number]), 0.0 if not feature.is_binary else 0.5
        moved = best.measured[1:, number] + offset
        state, layer, unit = np.unravel_index(row, (len(names), L, H))
        scores.append(
            UnitScore(
                feature=feature.name,
                measure="auc" if feature.is_binary else "spearman",
                state=names[int(state)],
                layer=int(layer),
                unit=int(unit),
                sign=int(best.signs[0, number]),
                score=float(best.measured[0, number] + offset),
                chosen_score=float(best.chosen[0, number] + offset),
                chance=float(moved.mean()),
                chance_high=float(moved.max()),
                untrained=float(least.measured[0, number] + offset),
                passage=_passage(feature, symbols, blocks, cut),
            )
        )
    scores.sort(key=lambda score: -score.gain)
    return Units(tuple(scores), {name: reason for name, reason in reasons.items() if reason}, cut, positions - cut)


def trace(model: LanguageModel, text: Text, state: str, layer: int, unit: int, start: int, stop: int) -> _Floats:
    """The values of one unit over a passage; at most 1,000 characters before it are read first.

    Args:
        state: ``h``, or ``c`` of an LSTM.
        layer, unit: counted from 0.
        start, stop: of the passage, in the text.

    Returns:
        ``(stop − start,)``.

    Raises:
        UsageError: the model has no such unit or state.
        DivergedError: the states are NaN or infinite.
    """
    L, H = model.section.layers, model.section.hidden
    if not (0 <= layer < L and 0 <= unit < H):
        raise UsageError(f"{layer}:{unit}: the layers are 0 to {L - 1} and their units 0 to {H - 1}", parameter="unit")
    names = model.layers[0].entry.state
    if state not in names:
        raise UsageError(f"{state}: the states of this cell are {' and '.join(names)}", parameter="state")
    lead = max(0, start - _LEAD)
    return hidden_states(model, text[slice(lead, stop)], state)[start - lead :, layer, unit].copy()


# --------------------------------------------------------------------------------------------------------------------
# Which characters, and their features
# --------------------------------------------------------------------------------------------------------------------

_Blocks = list[tuple[int, int, int]]
"""(first character read, first that counts, one past the last)."""


def _blocks(symbols: Symbols, positions: int) -> _Blocks:
    if len(symbols) <= positions:
        return [(0, 0, len(symbols))]
    count = max(2, positions // _BLOCK)
    blocks = []
    for number in range(count):
        start = number * (len(symbols) - _BLOCK) // (count - 1)
        lead = max(0, start - _LEAD)
        line = symbols.characters(lead, start).find("\n") + 1 if lead else 0
        blocks.append((lead + line, start, start + _BLOCK))
    return blocks


def _features(symbols: Symbols, blocks: _Blocks) -> list[Feature]:
    """The features of all characters that count, one block after the other."""
    texts = [symbols.characters(lead, stop) for lead, _, stop in blocks]
    syntax = Syntax.of("\n".join(texts))
    found = [features(text, syntax) for text in texts]
    joined = []
    for group in zip(*found, strict=True):
        kept = [one.values[start - lead :] for one, (lead, start, _) in zip(group, blocks, strict=True)]
        joined.append(Feature(group[0].name, np.concatenate(kept)))
    return joined


def _why_not(feature: Feature, cut: int) -> str:
    """Why a feature has no score; empty: it has one."""
    active = feature.is_active
    if not active.any():
        return "it does not occur"
    stretches = [_stretches(part) for part in (active[:cut], active[cut:])]
    if min(stretches) < _FEWEST_STRETCHES:
        return f"it begins {stretches[0]} and {stretches[1]} times in the two parts; at least {_FEWEST_STRETCHES} are needed"
    if min(min(part.sum(), (~part).sum()) for part in (active[:cut], active[cut:])) < _FEWEST:
        return f"fewer than {_FEWEST} characters of a part have it, or lack it"
    return ""


def _stretches(active: npt.NDArray[np.bool_]) -> int:
    return int((active & ~np.concatenate([[False], active[:-1]])).sum()) if len(active) else 0


def _passage(feature: Feature, symbols: Symbols, blocks: _Blocks, cut: int) -> tuple[int, int]:
    """Where in the text, among the last characters that count, the feature begins most often; from the start of a line."""
    places = np.concatenate([np.arange(start, stop) for _, start, stop in blocks])[cut:]
    active = feature.is_active[cut:]
    begins = np.concatenate([[0], np.cumsum(active[1:] & ~active[:-1])])
    size = min(_PASSAGE, len(places))
    # A passage must not reach from one block into the next.
    starts = np.flatnonzero(places[size - 1 :] - places[: len(places) - size + 1] == size - 1)
    start = int(places[starts[np.argmax(begins[starts + size - 1] - begins[starts])]]) if len(starts) else int(places[0])
    line = symbols.characters(start, start + size // 2).find("\n") + 1
    return start + line, start + size


# --------------------------------------------------------------------------------------------------------------------
# Ranks
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """Reads the blocks with a model; counts the characters of all models together."""

    text: Text
    blocks: _Blocks
    todo: int
    progress: Progress | None
    done: list[int] = field(default_factory=lambda: [0])

    def keys(self, model: LanguageModel) -> _Keys:
        """``(U, P)`` every unit of every state at every character, as integers in the order of its values.

        The values are rounded to 16 bits (fp16), whose bit patterns are put in order.
        """
        names, L, H = model.layers[0].entry.state, model.section.layers, model.section.hidden
        keys = np.empty((len(names) * L * H, sum(stop - start for _, start, stop in self.blocks)), dtype=np.uint16)
        for number, name in enumerate(names):
            at = 0
            for lead, start, stop in self.blocks:
                values = hidden_states(model, self.text[slice(lead, stop)], name)[start - lead :].reshape(stop - start, L * H)
                with np.errstate(over="ignore"):  # beyond 65,504 all are equal
                    bits = (values.astype(np.float16) + np.float16(0)).view(np.uint16)  # −0 + 0 = +0
                ordered = np.where(bits >= 0x8000, ~bits, bits | 0x8000)
                keys[number * L * H : (number + 1) * L * H, at : at + stop - start] = ordered.T
                at += stop - start
                self.done[0] += stop - start
                if self.progress is not None:
                    self.progress(self.done[0], self.todo)
        return keys


class _Part:
    """K features on one part of the characters, and moved along it: what ranks are multiplied with.

    Attributes:
        part: of the characters, n of them.
        columns: ``(n, (1 + S)·K)``: first as they are, then moved by 1/(S + 1) of the part, 2/(S + 1), and so on.
        scale: ``(K,)`` for AUC − ½ = scale·Σ rank, and for ρ = scale·Σ rank/√Σ rank².
    """

    def __init__(self, used: list[Feature], part: slice) -> None:
        self.part, self.is_binary = part, np.array([feature.is_binary for feature in used])
        values = [feature.values[part] for feature in used]
        n, columns, scale = len(values[0]), [], []
        for feature, own in zip(used, values, strict=True):
            if feature.is_binary:
                count = int(own.sum())
                columns.append(own.astype(np.float32))
                scale.append(n / (count * (n - count)))
            else:
                _, keys = np.unique(own, return_inverse=True)
                ranks = _ranks(keys)
                columns.append(ranks)
                scale.append(1 / np.sqrt(float((ranks.astype(np.float64) ** 2).sum())))
        as_it_is = np.stack(columns, axis=1)
        moved = [np.roll(as_it_is, shift * n // (_SHIFTS + 1), axis=0) for shift in range(_SHIFTS + 1)]
        self.columns, self.scale = np.concatenate(moved, axis=1), np.array(scale)

    def relations(self, keys: _Keys) -> npt.NDArray[np.float64]:
        """``(U, 1 + S, K)`` AUC − ½ or ρ, for each unit, shift and feature."""
        found = np.empty((len(keys), 1 + _SHIFTS, len(self.scale)))
        for start in range(0, len(keys), _UNITS_AT_ONCE):
            ranks = np.stack([_ranks(row[self.part]) for row in keys[start : start + _UNITS_AT_ONCE]])
            length = np.sqrt((ranks.astype(np.float64) ** 2).sum(axis=1))[:, None, None]
            sums = (ranks @ self.columns).astype(np.float64).reshape(len(ranks), 1 + _SHIFTS, -1) * self.scale
            found[start : start + len(ranks)] = np.where(self.is_binary, sums, sums / np.maximum(length, 1e-9))
        return found


def _ranks(keys: npt.NDArray[np.integer]) -> _Floats:
    """Ranks of n integers from 0 to 65,535, ties in their middle, from −½ to ½."""
    counts = np.bincount(keys)
    ends = np.cumsum(counts)
    middle = (ends - counts / 2) / len(keys) - 0.5
    return np.asarray(middle[keys], dtype=np.float32)


@dataclass(frozen=True)
class _Best:
    """The best unit for each shift and feature: ``(1 + S, K)`` each."""

    rows: npt.NDArray[np.int64]
    signs: npt.NDArray[np.float64]
    chosen: npt.NDArray[np.float64]
    measured: npt.NDArray[np.float64]


def _choose(keys: _Keys, first: _Part, second: _Part) -> _Best:
    """Choose on the first part and measure on the second."""
    chosen = first.relations(keys)
    rows = np.abs(chosen).argmax(axis=0)
    at = rows[None]
    signs = np.where(np.take_along_axis(chosen, at, 0)[0] < 0, -1.0, 1.0)
    measured = np.take_along_axis(second.relations(keys), at, 0)[0]
    return _Best(rows, signs, signs * np.take_along_axis(chosen, at, 0)[0], signs * measured)
