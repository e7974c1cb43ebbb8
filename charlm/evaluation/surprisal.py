"""Which characters of a text surprise a model: −ln p of each, and what the model expected instead.

    nats_t = −ln p(x_t | x_0 … x_{t−1})        1 ≤ t < N

This is Shannon's information content (1948); as a measure of how hard a word is to read it is called surprisal (Hale 2001,
Levy 2008). The state is carried from the first character to the last, as in :func:`charlm.evaluation.perplexity.carried`, and
the sum over t is that function's result. The first character has no predecessor and is not scored. In a text of records the
state is reset at each separator.

    N characters    V symbols    k alternatives
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charlm.data.dataset import Text
from charlm.data.streams import IGNORED, side_by_side
from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.limits import CHUNK
from charlm.evaluation.perplexity import records_of
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.threads import Tuner

_LOGITS_AT_ONCE = 1 << 22
_POSITIONS = 4 * CHUNK  # of records that are read side by side

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Surprisal:
    """What n successive characters of a text cost.

    Attributes:
        start: index in the text of the first of them.
        nats: ``(n,)`` −ln p in float64.
        alternatives: ``(n, k)`` ids of the likeliest symbols other than the one that came, the likeliest first.
        probabilities: ``(n, k)`` theirs.
    """

    start: int
    nats: npt.NDArray[np.float64]
    alternatives: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]


def surprisal(model: LanguageModel, text: Text, *, alternatives: int = 5, progress: Progress | None = None) -> Surprisal:
    """Score every character of a text but the first; the arguments and errors of :func:`surprisal_parts`.

    Returns:
        All N − 1 scored characters.
    """
    parts = list(surprisal_parts(model, text, alternatives=alternatives, progress=progress))
    nats, ids, probabilities = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("nats", "alternatives", "probabilities")
    )
    return Surprisal(1, nats, ids, probabilities)


def surprisal_parts(
    model: LanguageModel, text: Text, *, alternatives: int = 5, progress: Progress | None = None
) -> Iterator[Surprisal]:
    """As :func:`surprisal`, part by part: the memory needed does not grow with the text.

    Args:
        text: N characters.
        alternatives: k at most; a small vocabulary has fewer.

    Raises:
        CorpusError: the text has fewer than two characters.
        DivergedError: the scores are NaN or infinite.
    """
    targets = len(text) - 1
    if targets < 1:
        raise CorpusError(f"the text has {len(text)} characters; at least two are needed, the first is not scored")
    k = min(alternatives, model.vocabulary_size - 1)
    tuner = Tuner("evaluation", model.is_thread_invariant)
    if text.separator is not None:
        yield from _by_record(model, text, k, tuner, progress)
        return
    state = model.zero_state(1)
    for start in range(0, targets, CHUNK):
        ids = torch.from_numpy(text.ids(start, min(start + CHUNK, targets) + 1)).to(state[0].device)
        with torch.inference_mode(), tuner.piece(len(ids)):
            features, state = model.features(ids[:-1, None], state)
            found = _scores(model, features[:, 0], ids[1:], k)
        yield Surprisal(start + 1, *found)
        if progress is not None:
            progress(min(start + CHUNK, targets), targets)


def _by_record(model: LanguageModel, text: Text, k: int, tuner: Tuner, progress: Progress | None) -> Iterator[Surprisal]:
    """The parts of a text of records: successive records side by side, or a piece of a long one."""
    starts, lengths = records_of(text)
    first = 0
    while first < len(starts):
        last, longest = first + 1, int(lengths[first])
        while last < len(starts) and max(longest, int(lengths[last])) * (last + 1 - first) <= _POSITIONS:
            longest = max(longest, int(lengths[last]))
            last += 1
        step = longest if last - first > 1 else CHUNK
        state = model.zero_state(last - first)
        for at in range(0, longest, step):
            here = np.minimum(lengths[first:last] - at, step)
            inputs, expected = (part.to(state[0].device) for part in side_by_side(text.at, starts[first:last] + at, here))
            with torch.inference_mode(), tuner.piece(int(here.sum())):
                features, state = model.features(inputs, state)
                scored = expected.T != IGNORED  # in the order of the text
                found = _scores(model, features.transpose(0, 1)[scored], expected.T[scored], k)
            yield Surprisal(int(starts[first]) + at + 1, *found)
        if progress is not None:
            progress(int(starts[last - 1] + lengths[last - 1]), len(text) - 1)
        first = last


def _scores(
    model: LanguageModel, features: Tensor, targets: Tensor, k: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Nats ``(n,)``, alternatives and their probabilities ``(n, k)``; the output layer in blocks, for a large V."""
    rows = max(1, _LOGITS_AT_ONCE // model.vocabulary_size)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part, expected in zip(torch.split(features, rows), torch.split(targets, rows), strict=True):
        nats = model.nll(part, expected)
        if not bool(torch.isfinite(nats).all()):
            raise DivergedError("the model's scores are NaN or infinite: its weights have grown too large")
        logits = model.logits(part).float()
        total = logits.logsumexp(-1, keepdim=True)
        others = logits.scatter(1, expected[:, None], -torch.inf)
        highest, ids = others.topk(k)
        found.append((nats, ids, (highest - total).double().exp()))
    columns = [torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)]
    return columns[0], columns[1], columns[2]


