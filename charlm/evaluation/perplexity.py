"""The negative log-likelihood of a text in nats per character, and its exponential, perplexity.

Every result is Σ nats / Σ scored characters, summed in float64, never a mean of means. The first character of a text has
no predecessor and is never scored. There are three ways to read the text:

    carried     exact: one stream, state carried from the first character to the last
    segments    cheap, for validation during training: S segments in parallel, each after the W characters before it
    reset       windows of N characters, each from a zero state, as for models without carried state

A text of records (:mod:`charlm.data.records`) is read record by record instead, each from a zero state. Its first separator
is the character without a predecessor; every other separator is scored as the end of its record.

All arithmetic is fp32, for every training precision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charlm.data.dataset import Text
from charlm.data.streams import side_by_side
from charlm.distributed import ALONE, World
from charlm.errors import DivergedError
from charlm.evaluation.limits import CHUNK
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.threads import Tuner

_LOGITS_AT_ONCE = 1 << 22
_WINDOWS_AT_ONCE = 64
_POOL = 1 << 15  # characters of successive records that are sorted by length
_POSITIONS, _COLUMNS = 1 << 14, 256  # of a batch of records


@dataclass(frozen=True)
class Score:
    """The score of a text.

    Attributes:
        nats: Σ −ln p of the scored characters.
        characters: number of scored characters.
        unknown_characters: number of them outside the vocabulary, which were scored as ``<unk>``.
    """

    nats: float
    characters: int
    unknown_characters: int = 0

    @property
    def nats_per_character(self) -> float:
        """Mean negative log-likelihood."""
        return self.nats / self.characters

    @property
    def bits_per_character(self) -> float:
        """Mean negative log-likelihood in bits."""
        return self.nats_per_character / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats per character): the number of equally likely characters with the same uncertainty."""
        return perplexity(self.nats_per_character)


def perplexity(nats_per_character: float) -> float:
    """exp(nats per character); infinity beyond the range of a float."""
    return math.exp(nats_per_character) if nats_per_character < 700 else math.inf


def seconds_per_character(model: LanguageModel, text: Text) -> float:
    """Duration of :func:`carried` per character here, measured on the beginning of a text of at least two characters."""
    trial = text[slice(0, 257)]
    for _ in range(2):  # the first call includes set-up
        began = time.perf_counter()
        carried(model, trial)
    return (time.perf_counter() - began) / (len(trial) - 1)


def carried(
    model: LanguageModel,
    text: Text,
    *,
    chunk: int = CHUNK,
    unknown_id: int | None = None,
    progress: Progress | None = None,
    each: npt.NDArray[np.float64] | None = None,
) -> Score:
    """The exact result: every character but the first, each given all before it; in a record, all of the record before it.

    Args:
        text: N characters; N − 1 are scored.
        chunk: characters per call; 0: all at once. The result does not depend on it.
        unknown_id: the id to count as unknown.
        each: ``(N − 1,)``, filled with the nats of each scored character.
    """
    targets = len(text) - 1
    chunk = chunk or targets
    if text.separator is not None:
        starts, lengths = records_of(text)
        return _by_record(model, text, starts, lengths, chunk=chunk, unknown_id=unknown_id, progress=progress, each=each)
    total, unknown = 0.0, 0
    tuner = _tuner(model)
    with torch.inference_mode():
        state = model.zero_state(1)
        for start in range(0, targets, chunk):
            ids = torch.from_numpy(text.ids(start, min(start + chunk, targets) + 1)).to(state[0].device)
            with tuner.piece(len(ids)):
                features, state = model.features(ids[:-1, None], state)
                blocks = list(_blocks(model, features, ids[1:, None]))
                total += sum(float(block.sum()) for block in blocks)
            if each is not None:
                each[start : start + len(ids) - 1] = torch.cat(blocks).cpu().numpy()
            unknown += int((ids[1:] == unknown_id).sum()) if unknown_id is not None else 0
            if progress is not None:
                progress(min(start + chunk, targets), targets)
    return Score(total, targets, unknown)


def reset(
    model: LanguageModel, text: Text, *, window: int, unknown_id: int | None = None, progress: Progress | None = None
) -> Score:
    """Windows of ``window`` characters, each from a zero state; the last may be shorter."""
    targets = len(text) - 1
    starts = np.arange(0, targets, window, dtype=np.int64)
    total, unknown = 0.0, 0
    tuner = _tuner(model)
    with torch.inference_mode():
        for first in range(0, len(starts), _WINDOWS_AT_ONCE):
            group = starts[first : first + _WINDOWS_AT_ONCE]
            inputs, expected = side_by_side(text.at, group, np.minimum(window, targets - group))
            total += _read(model, inputs, expected, model.zero_state(len(group)), tuner)[0]
            unknown += int((expected == unknown_id).sum()) if unknown_id is not None else 0
            if progress is not None:
                progress(int(min(group[-1] + window, targets)), targets)
    return Score(total, targets, unknown)


