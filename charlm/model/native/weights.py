"""The weights of a layer in the form that the kernels take: padded, packed, and cached between calls without gradients.

T time steps    B streams    D input width    H hidden units    G gates    V symbols
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.model.layers import RecurrentLayer
from charlm.model.native.linear import Packed, linear, pack, product, rounded_up

Made = TypeVar("Made")

_TABLE_BYTES = 1 << 26
"""Without gradients, a table of all symbols is cached up to this size, even if a call needs few of its rows."""


class Weights(NamedTuple):
    """The weights of a layer in the form that the kernels take.

    Attributes:
        weight_ih: ``(G·H, D)``; here and below H is rounded up to whole panels.
        weight_hh: ``(G·H, H)``.
        bias: ``(G·H,)``, the sum of the biases added to the pre-activations.
        b_n: ``(H,)``, the GRU's bias inside r∘(W_n·h + b_n).
        peepholes: ``(3·H,)``, p_i, p_f and p_o of the LSTM with peepholes.
        packed: without gradients, the recurrent weights packed once for many calls.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    b_n: Tensor | None
    peepholes: Tensor | None
    packed: Packed | None


def operand_type() -> torch.dtype:
    """The type of the operands of products: bf16 inside autocast, else fp32."""
    return torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32


# Prepared weights, each with the state of the tensors that it was computed from; only for calls without gradients. PyTorch's
# fused optimizers do not count their changes, so training a layer discards its prepared weights.
_prepared: WeakKeyDictionary[RecurrentLayer, dict[str, tuple[object, object]]] = WeakKeyDictionary()


def weights_of(layer: RecurrentLayer, dtype: torch.dtype, training: bool, recurrent: Tensor | None = None) -> Weights:
    """Prepare the weights of a layer for the kernels: for one training step, or once until they change.

    Args:
        recurrent: replaces ``weight_hh``, in training only.
    """

    def prepare() -> Weights:
        G, H = len(layer.entry.gates), layer.weight_hh.shape[1]
        weight_ih: Tensor = layer.weight_ih
        weight_hh: Tensor = layer.weight_hh if recurrent is None else recurrent
        bias_ih: Tensor = layer.bias_ih
        bias_hh: Tensor = layer.bias_hh
        peepholes = layer.weight_peephole if "weight_peephole" in layer.entry.parameters else None
        if missing := rounded_up(H) - H:
            weight_ih, bias_ih, bias_hh = (_with_zero_units(part, G, missing) for part in (weight_ih, bias_ih, bias_hh))
            weight_hh = F.pad(_with_zero_units(weight_hh, G, missing), (0, missing))
            peepholes = None if peepholes is None else _with_zero_units(peepholes, 3, missing)
            H += missing
        b_n = None
        if layer.entry.kernels["native"] == "gru":
            b_n = bias_hh[2 * H :].contiguous()
            bias_hh = torch.cat([bias_hh[: 2 * H], torch.zeros_like(b_n)])
        packed = None if training else pack(weight_hh, dtype, gates=G, backward=False)
        return Weights(weight_ih, weight_hh, bias_ih + bias_hh, b_n, peepholes, packed)

    if training:
        _prepared.pop(layer, None)
        return prepare()
    return _once(layer, f"weights {dtype}", (), prepare)


def _with_zero_units(rows: Tensor, G: int, missing: int) -> Tensor:
    """Pad each gate with units of zero weights, which stay zero: ``(G·H, …)`` → ``(G·(H + missing), …)``."""
    blocks = rows.view(G, -1, *rows.shape[1:])
    return torch.cat([blocks, blocks.new_zeros(G, missing, *blocks.shape[2:])], dim=1).flatten(0, 1)


def input_product(layer: RecurrentLayer, weights: Weights, inputs: Tensor, dtype: torch.dtype, training: bool) -> Tensor:
    """W_ih·input + biases for the outputs of the layer below ``(T, B, D)``: ``(T, B, G·H)``."""
    if training:
        return linear(inputs, weights.weight_ih, weights.bias, dtype, dtype)
    missing = rounded_up(inputs.shape[-1]) - inputs.shape[-1]
    weight_ih = F.pad(weights.weight_ih, (0, missing))
    packed = _once(layer, f"input weights {dtype}", (), lambda: pack(weight_ih, dtype, backward=False))
    rows = F.pad(inputs.to(dtype), (0, missing)).flatten(0, 1)
    return product(rows, packed.forward, len(weights.bias), dtype, weights.bias).view(*inputs.shape[:2], -1)


def look_up(
    layer: RecurrentLayer, weights: Weights, ids: Tensor, embedding: Tensor | None, training: bool
) -> tuple[Tensor, Tensor]:
    """A table of the contributions of symbols to the gates, and the row of each character.

    If there are fewer characters than symbols, the table holds one row per character.
    """
    symbols = weights.weight_ih.shape[1] if embedding is None else len(embedding)
    least, most = (int(bound) for bound in torch.aminmax(ids)) if ids.numel() else (0, 0)
    if least < 0 or most >= symbols:
        raise IndexError(f"ids from {least} to {most}, expected 0 to {symbols - 1}")
    if not training and symbols * weights.bias.numel() * 4 <= _TABLE_BYTES:
        return table_of(layer, weights, embedding), ids
    if ids.numel() < symbols:
        return _rows(weights, ids.flatten(), embedding), torch.arange(ids.numel()).view(ids.shape)
    return _rows(weights, None, embedding), ids


def table_of(layer: RecurrentLayer, weights: Weights, embedding: Tensor | None) -> Tensor:
    """The contribution of each symbol to the gates, ``(V, G·H)``, computed once for many calls."""
    of = () if embedding is None else (embedding,)
    return _once(layer, f"table {operand_type()}", of, lambda: _rows(weights, None, embedding).contiguous())


def _rows(weights: Weights, symbols: Tensor | None, embedding: Tensor | None) -> Tensor:
    """W_ih·input + biases for these symbols, or for all, in fp32."""
    if embedding is None:
        columns = weights.weight_ih.t() if symbols is None else weights.weight_ih.t()[symbols]
    else:
        rows = embedding if symbols is None else F.embedding(symbols, embedding)
        return linear(rows, weights.weight_ih, weights.bias, operand_type(), torch.float32)
    return (columns + weights.bias).float()


def _once(layer: RecurrentLayer, what: str, of: tuple[Tensor, ...], make: Callable[[], Made]) -> Made:
    """Return ``make()``, or its cached result if neither the weights of the layer nor ``of`` have changed."""
    tensors = (*of, *layer.parameters())
    if any(tensor.is_inference() for tensor in tensors):
        return make()
    state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    known = _prepared.setdefault(layer, {})
    if what not in known or known[what][0] != state:
        known[what] = (state, make())
    return cast(Made, known[what][1])