# --------------------------------------------------------------------------------------------------------------------
# Sums of lines and words
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A line with its line end, or a word.

    Attributes:
        start, stop: indices in the text.
        nats: Σ −ln p of its scored characters.
        characters: how many are scored: all but the text's first.
        worst: index of the most surprising one; ``None``: none is scored.
        worst_nats: what that one cost.
        alternative: id of the likeliest other symbol there.
        probability: of the alternative.
    """

    start: int
    stop: int
    nats: float
    characters: int
    worst: int | None = None
    worst_nats: float = 0.0
    alternative: int = 0
    probability: float = 0.0


def class_table(alphabet: npt.NDArray[np.unsignedinteger], unit: str, of: Literal["line", "word"]) -> Flags:
    """Which symbols of a text's alphabet end a line, or belong to a word, ``(alphabet,)``.

    A word is a run of letters and digits. In a text of bytes these are ASCII's, and all bytes above 127, which belong to
    letters in UTF-8 (and to some punctuation).
    """
    if of == "line":
        return np.asarray(alphabet == ord("\n"))
    is_byte = unit == "byte"
    return np.array([chr(symbol).isalnum() or (is_byte and symbol > 127) for symbol in alphabet.tolist()], dtype=np.bool_)


class Spans:
    """Adds up the parts of :func:`surprisal_parts` to lines or words.

    Args:
        text: the text.
        table: of :func:`class_table`.
        of: what the table tells.
    """

    def __init__(self, text: Text, table: Flags, of: Literal["line", "word"]) -> None:
        self._text, self._table, self._of = text, table, of
        is_open = of == "line" or bool(table[text.indices[0]])
        self._open: Span | None = Span(0, 1, 0.0, 0) if is_open else None

    def add(self, part: Surprisal) -> list[Span]:
        """Read the next part; the lines or words that ended in it."""
        n = len(part.nats)
        flags = self._table[self._text.indices[part.start - 1 : part.start + n]]
        before, here = flags[:-1], flags[1:]
        starts = before if self._of == "line" else before != here
        ended: list[Span] = []
        for first, last in pairwise([*([] if starts[0] else [0]), *np.flatnonzero(starts).tolist(), n]):
            if starts[first]:
                ended += self.close()
                if self._of == "line" or here[first]:
                    self._open = Span(part.start + first, part.start + first, 0.0, 0)
            if self._open is not None:
                self._open = _longer(self._open, part, first, last)
        return ended

    def close(self) -> list[Span]:
        """The line or word that has not ended yet; empty if there is none."""
        ended, self._open = self._open, None
        return [] if ended is None else [ended]


def _longer(span: Span, part: Surprisal, first: int, last: int) -> Span:
    """A span with the characters ``first … last − 1`` of a part appended."""
    nats = part.nats[first:last]
    at = first + int(nats.argmax())
    total, characters = span.nats + float(nats.sum()), span.characters + last - first
    stop = part.start + last
    if span.worst is not None and part.nats[at] <= span.worst_nats:
        return Span(
            span.start, stop, total, characters, span.worst, span.worst_nats, span.alternative, span.probability
        )  # fmt: skip
    return Span(
        span.start, stop, total, characters, part.start + at, float(part.nats[at]),
        int(part.alternatives[at, 0]), float(part.probabilities[at, 0]),
    )  # fmt: skip
