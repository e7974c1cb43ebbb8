"""Cuts a training text into batches. Any batch of any epoch can be computed directly, which makes resuming exact.

``streams``: a text of N characters has N − 1 targets. It is cut into B contiguous streams, which are read in parallel.
Stream i starts at ⌊i(N−1)/B⌋. Lengths differ by at most one; missing last positions are masked, so every target counts
exactly once per epoch. State is carried from batch to batch and zeroed at the start of each epoch::

    text  a b c d e f g h i j k l m     12 targets, B=3:  stream 0 reads a b c d, stream 1 e f g h, stream 2 i j k l
    T=2   batch 0  inputs ab/ef/ij  targets bc/fg/jk      batch 1  inputs cd/gh/kl  targets de/hi/lm   (after d comes e)

``windows``: each batch is B random windows of T characters, each from a zero state.

Shapes are time-major, ``(T, B)``, as the recurrent layers read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charlm.config import TrainSection
from charlm.data.dataset import Text
from charlm.runtime import derived_seed

IGNORED = -100
"""Target of a masked position; the default ``ignore_index`` of ``cross_entropy``."""

_RARE = 0.25
"""Characters that occur once are replaced by ``<unk>`` only if they are at most this fraction of the text. In a shorter
text, most characters occur once, and replacing them would leave nothing to learn."""


@dataclass(frozen=True)
class Batch:
    """B streams for T steps.

    Attributes:
        inputs: ``(T, B)`` ids.
        targets: ``(T, B)`` ids, or ``IGNORED``.
        scored: number of targets of the whole batch that are not masked.
        fresh: whether the state must be zeroed before this batch.
    """

    inputs: Tensor
    targets: Tensor
    scored: int
    fresh: bool


@dataclass(frozen=True)
class BatchShape:
    """The batch size B and sequence length T that a text allows; ``shrunk``: they are smaller than requested."""

    batch: int
    seq_length: int
    shrunk: bool


def fit_batch(targets: int, batch: int, seq_length: int) -> BatchShape:
    """Shrink B and T to a short text: T to at most ``targets``, then B so that B·T ≤ ``targets``."""
    fitted_length = min(seq_length, targets)
    fitted_batch = max(1, min(batch, targets // fitted_length))
    return BatchShape(fitted_batch, fitted_length, (fitted_batch, fitted_length) != (batch, seq_length))


def side_by_side(
    read: Callable[[int, int], npt.NDArray[np.int64]],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    longest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Put B parts of a text into the columns of a batch; shorter ones are masked at the end.

    Args:
        read: (start, stop) → ids.
        starts: ``(B,)`` first input of each part.
        lengths: ``(B,)`` number of targets of each part.
        longest: rows of the batch; ``None``: the greatest length.

    Returns:
        Inputs and targets, each ``(longest, B)``; a target is the character after its input, or ``IGNORED``.
    """
    longest = int(lengths.max()) if longest is None else longest
    inputs = np.zeros((longest, len(starts)), dtype=np.int64)
    targets = np.full((longest, len(starts)), IGNORED, dtype=np.int64)
    for stream, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        if length:
            ids = read(start, start + length + 1)
            inputs[:length, stream] = ids[:-1]
            targets[:length, stream] = ids[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class Batches:
    """All batches of all epochs of one training text.

    Args:
        text: the training text, N characters.
        section: batch, seq_length, batching, random_offset, drop_last and seed of the recipe.
        unknown_rate: probability, per epoch, that a character that occurs once is read as ``<unk>``. It has no effect if
            more than a quarter of the text are such characters.
    """

    def __init__(self, text: Text, section: TrainSection, unknown_rate: float) -> None:
        self.text = text
        self.shape = fit_batch(len(text) - 1, section.batch, section.seq_length)
        self._section = section
        once = int(text.seen_once.sum())
        self._unknown_rate = unknown_rate if 0 < once <= _RARE * len(text) else 0.0

    def epoch_length(self, epoch: int) -> int:
        """Number of batches in this epoch."""
        B, T = self.shape.batch, self.shape.seq_length
        targets = len(self.text) - 1 - self._offset(epoch)
        if self._section.batching == "windows":
            return -(-targets // (B * T))
        longest = -(-targets // B)
        return max(1, targets // B // T) if self._section.drop_last else -(-longest // T)

    def steps_in(self, epochs: int) -> int:
        """Number of batches in the first ``epochs`` epochs."""
        if not self._section.random_offset:
            return epochs * self.epoch_length(0)
        return sum(map(self.epoch_length, range(epochs)))

    def skipped(self, epoch: int) -> int:
        """Number of targets that ``random_offset`` and ``drop_last`` skip in this epoch; 0 for windows."""
        if self._section.batching == "windows":
            return 0
        offset = self._offset(epoch)
        if not self._section.drop_last:
            return offset
        return len(self.text) - 1 - self.shape.batch * self.shape.seq_length * self.epoch_length(epoch)

    def batch(self, epoch: int, index: int, streams: range | None = None) -> Batch:
        """Batch ``index`` of epoch ``epoch``, both counted from 0.

        Args:
            streams: only these, with ``scored`` of the whole batch; ``None``: all.
        """
        starts, lengths = self._windows(epoch, index) if self._section.batching == "windows" else self._pieces(epoch, index)
        own = slice(None) if streams is None else slice(streams.start, streams.stop)
        inputs, targets = side_by_side(
            lambda start, stop: self._ids(start, stop, epoch), starts[own], lengths[own], int(lengths.max())
        )
        fresh = index == 0 or self._section.batching == "windows"
        return Batch(inputs, targets, int(lengths.sum()), fresh)

    def _pieces(self, epoch: int, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Start and number of targets of each stream in batch ``index``."""
        B, T = self.shape.batch, self.shape.seq_length
        offset = self._offset(epoch)
        bounds = offset + np.arange(B + 1, dtype=np.int64) * (len(self.text) - 1 - offset) // B
        starts = bounds[:-1] + index * T
        return starts, np.clip(bounds[1:] - starts, 0, T)

    def _windows(self, epoch: int, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        B, T = self.shape.batch, self.shape.seq_length
        random = np.random.default_rng(derived_seed(self._section.seed, "windows", epoch, index))
        return random.integers(0, len(self.text) - T, size=B), np.full(B, T, dtype=np.int64)

    def _offset(self, epoch: int) -> int:
        """Characters skipped at the start of this epoch: fewer than T, and at least B·T targets are left."""
        if not self._section.random_offset:
            return 0
        spare = len(self.text) - 1 - self.shape.batch * self.shape.seq_length
        return derived_seed(self._section.seed, "offset", epoch) % min(self.shape.seq_length, spare + 1)

    def _ids(self, start: int, stop: int, epoch: int) -> npt.NDArray[np.int64]:
        ids = self.text.ids(start, stop)
        if self._unknown_rate:
            (rare,) = np.nonzero(self.text.occurs_once(start, stop))
            for position in rare.tolist():  # at most one per symbol of the vocabulary in a whole epoch
                draw = derived_seed(self._section.seed, "unknown", epoch, start + position) / 2**63
                if draw < self._unknown_rate:
                    ids[position] = 0  # <unk>
        return ids