def segments(
    model: LanguageModel,
    text: Text,
    *,
    pieces: int = 32,
    warm: int = 1000,
    characters: int | None = None,
    progress: Progress | None = None,
    world: World = ALONE,
) -> Score:
    """The cheap result: like :func:`carried`, but read in S segments in parallel.

    Each segment but the first starts from the state after the W characters before it, which are read but not scored. Older
    context is lost; the difference is far below 1e-3 nats for W = 1,000. Every character but the first is scored once. A
    short text is cut into fewer segments, none shorter than W. In a text of records some whole records are scored, exactly.

    Args:
        pieces: maximum of S.
        warm: W.
        characters: score only this many, in segments spread evenly over the text, since its beginning may be untypical.
        progress: counts the characters of all processes.
        world: the processes that share the segments.
    """
    starts, lengths = quick_parts(text, pieces=pieces, warm=warm, characters=characters)
    if text.separator is not None:  # every process reads all records
        return _by_record(model, text, starts, lengths, progress=progress)
    targets = int(lengths.sum())
    own = world.share(len(starts))
    total, failure = 0.0, None
    each = _by_segments(model, text, starts[own.start : own.stop], lengths[own.start : own.stop], warm) if own else iter(())
    # Chunk by chunk, so that memory does not grow with the text; all processes count the same chunks.
    for at in range(0, int(lengths.max()), CHUNK):
        try:
            total += next(each, 0.0)
        except DivergedError as error:  # the others must learn of it
            failure, total = error, math.nan
        if progress is not None:
            progress(int(np.minimum(lengths, at + CHUNK).sum()), targets)
    total = world.sum(total)
    if not math.isfinite(total):
        raise failure or DivergedError("the model's logits are NaN or infinite in another process")
    return Score(total, targets)


@torch.inference_mode()
def _by_segments(
    model: LanguageModel, text: Text, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], warm: int
) -> Iterator[float]:
    """Σ nats of each chunk of some segments, side by side."""
    S = len(starts)
    tuner = _tuner(model)
    state = model.zero_state(S)
    cold = int(starts[0] == 0)  # the first segment of the text has nothing before it
    if cold < S and warm > 0:
        # Starts are at least W apart, so W characters precede every segment but the first.
        before, _ = side_by_side(text.at, starts[cold:] - warm, np.full(S - cold, warm, dtype=np.int64))
        warmed = model.zero_state(S - cold)
        for part in torch.split(before.to(state[0].device), CHUNK):
            with tuner.piece(part.numel()):
                _, warmed = model.features(part, warmed)
        state = tuple(torch.cat([zero[:, :cold], after], dim=1) for zero, after in zip(state, warmed, strict=True))
    for at in range(0, int(lengths.max()), CHUNK):
        inputs, expected = side_by_side(text.at, starts + at, np.clip(lengths - at, 0, CHUNK))
        nats, state = _read(model, inputs, expected, state, tuner)
        yield nats


