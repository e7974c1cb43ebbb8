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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from charlm.config import ModelSection
from charlm.runtime import derived_seed

Key = int | Tensor
"""A key of a random sequence: 64 bits, or a tensor with one int64 on the device of the values."""


@dataclass(frozen=True)
class Places:
    """The places of elements in a random sequence: element j of row t has place t·stride + offset + j.

    Attributes:
        row: elements of a row; divides their number.
        stride: from one row to the next; 0: all rows have the same places.
        offset: of the first row.
    """

    row: int
    stride: int
    offset: int = 0


Drop = Callable[[Tensor, Places, Key, int], Tensor]
"""An engine's code for dropout: (values, places, key, threshold) → values; see :func:`masked`."""


def masked(values: Tensor, places: Places, key: Key, threshold: int) -> Tensor:
    """Zero some elements and scale up the others: the definition of dropout, on any device.

    Args:
        values: any shape.
        places: of the elements in the random sequence.
        key: key of the random sequence.
        threshold: probability of a zero, times 65,536.
    """
    rows = values.numel() // places.row if places.stride else 1
    mask = kept(key, places, rows, threshold, values.device).to(values.dtype)
    scaled = values * (65536 / (65536 - threshold))
    return (scaled.view(-1, places.row) * mask).view(values.shape)


@dataclass(frozen=True)
class Dropout:
    """The choice of zeros in one training step.

    Args:
        model: the probabilities.
        seed: of the run.
        step: the optimizer step.
        device_keys: int64 on the device, which replace ``seed`` and ``step``: a CUDA graph reads them from the same memory at
            every step.
        first: the values are of B consecutive streams; the number of their first stream in the whole batch.
        batch: streams of the whole batch; ``None``: the values are of all of them.
    """

    model: ModelSection
    seed: int
    step: int
    device_keys: Tensor | None = None
    first: int = 0
    batch: int | None = None

    def of_streams(self, first: int, batch: int) -> Dropout:
        """The same zeros, for values of the streams from ``first`` on in a batch of ``batch``."""
        return replace(self, first=first, batch=batch)

    def embedding(self, embedding: Tensor, drop: Drop = masked) -> Tensor:
        """The embedding ``(V, D)``: all T·B look-ups see the same zeros."""
        return self._apply(drop, embedding, _all(embedding), self.model.input_dropout, "embedding")

    def outputs(self, values: Tensor, layer: int, drop: Drop = masked) -> Tensor:
        """A layer's outputs ``(T, B, H)``: a stream sees the same zeros, whichever streams the values have beside it."""
        row, H = values[0].numel(), values.shape[-1]
        stride = 0 if self.model.locked_dropout else self.batch * H if self.batch is not None else row
        # Rows that follow each other are one row.
        places = _all(values) if stride == row else Places(row, stride, self.first * H)
        return self._apply(drop, values, places, self.model.dropout, "outputs", layer)

    def recurrent(self, weight_hh: Tensor, layer: int, drop: Drop = masked) -> Tensor:
        """A layer's recurrent weights ``(G·H, H)``."""
        return self._apply(drop, weight_hh, _all(weight_hh), self.model.weight_drop, "recurrent", layer)

    def _apply(self, drop: Drop, values: Tensor, places: Places, probability: float, *place: object) -> Tensor:
        if probability == 0:
            return values
        return drop(values, places, self._key(*place), threshold(probability))

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


def _all(values: Tensor) -> Places:
    return Places(values.numel(), values.numel())


def kept(key: Key, places: Places, rows: int, threshold: int, device: torch.device) -> Tensor:
    """A mask ``(rows, row)`` of values at these places in the random sequence of a key; ``True``: kept.

    SplitMix64 (Steele et al. 2014) hashes key and position to 64 bits, 16 for each of four neighbours: a number below
    ``threshold`` means a zero. The mask is computed on the device: a CPU would need longer for it than a GPU for the step.
    """
    starts = places.offset + places.stride * torch.arange(rows, dtype=torch.int64, device=device)
    shifts = starts % 4
    z = (starts // 4)[:, None] + torch.arange(1, (places.row + 6) // 4 + 1, dtype=torch.int64, device=device)
    z.mul_(_signed(0x9E3779B97F4A7C15)).add_(key if isinstance(key, Tensor) else _signed(key))
    z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(0x94D049BB133111EB))
    z.bitwise_xor_(_shifted(z, 31))
    quarters = z.view(torch.int16)  # the lowest 16 bits first, as memory is little-endian
    if rows == 1 or places.stride % 4 == 0:
        shift = places.offset % 4
        quarters = quarters[:, shift : shift + places.row].contiguous()
    else:
        quarters = quarters.gather(1, shifts[:, None] + torch.arange(places.row, device=device))
    return quarters.bitwise_xor_(-32768) >= threshold - 32768  # both minus 2¹⁵: an unsigned comparison with signed integers


def _signed(bits: int) -> int:
    """64 bits as a signed integer, which PyTorch has; products and sums wrap around identically."""
    return (bits & (1 << 64) - 1 ^ 1 << 63) - (1 << 63)


def _shifted(z: Tensor, places: int) -> Tensor:
    """A logical right shift of each number (PyTorch's shift copies the sign)."""
    return (z >> places).bitwise_and_((1 << 64 - places) - 1)
