"""How far back a model's predictions depend on the text.

Everything is measured at the same P positions t, which are spread evenly over the text:

    full         mean of −ln p(x_t | x_0 … x_{t−1}), the state carried from the beginning of the text
    cut(k)       mean of −ln p(x_t | x_{t−k} … x_{t−1}), from a zero state: the history is cut to k characters
    shuffled(k)  as cut(k), but S characters come first: those before x_{t−k}, in random order
    replaced(k)  as cut(k), but S characters of another place of the text come first

For k = 0 nothing has been read: the output layer of a zero state, which is softmax(b).

``effective_context`` is the smallest k with cut(k) ≤ 1.01·full, for which this also holds at every larger distance measured.
It is located by bisection between two of the distances, to within 5 % of its value. Shuffling and replacing words beyond a
distance follow Khandelwal et al. 2018, "Sharp nearby, fuzzy far away: how neural language models use context".

Independent of these positions, ``cold_start`` is the mean loss after 1, 2, … characters from a zero state, over windows
spread on the text.

    N characters    P positions    K largest distance    H hidden units
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charlm.data.dataset import Text
from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.surprisal import surprisal_parts
from charlm.model.cells import State
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.threads import Tuner

DISTANCES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
FEWEST = 256
"""Positions without which there is no effective context: the mean is too uncertain."""
TOLERANCE = 0.01

_BEFORE = 200  # S at most
_WINDOWS = 256
_STEPS = 64  # characters per call
_STATE_AT_ONCE = 1 << 24  # numbers

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Context:
    """What the history is worth, in nats per character.

    Attributes:
        effective_context: see the module; ``None``: the text is too short (fewer than 256 positions), or even the largest
            distance is not enough.
        distances: k, ascending.
        cut, shuffled, replaced: the mean loss for each of them.
        full: the mean loss with the full history.
        cold_start: ``(K,)`` mean loss after 1, 2, … K characters.
        positions: P.
    """

    effective_context: int | None
    distances: Indices
    cut: Floats
    shuffled: Floats
    replaced: Floats
    full: float
    cold_start: Floats
    positions: int


def context(
    model: LanguageModel, text: Text, *, positions: int = 512, seed: int = 1, progress: Progress | None = None
) -> Context:
    """Measure a model's context on a text.

    A short text has fewer distances. Memory does not grow with the text.

    Args:
        text: N characters.
        positions: P at most.
        seed: of the shuffled order.

    Raises:
        UsageError: the text has several records.
        CorpusError: the text has fewer than two characters.
        DivergedError: the scores are NaN or infinite.
    """
    text.require_one_stream()
    if len(text) < 2:
        raise CorpusError(f"the text has {len(text)} characters; at least two are needed, the first is not scored")
    distances = [k for k in DISTANCES if len(text) - _earliest(k) >= min(FEWEST, len(text) - 1)]
    K = distances[-1]
    first = _earliest(K)
    P = min(positions, len(text) - first)
    at = np.linspace(first, len(text) - 1, P).round().astype(np.int64)
    count = _Count(progress, len(text) - 1 + P * _steps(distances) + min(_WINDOWS, len(text) - K) * K)
    full = _full(model, text, at, count)
    measure = _Measure(model, text, at, min(K, _BEFORE), np.random.default_rng(seed), count)
    cut, shuffled, replaced = measure.all(distances)
    cold_start = _cold_start(model, text, K, count)
    effective = None
    if P >= FEWEST:
        effective = _effective(distances, cut.tolist(), (1 + TOLERANCE) * full, measure.cut)
    return Context(effective, np.array(distances), cut, shuffled, replaced, full, cold_start, P)


def _earliest(k: int) -> int:
    """The first position before which there are k characters and, before these, S more."""
    return max(1, k + min(k, _BEFORE))


def _steps(distances: list[int]) -> int:
    """Characters that are read for each position."""
    S = min(distances[-1], _BEFORE)
    return S + sum(3 * k + S for k in distances)


def _effective(distances: list[int], cut: list[float], bound: float, measure: Callable[[int], float]) -> int | None:
    """The smallest k within the bound; between two distances it is measured."""
    within = len(cut)
    while within > 0 and cut[within - 1] <= bound:
        within -= 1
    if within == len(cut):
        return None
    low, high = distances[within - 1] if within else 0, distances[within]
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        low, high = (low, middle) if measure(middle) <= bound else (middle, high)
    return high


class _Count:
    """Tells how many characters have been read."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def add(self, characters: int) -> None:
        self._done = min(self._total, self._done + characters)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _full(model: LanguageModel, text: Text, at: Indices, count: _Count) -> float:
    """The mean loss at the positions with the full history."""
    total = 0.0
    for part in surprisal_parts(model, text, alternatives=0):
        here = at[(at >= part.start) & (at < part.start + len(part.nats))]
        total += float(part.nats[here - part.start].sum())
        count.add(len(part.nats))
    return total / len(at)


