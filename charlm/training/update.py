"""One update of the weights: forward, loss, backward, clip, optimiser. The trainer repeats it; ``charlm bench`` times it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm.config import TrainSection
from charlm.model.cells import State
from charlm.model.language_model import Dropout, LanguageModel
from charlm.runtime import arithmetic
from charlm.training.optimisation import LossScale, make_optimizer


@dataclass(frozen=True)
class Outcome:
    """What an update found.

    Attributes:
        nats: mean over the scored characters, before the update.
        norm: the gradient's Euclidean norm, before clipping.
        state: after the last step, cut off from its gradient.
        diverged: loss or gradient was not finite, and the weights are as they were.
    """

    nats: float
    norm: float
    state: State
    diverged: bool


class Updater:
    """Applies the recipe's optimiser to a model.

    Args:
        model: on its device.
        section: optimiser, clipping.
        precision: resolved: ``fp32``, ``bf16`` or ``fp16``.
    """

    def __init__(self, model: LanguageModel, section: TrainSection, precision: str) -> None:
        self.model = model
        self.optimizer = make_optimizer(model, section)
        self.scale = LossScale(precision == "fp16")
        self._clip = section.clip
        self._precision = precision
        self._device = model.output_bias.device

    def __call__(
        self,
        inputs: Tensor,
        targets: Tensor,
        scored: int,
        state: State,
        rate: float,
        dropout: Dropout | None = None,
        input_dropout: Dropout | None = None,
    ) -> Outcome:
        """Learn from one batch.

        Args:
            inputs: ``(T, B)`` ids.
            targets: ``(T, B)`` ids, or ``IGNORED``.
            scored: how many targets are not ignored.
            state: that the batch starts from.
            rate: the learning rate.
            dropout, input_dropout: see :meth:`LanguageModel.forward`.
        """
        with arithmetic(self._precision, self._device):
            total, state = self.model.nats(inputs, targets, state, dropout, input_dropout)
        loss = total / scored
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.scale.scale).backward()  # type: ignore[no-untyped-call]
        norm = self._unscale_and_clip()
        nats = loss.item()
        finite = math.isfinite(nats) and math.isfinite(norm)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.scale.succeeded()
        left_out = not finite and math.isfinite(nats) and self.scale.overflowed()
        return Outcome(nats, norm, tuple(part.detach() for part in state), diverged=not finite and not left_out)

    def _unscale_and_clip(self) -> float:
        """Undo the loss scale, limit the gradient's norm, and return that norm as it was before clipping."""
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        if self.scale.scale != 1:
            for gradient in gradients:
                gradient.div_(self.scale.scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self._clip, norm)
        return norm.item()
