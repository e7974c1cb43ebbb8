"""Loss and gradients of a batch: by the engine's plan if it has one, else by autograd.

The gradient of all weights is in one flat buffer, so that one pass (or one message between processes) covers all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from charlm.model.cells import State
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.runtime import arithmetic

_ALIGNMENT = 16
"""Numbers: every weight's part starts at a multiple of 64 bytes, a cache line."""


class FlatGradient:
    """One fp32 buffer; after :meth:`attach`, the ``grad`` of every weight is a view of its part of it.

    Args:
        weights: trained weights, all on one device.

    Attributes:
        flat: the buffer; the gaps between the parts are zero.
        parts: each weight's part, in the shape of the weight.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        sizes = [-(-weight.numel() // _ALIGNMENT) * _ALIGNMENT for weight in weights]
        self.flat = torch.zeros(sum(sizes), device=weights[0].device)
        blocks = torch.split(self.flat, sizes)
        self.parts = [block[: weight.numel()].view(weight.shape) for block, weight in zip(blocks, weights, strict=True)]
        self._weights = weights
        self.attach()

    def attach(self) -> None:
        """Make each part the ``grad`` of its weight again: another buffer, or ``zero_grad``, may have replaced it."""
        for weight, part in zip(self._weights, self.parts, strict=True):
            if weight.grad is not part:
                weight.grad = part

    def write(self, gradients: Sequence[Tensor]) -> None:
        """Copy one gradient for each weight, in the order of the weights, into the buffer."""
        torch._foreach_copy_(self.parts, list(gradients))

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add one gradient for each weight, in the order of the weights, to the buffer."""
        torch._foreach_add_(self.parts, list(gradients))


class Backpropagation:
    """Computes the loss of a model and the gradient of all its weights.

    Args:
        model: on its device.
        precision: resolved: ``fp32``, ``bf16`` or ``fp16``.

    Attributes:
        weights: of the model.
        gradient: the buffer that calls fill.
        plan: the engine's code for the whole step; ``None``: autograd.
    """

    def __init__(self, model: LanguageModel, precision: str) -> None:
        self.weights: list[Tensor] = list(model.parameters())
        self.gradient = FlatGradient(self.weights)
        self.plan = model.engine.plan(model, precision)
        self._model, self._precision = model, precision

    def __call__(
        self, inputs: Tensor, targets: Tensor, factor: float, state: State, dropout: Dropout | None = None, adds: bool = False
    ) -> tuple[float, State]:
        """Fill the buffer with the gradient of ``factor``·Σ nats.

        Args:
            inputs: ``(T, B)`` ids.
            targets: ``(T, B)`` ids, or ``IGNORED``.
            factor: on the gradient.
            state: before the batch.
            dropout: see :meth:`LanguageModel.forward`.
            adds: add the gradient to the buffer instead of filling it.

        Returns:
            Σ nats, and the state after the batch, detached.
        """
        self.gradient.attach()
        if self.plan is not None:
            before = self.gradient.flat.clone() if adds else None
            nats, state = self.plan(inputs, targets, factor, state, dropout)
            if before is not None:
                self.gradient.flat.add_(before)
            return nats, state
        with arithmetic(self._precision, self.weights[0].device):
            total, state = self._model.nll_sum(inputs, targets, state, dropout)
        gradients = torch.autograd.grad(total * factor, self.weights)
        (self.gradient.add if adds else self.gradient.write)(gradients)
        return total.item(), tuple(part.detach() for part in state)
