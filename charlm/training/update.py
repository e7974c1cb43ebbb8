"""One training step: forward, loss, backward, clip, optimizer. The trainer repeats it; ``charlm bench`` times it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm.config import TrainSection
from charlm.distributed import ALONE, World, shares
from charlm.model.cells import State
from charlm.model.dropout import Dropout
from charlm.model.gradients import Backpropagation
from charlm.model.language_model import LanguageModel
from charlm.training.loss_scale import LossScale
from charlm.training.optimizer import make_optimizer


@dataclass(frozen=True)
class Outcome:
    """The result of a training step.

    Attributes:
        nats: mean loss over the scored characters, before the update.
        norm: the gradient's Euclidean norm, before clipping.
        state: after the last time step, detached.
        diverged: loss or gradient was not finite; the weights are unchanged.
    """

    nats: float
    norm: float
    state: State
    diverged: bool


class Updater:
    """Applies the recipe's optimizer to a model.

    Args:
        model: on its device.
        section: optimizer, clipping, number of parts.
        precision: resolved: ``fp32``, ``bf16`` or ``fp16``.
        world: the processes that share the streams of a batch.
    """

    def __init__(self, model: LanguageModel, section: TrainSection, precision: str, world: World = ALONE) -> None:
        self.model = model
        self._world = world
        self.optimizer = make_optimizer(model, section)
        self.scale = LossScale(precision == "fp16")
        self._clip = section.clip
        self._parts = section.accumulate
        self._precision = precision
        self._backpropagate = Backpropagation(model, precision)
        self._weights, self._gradient = self._backpropagate.weights, self._backpropagate.gradient
        self._fused = model.engine.fused_optimizer(self.optimizer)
        self._device = model.output_bias.device

    def __call__(
        self,
        inputs: Tensor,
        targets: Tensor,
        scored: int,
        state: State,
        rate: float,
        dropout: Dropout | None = None,
        first: int = 0,
        batch: int | None = None,
    ) -> Outcome:
        """Train on one batch. Each process has some of its streams; all of them make the same update.

        Args:
            inputs: ``(T, B)`` ids.
            targets: ``(T, B)`` ids, or ``IGNORED``.
            scored: the number of targets of all processes that are not ignored.
            state: before the batch.
            rate: the learning rate.
            dropout: see :meth:`LanguageModel.forward`.
            first: the number of this process's first stream.
            batch: streams of all processes; ``None``: B.
        """
        total, states = 0.0, []
        B = inputs.shape[1]
        for number, part in enumerate(shares(B, min(self._parts, B))):
            streams = slice(part.start, part.stop)
            seen = dropout.of_streams(first + part.start, batch or B) if dropout is not None else None
            before = tuple(one[:, streams] for one in state)
            nats, after = self._backpropagate(
                inputs[:, streams], targets[:, streams], self.scale.scale / scored, before, seen, adds=number > 0
            )
            total += nats
            states.append(after)
        loss = torch.tensor([total], dtype=torch.float64, device=self._device) if self._world.size > 1 else None
        if loss is not None:
            self._world.sum_(self._gradient.flat, loss)
            total = loss.item()
        nats = total / scored
        state = tuple(torch.cat(parts, dim=1) for parts in zip(*states, strict=True)) if len(states) > 1 else states[0]
        norm = self._norm() / self.scale.scale
        finite = math.isfinite(nats) and math.isfinite(norm)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            # As torch.nn.utils.clip_grad_norm_ does, with its 1e-6.
            clipped = 1.0 if self._clip is None else min(1.0, self._clip / (norm + 1e-6))
            self._step(clipped / self.scale.scale)
            self.scale.succeeded()
        skipped = not finite and math.isfinite(nats) and self.scale.overflowed()
        return Outcome(nats, norm, state, diverged=not finite and not skipped)

    def _norm(self) -> float:
        """The Euclidean norm of the gradient over all weights."""
        if self._fused is not None:
            return self._fused.norm()
        return torch.nn.utils.get_total_norm(self._gradient.parts).item()

    def _step(self, factor: float) -> None:
        """Multiply the gradients by ``factor``, then apply the optimizer."""
        if self._fused is not None:
            self._fused.step(factor)
            return
        if factor != 1:
            self._gradient.flat.mul_(factor)
        self.optimizer.step()
        # The native engine keeps packed copies of the weights, and PyTorch's fused optimizers do not count their changes.
        torch.autograd.graph.increment_version(self._weights)
