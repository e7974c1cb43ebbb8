"""Dropout: numbers are zeroed at random while training, so that no unit can rely on another being there.

    embedding    rows of symbols lose some of their D numbers for a whole step   (Gal & Ghahramani 2016)
    outputs      of each layer, on the way to the next or to the output layer    (Srivastava et al. 2014; Zaremba et al. 2014);
                 locked: the same units at all T steps of a stream               (Gal & Ghahramani 2016)
    recurrent    single weights of W_hh, for a whole step                        (Wan et al. 2013; Merity et al. 2018)

What is kept is scaled up, so that sums stay what they were on average. Masks follow from (seed, step, place) alone: a resumed
run draws the same ones.

    T time steps    B streams    D embedding width    H hidden units    G gates    V symbols
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm.config import ModelSection
from charlm.runtime import generator


@dataclass(frozen=True)
class Dropout:
    """What is zeroed in one training step.

    Args:
        model: the probabilities.
        seed: of the run.
        step: the optimiser step.
    """

    model: ModelSection
    seed: int
    step: int

    def embedding(self, embedding: Tensor) -> Tensor:
        """The embedding ``(V, D)``: all T·B look-ups see the same zeros."""
        return self._drop(embedding, embedding.shape, self.model.input_dropout, "embedding")

    def outputs(self, values: Tensor, layer: int) -> Tensor:
        """A layer's outputs ``(T, B, H)``."""
        shape = (1, *values.shape[1:]) if self.model.locked_dropout else values.shape
        return self._drop(values, shape, self.model.dropout, "outputs", layer)

    def recurrent(self, weight_hh: Tensor, layer: int) -> Tensor:
        """A layer's recurrent weights ``(G·H, H)``."""
        return self._drop(weight_hh, weight_hh.shape, self.model.weight_drop, "recurrent", layer)

    def _drop(self, values: Tensor, shape: Sequence[int], probability: float, *place: object) -> Tensor:
        if probability == 0:
            return values
        rng = generator(values.device, self.seed, "dropout", self.step, *place)
        return values * mask(shape, probability, rng, values.dtype)


def mask(shape: Sequence[int], probability: float, rng: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Zeros with this probability, and 1/(1 − p) elsewhere.

    On a CPU masks are cut from 64-bit random numbers, four decisions each: the probability is rounded to a multiple of
    2⁻¹⁶, and the scale uses the rounded one.
    """
    if rng.device.type != "cpu":
        keep = torch.rand(*shape, device=rng.device, generator=rng) >= probability
        return keep.to(dtype) / (1 - probability)
    threshold = min(65535, round(probability * 65536))
    count = int(torch.Size(shape).numel())
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=rng)
    keep = words.view(torch.int16)[:count].view(*shape) >= threshold - 32768
    return keep.to(dtype).mul_(65536 / (65536 - threshold))
