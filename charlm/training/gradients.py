"""The gradient of all weights in one flat buffer, so that one pass (or one message between processes) covers all of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Numbers: every weight's part starts at a multiple of 64 bytes, a cache line."""


class FlatGradient:
    """One fp32 buffer; the ``grad`` of every weight is a view of its part of it.

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
        for weight, part in zip(weights, self.parts, strict=True):
            weight.grad = part

    def write(self, gradients: Sequence[Tensor]) -> None:
        """Copy one gradient for each weight, in the order of the weights, into the buffer."""
        torch._foreach_copy_(self.parts, list(gradients))

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add one gradient for each weight, in the order of the weights, to the buffer."""
        torch._foreach_add_(self.parts, list(gradients))
