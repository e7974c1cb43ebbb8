"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from charlm.model.language_model import LanguageModel


class WeightAverage:
    """An exponential moving average of the weights, which is often better than the last of them (Polyak & Juditsky 1992).

    It is taken every ``EVERY`` steps, which costs nothing noticeable. At first it covers about the last tenth of the steps
    so far, until that is longer than ``decay`` remembers.

    Args:
        model: whose weights are averaged.
        decay: per step, such as 0.999: about the last thousand steps count.
    """

    EVERY = 10

    def __init__(self, model: LanguageModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.flatten_for_cudnn()
        self._weights: list[Tensor] = list(model.parameters())
        self._averages: list[Tensor] = list(self.model.parameters())
        self._decay = decay**self.EVERY

    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        if step % self.EVERY == 0:
            taken = step // self.EVERY
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._weights, 1 - min(self._decay, taken / (9 + taken)))
