"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from charlm.model.language_model import LanguageModel


class WeightAverage:
    """An exponential moving average of the weights, which often predicts better than the weights (Polyak & Juditsky 1992).

    It is updated every ``EVERY`` steps, which costs too little to measure. At first it covers about the last tenth of the
    steps so far, and later the number of steps that ``decay`` implies.

    Args:
        model: the model whose weights are averaged.
        decay: per step; 0.999 averages over about the last thousand steps.
    """

    EVERY = 10

    def __init__(self, model: LanguageModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.flatten_for_cudnn()
        self._weights: list[Tensor] = list(model.parameters())
        self._averages: list[Tensor] = list(self.model.parameters())
        self._decay = decay**self.EVERY

    def update(self, step: int) -> None:
        """Update the average with the weights after ``step`` steps."""
        if step % self.EVERY == 0:
            number = step // self.EVERY
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._weights, 1 - min(self._decay, number / (9 + number)))