def _ids(text: Text, indices: Indices) -> Tensor:
    return torch.from_numpy(np.asarray(text.lookup[text.indices[indices]], dtype=np.int64))


def _history(text: Text, ends: Indices, k: int) -> Tensor:
    """The k characters before each of some positions: ``(k, B)``."""
    return _ids(text, ends - k + np.arange(k)[:, None])


def _group(model: LanguageModel, streams: int) -> int:
    """How many streams are read side by side: fewer if their state is large, as attention's memory is."""
    return max(8, min(streams, _STATE_AT_ONCE // sum(part.numel() for part in model.zero_state(1))))


def _checked(nats: Tensor) -> Tensor:
    if not bool(torch.isfinite(nats).all()):
        raise DivergedError("the model's scores are NaN or infinite: its weights have grown too large")
    return nats


class _Measure:
    """Losses at the positions with a part of the history."""

    def __init__(self, model: LanguageModel, text: Text, at: Indices, S: int, rng: np.random.Generator, count: _Count) -> None:
        self._S = S
        self._model, self._text, self._at, self._count = model, text, at, count
        self._tuner = Tuner("evaluation", model.is_thread_invariant)
        # The history of the position that is half of the text away.
        self._elsewhere = np.roll(at, len(at) // 2)
        self._order = rng.permuted(np.tile(np.arange(S), (len(at), 1)), axis=1)

    def cut(self, k: int) -> float:
        """cut(k), see the module."""
        total = 0.0
        for group in self._groups():
            total += self._loss(group, k, *self._nothing(group))
        return total / len(self._at)

    def all(self, distances: list[int]) -> Floats:
        """cut, shuffled and replaced for each distance: ``(3, distances)``."""
        sums = np.zeros((3, len(distances)))
        S = self._S
        for group in self._groups():
            nothing = self._nothing(group)
            elsewhere = self._read(_history(self._text, self._elsewhere[group], S), *nothing)
            for number, k in enumerate(distances):
                before = _ids(self._text, self._at[group] - k - S + self._order[group].T)
                shuffled = self._read(before, *nothing)
                sums[:, number] += [self._loss(group, k, *start) for start in (nothing, shuffled, elsewhere)]
        return sums / len(self._at)

    def _groups(self) -> list[Indices]:
        size = _group(self._model, len(self._at))
        return [np.arange(start, min(start + size, len(self._at))) for start in range(0, len(self._at), size)]

    def _nothing(self, group: Indices) -> tuple[Tensor, State]:
        """What the output layer sees before anything has been read, and the state."""
        state = self._model.zero_state(len(group))
        return torch.zeros(len(group), self._model.section.hidden, device=state[0].device), state

    def _loss(self, group: Indices, k: int, features: Tensor, state: State) -> float:
        """Σ −ln p at some positions, after the k characters before them."""
        features, _ = self._read(_history(self._text, self._at[group], k), features, state)
        targets = _ids(self._text, self._at[group]).to(features.device)
        return float(_checked(self._model.nll(features, targets)).sum())

    def _read(self, ids: Tensor, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Read ``(T, B)`` ids: what the output layer sees after the last, ``(B, H)``, and the state."""
        with torch.inference_mode():
            for part in torch.split(ids, _STEPS) if len(ids) else ():
                with self._tuner.piece(part.numel()):
                    outputs, state = self._model.features(part.to(features.device), state)
                features = outputs[-1]
                self._count.add(part.numel())
        return features, state


def _cold_start(model: LanguageModel, text: Text, K: int, count: _Count) -> Floats:
    """The mean loss after 1 … K characters from a zero state, over windows spread on the text."""
    starts = np.linspace(0, len(text) - 1 - K, min(_WINDOWS, len(text) - K)).round().astype(np.int64)
    total = np.zeros(K)
    size = _group(model, len(starts))
    tuner = Tuner("evaluation", model.is_thread_invariant)
    with torch.inference_mode():
        for first in range(0, len(starts), size):
            group = starts[first : first + size]
            state = model.zero_state(len(group))
            for step in range(0, K, _STEPS):
                stop = min(step + _STEPS, K)
                ids = _ids(text, group + np.arange(step, stop + 1)[:, None]).to(state[0].device)
                with tuner.piece(ids.numel()):
                    features, state = model.features(ids[:-1], state)
                    nats = _checked(model.nll(features.flatten(0, 1), ids[1:].flatten()))
                total[step:stop] += nats.view(stop - step, -1).sum(1).cpu().numpy()
                count.add(ids[1:].numel())
    return total / len(starts)