def spread(
    length: int, *, pieces: int, warm: int, characters: int | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The characters that :func:`segments` scores in a text of ``length`` characters.

    Returns:
        ``(S,)`` the first scored character of each segment, counted from the second character of the text (the first that
        can be scored); and ``(S,)`` the number of scored characters of each segment.
    """
    targets = min(length - 1, characters or length)
    S = _pieces(targets, pieces, warm)
    numbers = np.arange(S + 1, dtype=np.int64)
    bounds, left_out = numbers * targets // S, numbers * (length - 1 - targets) // S
    return (bounds + left_out)[:-1], np.diff(bounds)


def quick_parts(
    text: Text, *, pieces: int, warm: int, characters: int | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The characters that :func:`segments` scores: see :func:`spread`. Of a text of records, records at equal distances."""
    if text.separator is None:
        return spread(len(text), pieces=pieces, warm=warm, characters=characters)
    starts, lengths = records_of(text)
    if characters is None or characters >= len(text) - 1:
        return starts, lengths
    every = -(-(len(text) - 1) // characters)
    starts, lengths = starts[::every], lengths[::every]
    lengths = np.clip(characters - (np.cumsum(lengths) - lengths), 0, lengths)
    return starts[lengths > 0], lengths[lengths > 0]


def records_of(text: Text) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The records of a text, or of its beginning.

    Returns:
        ``(R,)`` the place of the separator before each record, and ``(R,)`` the number of its targets.
    """
    edges = np.unique([0, *text.bounds(), len(text) - 1])
    return edges[:-1], np.diff(edges)


def read_by_segments(length: int, *, pieces: int, warm: int, characters: int | None) -> int:
    """The number of characters that :func:`segments` reads in a text of ``length``, scored or not."""
    targets = min(length - 1, characters or length)
    return targets + (_pieces(targets, pieces, warm) - 1) * warm


def _pieces(targets: int, pieces: int, warm: int) -> int:
    return max(1, min(pieces, targets // max(1, warm)))


def _by_record(
    model: LanguageModel,
    text: Text,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    chunk: int = CHUNK,
    unknown_id: int | None = None,
    progress: Progress | None = None,
    each: npt.NDArray[np.float64] | None = None,
) -> Score:
    """Score records, each from a zero state; those of similar length side by side.

    Args:
        starts, lengths: ``(R,)`` from :func:`records_of`.
        chunk: time steps per call.
        unknown_id, progress, each: see :func:`carried`. ``progress`` is told how many characters from the first on are done.
    """
    total, unknown, done, targets = 0.0, 0, 0, int(lengths.sum())
    tuner = _tuner(model)
    pools = np.split(np.arange(len(starts)), np.flatnonzero(np.diff(starts // _POOL)) + 1)
    with torch.inference_mode():
        for pool in pools:
            left = pool[np.argsort(-lengths[pool], kind="stable")]
            while len(left):
                count = max(1, min(_COLUMNS, _POSITIONS // int(lengths[left[0]])))
                group, left = left[:count], left[count:]
                state = model.zero_state(len(group))
                for at in range(0, int(lengths[group[0]]), chunk):
                    group = group[lengths[group] > at]  # the longest records come first
                    here = np.minimum(lengths[group] - at, chunk)
                    inputs, expected = side_by_side(text.at, starts[group] + at, here)
                    state = tuple(part[:, : len(group)].contiguous() for part in state)
                    with tuner.piece(int(here.sum())):
                        features, state = model.features(inputs.to(state[0].device), state)
                        nats = torch.cat(list(_blocks(model, features, expected.to(state[0].device))))
                    total += float(nats.sum())
                    unknown += int((expected == unknown_id).sum()) if unknown_id is not None else 0
                    if each is not None:
                        columns = nats.view(expected.shape).T.cpu().numpy()
                        for column, start, length in zip(columns, (starts[group] + at).tolist(), here.tolist(), strict=True):
                            each[start : start + length] = column[:length]
            done += int(lengths[pool].sum())
            if progress is not None:
                progress(done, targets)
    return Score(total, targets, unknown)


def _tuner(model: LanguageModel) -> Tuner:
    return Tuner("evaluation", model.is_thread_invariant)


def _read(
    model: LanguageModel, inputs: Tensor, targets: Tensor, state: tuple[Tensor, ...], tuner: Tuner
) -> tuple[float, tuple[Tensor, ...]]:
    """Score ``(T, B)`` characters in chunks, with carried state; returns Σ nats."""
    total = 0.0
    for part, expected in zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True):
        with tuner.piece(part.numel()):
            features, state = model.features(part.to(state[0].device), state)
            total += _nats(model, features, expected.to(state[0].device))
    return total, state


def _nats(model: LanguageModel, features: Tensor, targets: Tensor) -> float:
    """Σ −ln p(target) in float64; see :func:`_blocks`."""
    return sum(float(block.sum()) for block in _blocks(model, features, targets))


def _blocks(model: LanguageModel, features: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """−ln p of each target in float64. The output layer is computed in blocks, so that a long chunk needs little memory.

    Args:
        features: ``(T, B, H)``.
        targets: ``(T, B)`` ids; ``IGNORED`` ones are not scored.

    Raises:
        DivergedError: the logits are NaN or infinite.
    """
    rows = max(1, _LOGITS_AT_ONCE // model.vocabulary_size)
    for part, expected in zip(torch.split(features.flatten(0, 1), rows), torch.split(targets.flatten(), rows), strict=True):
        nats = model.nll(part, expected)
        if not math.isfinite(float(nats.sum())):
            raise DivergedError(
                "the model's logits are NaN or infinite, so it has no perplexity: its weights have become too large"
            )
        yield nats
