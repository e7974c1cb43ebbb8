"""Dropout: values are zeroed at random during training, so that no unit can rely on another.

    embedding    elements of the embedding, the same for a whole step            (Gal & Ghahramani 2016)
    outputs      outputs of each layer, before the next or the output layer      (Srivastava et al. 2014; Zaremba et al. 2014);
                 locked: the same units at all T steps of a stream               (Gal & Ghahramani 2016)
    recurrent    single weights of W_hh, for a whole step                        (Wan et al. 2013; Merity et al. 2018)

Kept values are scaled by 1/(1 − p), which keeps the mean; p is rounded to a multiple of 2⁻¹⁶. The zeros depend only on
(seed, step, place), on every engine and device, so a resumed run has the same ones.

    T time steps    B streams    D embedding width    H hidden units    G gates    V symbols
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm.config import ModelSection
from charlm.runtime import derived_seed

Key = int | Tensor
"""A key of a random sequence: 64 bits, or a tensor with one int64 on the device of the values."""

Drop = Callable[[Tensor, int, Key, int], Tensor]
"""An engine's code for dropout: (values, period, key, threshold) → values; see :func:`masked`."""


def masked(values: Tensor, period: int, key: Key, threshold: int) -> Tensor:
    """Zero some elements and scale up the others: the definition of dropout, on any device.

    Args:
        values: any shape.
        period: the mask repeats after this many elements; divides their number.
        key: key of the random sequence.
        threshold: probability of a zero, times 65,536.
    """
    mask = kept(key, period, threshold, values.device).to(values.dtype)
    scaled = values * (65536 / (65536 - threshold))
    return (scaled.view(-1, period) * mask).view(values.shape)


@dataclass(frozen=True)
class Dropout:
    """The choice of zeros in one training step.

    Args:
        model: the probabilities.
        seed: of the run.
        step: the optimizer step.
        device_keys: int64 on the device, which replace ``seed`` and ``step``: a CUDA graph reads them from the same memory at
            every step.
    """

    model: ModelSection
    seed: int
    step: int
    device_keys: Tensor | None = None

    def embedding(self, embedding: Tensor, drop: Drop = masked) -> Tensor:
        """The embedding ``(V, D)``: all T·B look-ups see the same zeros."""
        return self._apply(drop, embedding, embedding.numel(), self.model.input_dropout, "embedding")

    def outputs(self, values: Tensor, layer: int, drop: Drop = masked) -> Tensor:
        """A layer's outputs ``(T, B, H)``."""
        period = values[0].numel() if self.model.locked_dropout else values.numel()
        return self._apply(drop, values, period, self.model.dropout, "outputs", layer)

    def recurrent(self, weight_hh: Tensor, layer: int, drop: Drop = masked) -> Tensor:
        """A layer's recurrent weights ``(G·H, H)``."""
        return self._apply(drop, weight_hh, weight_hh.numel(), self.model.weight_drop, "recurrent", layer)

    def _apply(self, drop: Drop, values: Tensor, period: int, probability: float, *place: object) -> Tensor:
        if probability == 0:
            return values
        return drop(values, period, self._key(*place), threshold(probability))

    def key(self, *place: object) -> int:
        """The key of the random sequence of a place: ``"embedding"``, or ``"outputs"`` or ``"recurrent"`` and a layer."""
        return derived_seed(self.seed, "dropout", self.step, *place)

    def keys(self) -> list[int]:
        """The key of every place, in the order of ``device_keys``."""
        return [self.key(*place) for place in _places(self.model)]

    def _key(self, *place: object) -> Key:
        return self.key(*place) if self.device_keys is None else self.device_keys[_places(self.model).index(place)]


def threshold(probability: float) -> int:
    """The probability of a zero, times 65,536."""
    return min(65535, round(probability * 65536))


def _places(model: ModelSection) -> list[tuple[object, ...]]:
    """All places where dropout can act."""
    return [("embedding",), *((kind, layer) for kind in ("outputs", "recurrent") for layer in range(model.layers))]


def kept(key: Key, count: int, threshold: int, device: torch.device) -> Tensor:
    """A mask of ``count`` values in the random sequence of a key; ``True``: kept.

    SplitMix64 (Steele et al. 2014) hashes key and position to 64 bits, 16 for each of four neighbours: a number below
    ``threshold`` means a zero. The mask is computed on the device: a CPU would need longer for it than a GPU for the step.
    """
    z = torch.arange(1, -(-count // 4) + 1, dtype=torch.int64, device=device)
    z.mul_(_signed(0x9E3779B97F4A7C15)).add_(key if isinstance(key, Tensor) else _signed(key))
    z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(0x94D049BB133111EB))
    z.bitwise_xor_(_shifted(z, 31))
    quarters = z.view(torch.int16)[:count]  # the lowest 16 bits first, as memory is little-endian
    return quarters.bitwise_xor_(-32768) >= threshold - 32768  # both minus 2¹⁵: an unsigned comparison with signed integers


def _signed(bits: int) -> int:
    """64 bits as a signed integer, which PyTorch has; products and sums wrap around identically."""
    return (bits & (1 << 64) - 1 ^ 1 << 63) - (1 << 63)


def _shifted(z: Tensor, places: int) -> Tensor:
    """A logical right shift of each number (PyTorch's shift copies the sign)."""
    return (z >> places).bitwise_and_((1 << 64 - places) - 1)
