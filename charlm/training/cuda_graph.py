"""Training steps on a GPU without waiting for the CPU: the whole step is one CUDA graph, and several steps are queued at once.

A graph holds gathering the batch from the text, forward, loss, backward, clipping, optimizer, loss scale and the carried state.
What changes from step to step (the place in the text, the learning rate, the keys of dropout) is in tables that one copy sends
for all queued steps. Losses and norms are read when all have run.

The GPU itself detects a loss or gradient that is not finite: that step and those queued after it change nothing, so the state
before it can still be saved. The results agree with :class:`charlm.training.update.Updater` up to rounding.

    T time steps    B streams    V symbols
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm.config import TrainSection
from charlm.data.streams import IGNORED, Batches, Span
from charlm.distributed import ALONE, World
from charlm.model.cells import State
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.model.replay import Replay, Table
from charlm.optimizers import OPTIMIZERS
from charlm.runtime import arithmetic
from charlm.training.loss_scale import LossScale
from charlm.training.update import Outcome, Updater

AT_ONCE = 16
"""The largest number of steps that are queued before their losses are read."""

_SHARE = 4
"""The text is kept on the GPU if it takes at most this fraction (1/4) of the free memory."""


def why_not(section: TrainSection, device: torch.device, world: World = ALONE) -> str | None:
    """Why a training cannot run as CUDA graphs; ``None``: it can."""
    if device.type != "cuda":
        return "CUDA graphs need a GPU"
    if world.size > 1:
        return "the processes exchange their gradients in the middle of a step"
    if section.accumulate > 1:
        return f"train.accumulate computes a step in {section.accumulate} parts"
    if section.optimizer not in _SKIPPABLE:
        entry = OPTIMIZERS[section.optimizer]
        return f"PyTorch's {entry.torch_name} cannot skip an update on the GPU; {', '.join(_SKIPPABLE)} can"
    return None


_SKIPPABLE = ("sgd", "adam", "adamw")
"""Optimizers with fused kernels, which read ``found_inf`` on the GPU."""


@dataclass(frozen=True)
class Job:
    """One step to queue.

    Attributes:
        span: its batch in the text.
        epoch, index: the number of the batch.
        rate: the learning rate.
        dropout: its zeros.
    """

    span: Span
    epoch: int
    index: int
    rate: float
    dropout: Dropout


class GraphUpdater(Updater):
    """Trains on several batches per call, each step a replay of one graph. On a CPU the same step runs without a graph.

    Args:
        model, section, precision: see :class:`Updater`.
        batches: of the training text.
    """

    def __init__(self, model: LanguageModel, section: TrainSection, precision: str, batches: Batches) -> None:
        super().__init__(model, section, precision)
        B, device = batches.shape.batch, self._device
        keys = len(Dropout(model.section, 0, 0).keys())
        self._control = Table((AT_ONCE, 3 + keys), torch.int64, device)  # scored, fresh, rate's bits, keys of dropout
        self._source: TextOnDevice | BatchesFromHost
        fits = device.type != "cuda" or len(batches.text) * _size(model) <= torch.cuda.mem_get_info(device)[0] // _SHARE
        self._source = TextOnDevice(batches, _ids_dtype(model), device) if fits else BatchesFromHost(batches, device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)  # of the step in the tables
        self._rows = torch.arange(AT_ONCE, device=device)[:, None]
        self._results = torch.zeros(AT_ONCE, 5, dtype=torch.float64, device=device)  # see `_read`
        self._state = model.zero_state(B)
        self._rate = torch.zeros((), device=device)
        self._has_failed = torch.ones((), dtype=torch.bool, device=device)  # true while the graph is recorded: changes nothing
        self._skip = torch.ones((), device=device)
        self._scale = torch.ones((), dtype=torch.float64, device=device)
        self._good_steps = torch.zeros((), dtype=torch.float64, device=device)
        self._replay: Replay | None = None

    def record(self) -> str | None:
        """Record the graph, after a checkpoint's moments have been restored. Returns why there is none; ``None``: there is."""
        self._prepare_optimizer()
        self._replay = Replay(self._replayed, self._device)
        return self._replay.why_not

    def train(self, jobs: Sequence[Job], state: State) -> list[Outcome]:
        """Train on batches in turn.

        Args:
            jobs: at most ``AT_ONCE``.
            state: before the first batch.

        Returns:
            The outcome of each step. If one diverged, it is the last, and weights, moments and state are those before it.
            All hold the same state: after the last step that changed the weights.
        """
        if self._replay is None:
            self.record()
        assert self._replay is not None
        for row, job in enumerate(jobs):
            rate = torch.tensor(job.rate, dtype=torch.float64).view(torch.int64)
            fixed = [job.span.scored, int(job.span.fresh), int(rate), *job.dropout.keys()]
            self._control.host[row] = torch.tensor(fixed)
            self._source.write(row, job)
        self._control.send()
        self._source.send()
        for own, given in zip(self._state, state, strict=True):
            if own is not given:
                own.copy_(given)
        self._scale.fill_(self.scale.scale)
        self._good_steps.fill_(self.scale.good_steps)
        self._has_failed.fill_(False)
        self._slot.zero_()
        for job in jobs:
            self._source.begin(job.epoch)
            self._replay()
        return self._read(len(jobs))

    def _read(self, count: int) -> list[Outcome]:
        """Wait for the steps, and read what each has written: nats, norm, failed, loss scale, good steps at this scale."""
        outcomes = []
        for nats, norm, has_failed, scale, good_steps in self._results[:count].tolist():
            outcomes.append(Outcome(nats, norm, self._state, diverged=has_failed != 0))
            self.scale = LossScale(self.scale.enabled, scale, int(good_steps))
            if has_failed:
                break
        return outcomes

    def _prepare_optimizer(self) -> None:
        """Let the optimizer read its rate, and whether to skip the update, on the device; allocate its moments."""
        optimizer = self.optimizer
        for group in optimizer.param_groups:
            group |= {"lr": self._rate, "fused": True}
            if "capturable" in group:
                group["capturable"] = True
            if group.get("momentum"):
                for weight in group["params"]:  # PyTorch would allocate it in the first step, which differs from the others
                    optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
        optimizer.found_inf = self._skip  # type: ignore[attr-defined]

    def _replayed(self) -> None:
        """The step on static tensors: it is recorded, so it holds no value of one step and never waits for the GPU."""
        inputs, targets = self._source.batch(self._slot)
        control = self._control.row(self._slot)
        scored, fresh = control[0].double(), control[1] != 0
        self._rate.copy_(control[2:3].view(torch.float64)[0])
        state = tuple(torch.where(fresh, torch.zeros_like(part), part) for part in self._state)
        dropout = Dropout(self.model.section, 0, 0, device_keys=control[3:])
        with arithmetic(self._precision, self._device):
            total, state = self.model.nll_sum(inputs, targets, state, dropout)
        self._gradient.write(torch.autograd.grad(total * (self._scale / scored), self._weights))
        with torch.no_grad():
            nats = total.detach() / scored
            norm = torch.nn.utils.get_total_norm(self._gradient.parts).double() / self._scale
            is_good, has_overflowed = self._judge(nats, norm)
            clipped = 1.0 if self._clip is None else torch.clamp(self._clip / (norm + 1e-6), max=1.0)
            self._gradient.flat.mul_(torch.where(is_good, clipped / self._scale, 0.0).float())
            self._skip.copy_(~is_good)
            self.optimizer.step()
            for own, after in zip(self._state, state, strict=True):
                own.copy_(torch.where(self._has_failed, own, after.detach()))
            self._adapt_scale(is_good, has_overflowed)
            result = torch.stack([nats, norm, self._has_failed.double(), self._scale, self._good_steps])
            self._results.copy_(torch.where(self._rows == self._slot, result, self._results))
            self._slot += 1

    def _judge(self, nats: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Whether to update the weights, and whether fp16 overflowed; otherwise this step and all later ones have failed."""
        is_finite = torch.isfinite(nats) & torch.isfinite(norm)
        has_overflowed = ~is_finite & torch.isfinite(nats) & (self._scale > 1) & ~self._has_failed
        is_good = is_finite & ~self._has_failed
        self._has_failed |= ~is_finite & ~has_overflowed
        return is_good, has_overflowed

    def _adapt_scale(self, is_good: Tensor, has_overflowed: Tensor) -> None:
        """The loss scale after the step, as :class:`LossScale` computes it."""
        good_steps = torch.where(has_overflowed, 0.0, self._good_steps + is_good)
        scale = torch.where(has_overflowed, self._scale / 2, self._scale)
        if self.scale.enabled:
            grows = is_good & (good_steps >= LossScale.GROW_AFTER)
            scale = torch.where(grows, torch.clamp(scale * 2, max=LossScale.LARGEST), scale)
            good_steps = torch.where(grows, 0.0, good_steps)
        self._scale.copy_(scale)
        self._good_steps.copy_(good_steps)


class TextOnDevice:
    """The ids of the whole training text in the device's memory; the CPU sends only where each stream of a batch starts.

    Args:
        batches: of the text.
        dtype: of the ids.
    """

    def __init__(self, batches: Batches, dtype: torch.dtype, device: torch.device) -> None:
        self._batches, self._device = batches, device
        text = batches.text
        self._ids = torch.empty(len(text), dtype=dtype, device=device)
        for start in range(0, len(text), _PIECE):
            part = torch.from_numpy(text.ids(start, start + _PIECE))
            self._ids[start : start + _PIECE] = part.to(dtype)
        self._rare = batches.rare_positions()
        self._rare_ids = torch.tensor([int(text.ids(at, at + 1)[0]) for at in self._rare.tolist()], dtype=dtype)
        self._epoch: int | None = None
        self._spans = Table((AT_ONCE, 2, batches.shape.batch), torch.int64, device)
        self._times = torch.arange(batches.shape.seq_length, device=device)[:, None]

    def write(self, row: int, job: Job) -> None:
        """Write where a batch is into the table."""
        self._spans.host[row] = torch.stack([torch.from_numpy(job.span.starts), torch.from_numpy(job.span.lengths)])

    def send(self) -> None:
        """Copy the table to the device."""
        self._spans.send()

    def begin(self, epoch: int) -> None:
        """Queue the rare characters that this epoch reads as ``<unk>``."""
        if len(self._rare) and epoch != self._epoch:
            read = self._rare_ids.clone()
            read[[self._batches.is_unknown(epoch, at) for at in self._rare.tolist()]] = 0
            self._ids.index_copy_(0, torch.from_numpy(self._rare).to(self._device), read.to(self._device))
        self._epoch = epoch

    def batch(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each ``(T, B)``; positions after the end of a stream are 0 and ``IGNORED``."""
        starts, lengths = self._spans.row(slot).unbind()
        within = self._times < lengths
        at = torch.where(within, starts + self._times, 0)
        inputs = torch.where(within, self._ids[at].long(), 0)
        targets = torch.where(within, self._ids[at + 1].long(), IGNORED)
        return inputs, targets


class BatchesFromHost:
    """Whole batches, sent in page-locked memory, for a text that is too large for the device's memory.

    Args:
        batches: of the text.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches = batches
        self._ids = Table((AT_ONCE, 2, batches.shape.seq_length, batches.shape.batch), torch.int32, device)

    def write(self, row: int, job: Job) -> None:
        """Write a batch into the table."""
        batch = self._batches.batch(job.epoch, job.index)
        inputs, targets = self._ids.host[row]
        inputs.zero_()[: len(batch.inputs)] = batch.inputs
        targets.fill_(IGNORED)[: len(batch.targets)] = batch.targets

    def send(self) -> None:
        """Copy the table to the device."""
        self._ids.send()

    def begin(self, epoch: int) -> None:
        """The batches already have the ``<unk>`` of their epoch."""

    def batch(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each ``(T, B)``."""
        inputs, targets = self._ids.row(slot).long().unbind()
        return inputs, targets


_PIECE = 1 << 24
"""Characters that are copied to the device at once."""


def _ids_dtype(model: LanguageModel) -> torch.dtype:
    return torch.uint8 if model.vocabulary_size <= 256 else torch.int32


def _size(model: LanguageModel) -> int:
    """Bytes of an id."""
    return _ids_dtype(model).itemsize


def steps_at_once(step: int, every: Sequence[int | None], ends: Sequence[int | None], seconds: float) -> int:
    """How many steps to queue: none past a step that something follows, and about a tenth of a second.

    Args:
        step: steps done.
        every: something follows each multiple of these numbers of steps.
        ends: last steps.
        seconds: that a step takes; 0: unknown.
    """
    until = [period - step % period for period in every if period is not None]
    until += [end - step for end in ends if end is not None]
    by_time = math.floor(_QUEUED_SECONDS / seconds) if seconds else 1
    return max(1, min(AT_ONCE, by_time, *until))


_QUEUED_SECONDS = 0.1
"""A stop that is requested while steps are queued takes effect after them."""
