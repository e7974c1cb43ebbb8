"""Cuts a training text into batches. Any batch of any epoch can be computed directly, which makes resuming exact.

``streams``: a text of N characters has N − 1 targets. It is cut into B contiguous streams, which are read in parallel.
Stream i starts at ⌊i(N−1)/B⌋. Lengths differ by at most one; missing last positions are masked, so every target counts
exactly once per epoch. State is carried from batch to batch and zeroed at the start of each epoch::

    text  a b c d e f g h i j k l m     12 targets, B=3:  stream 0 reads a b c d, stream 1 e f g h, stream 2 i j k l
    T=2   batch 0  inputs ab/ef/ij  targets bc/fg/jk      batch 1  inputs cd/gh/kl  targets de/hi/lm   (after d comes e)

``windows``: each batch is B random windows of T characters, each from a zero state.

A text of records (:mod:`charlm.data.records`) has batches of its own: see :class:`RecordBatches`.

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
class Span:
    """Where a batch is in the text.

    Attributes:
        starts: ``(B,)`` first input of each stream.
        lengths: ``(B,)`` number of targets of each stream.
        fresh: whether the state must be zeroed before this batch.
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    fresh: bool

    @property
    def scored(self) -> int:
        """Number of targets."""
        return int(self.lengths.sum())


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
    read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    longest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Put B parts of a text into the columns of a batch; shorter ones are masked at the end.

    Args:
        read: positions in the text → their ids, of the same shape.
        starts: ``(B,)`` first input of each part.
        lengths: ``(B,)`` number of targets of each part.
        longest: rows of the batch; ``None``: the greatest length.

    Returns:
        Inputs and targets, each ``(longest, B)``; a target is the character after its input, or ``IGNORED``.
    """
    steps = np.arange((int(lengths.max()) if longest is None else longest) + 1)[:, None]
    # A masked position reads a character that the text has: the part's last, or its first if the part is empty.
    ids = read(np.where(lengths > 0, starts, 0) + np.minimum(steps, np.maximum(lengths, 0)))
    inputs, targets = ids[:-1], ids[1:]
    masked = steps[:-1] >= lengths
    if masked.any():
        inputs, targets = np.where(masked, 0, inputs), np.where(masked, IGNORED, targets)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def batches_of(text: Text, section: TrainSection, unknown_rate: float) -> Batches:
    """The batches of a training text; the arguments of :class:`Batches`."""
    return (Batches if text.separator is None else RecordBatches)(text, section, unknown_rate)


class Batches:
    """All batches of all epochs of one training text, read as one stream. :func:`batches_of` makes them for any text.

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
        span = self.span(epoch, index)
        own = slice(None) if streams is None else slice(streams.start, streams.stop)
        inputs, targets = side_by_side(
            lambda positions: self._ids(positions, epoch), span.starts[own], span.lengths[own], int(span.lengths.max())
        )
        return Batch(inputs, targets, span.scored, span.fresh)

    def span(self, epoch: int, index: int) -> Span:
        """Where that batch is in the text."""
        starts, lengths = self._windows(epoch, index) if self._section.batching == "windows" else self._pieces(epoch, index)
        return Span(starts, lengths, fresh=index == 0 or self._section.batching == "windows")

    def rare_positions(self) -> npt.NDArray[np.int64]:
        """Positions of the characters that some epochs read as ``<unk>``."""
        if not self._unknown_rate:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self.text.occurs_once(0, len(self.text)))

    def is_unknown(self, epoch: int, position: int) -> bool:
        """Whether this epoch reads the rare character at a position as ``<unk>``."""
        return derived_seed(self._section.seed, "unknown", epoch, position) / 2**63 < self._unknown_rate

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

    def _ids(self, positions: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        ids = self.text.at(positions)
        if self._unknown_rate:
            for place in np.argwhere(self.text.occurs_once_at(positions)):  # at most one per symbol in a whole epoch
                if self.is_unknown(epoch, int(positions[tuple(place)])):
                    ids[tuple(place)] = 0  # <unk>
        return ids


_POOL = 100  # groups of B records that are sorted together by length
_COUNTED = 100  # epochs whose batches are counted for a plan


class RecordBatches(Batches):
    """The batches of a text of records: each record is read from its start, with a zero state, once per epoch.

    A group of B records is read side by side, T steps at a time; the next group begins when all of them have ended. Positions
    after the end of a record are masked. A batch has only as many steps as its longest record needs::

        records  abcde  fghi  j  k     S is the separator, T=4, B=2
        batch 0  inputs Sabc/Sfgh  targets abcd/fghi     from a zero state
        batch 1  inputs de  /i     targets eS  /S        with the state of batch 0
        batch 2  inputs Sj  /Sk    targets jS  /kS       from a zero state

    Each epoch has its own order. The records of a group have similar lengths, so that little of a batch is masked.
    """

    def __init__(self, text: Text, section: TrainSection, unknown_rate: float) -> None:
        super().__init__(text, section, unknown_rate)
        self._bounds = text.bounds()
        self._targets = np.diff(self._bounds)  # of each record: its characters and the separator after it
        batch, seq_length = min(section.batch, len(self._targets)), min(section.seq_length, int(self._targets.max()))
        self.shape = BatchShape(batch, seq_length, batch < section.batch)
        self._are_short = int(self._targets.max()) <= seq_length  # one batch for each group
        self._latest: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self._epoch_lengths: dict[int, int] = {}

    def epoch_length(self, epoch: int) -> int:
        """Number of batches in this epoch."""
        if self._are_short:
            return -(-len(self._targets) // self.shape.batch)
        if epoch not in self._epoch_lengths:
            self._epoch_lengths[epoch] = int(self._groups(epoch)[1][-1])
        return self._epoch_lengths[epoch]

    def steps_in(self, epochs: int) -> int:
        """Number of batches in the first ``epochs`` epochs. From the 101st on, each counts as the mean of the first 100."""
        if self._are_short:
            return epochs * self.epoch_length(0)
        counted = min(epochs, _COUNTED)
        return round(epochs / max(1, counted) * sum(map(self.epoch_length, range(counted))))

    def skipped(self, epoch: int) -> int:
        """Nothing is skipped."""
        return 0

    def span(self, epoch: int, index: int) -> Span:
        """Where a batch is in the text."""
        B, T = self.shape.batch, self.shape.seq_length
        order, ends = self._groups(epoch)
        group = int(np.searchsorted(ends, index, side="right"))
        records = order[group * B : (group + 1) * B]
        done = T * (index - (int(ends[group - 1]) if group else 0))  # targets of each record in earlier batches
        starts, lengths = np.zeros((2, B), dtype=np.int64)  # the last group of an epoch can be smaller
        starts[: len(records)] = self._bounds[records] + done
        lengths[: len(records)] = np.clip(self._targets[records] - done, 0, T)
        return Span(starts, lengths, fresh=done == 0)

    def _groups(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All records in the order of an epoch, and for each group of B of them, the number of batches up to its end."""
        if self._latest is None or self._latest[0] != epoch:
            order = self._order(epoch)
            longest = np.maximum.reduceat(self._targets[order], np.arange(0, len(order), self.shape.batch))
            self._latest = epoch, order, np.cumsum(-(-longest // self.shape.seq_length))
        return self._latest[1:]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """All records: shuffled, then sorted by length within pools, then the groups of each pool shuffled."""
        B = self.shape.batch
        random = np.random.default_rng(derived_seed(self._section.seed, "records", epoch))
        order = random.permutation(len(self._targets))
        whole = len(order) - len(order) % B  # the last, smaller group has any lengths
        for start in range(0, whole, _POOL * B):
            pool = order[start : min(start + _POOL * B, whole)]
            groups = pool[np.argsort(self._targets[pool], kind="stable")].reshape(-1, B)
            pool[:] = groups[random.permutation(len(groups))].ravel()
        return order
