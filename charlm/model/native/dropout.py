"""Dropout in C++, in one pass. No mask is stored, since the backward pass recomputes it."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from charlm.model.dropout import Places
from charlm.model.native import library
from charlm.model.native.interface import Dropping, address, is_bf16
from charlm.model.native.memory import POOL
from charlm.threads import kernel_threads


class Drop(torch.autograd.Function):
    """Zeroes some elements and scales up the others, by the random sequence of :func:`charlm.model.dropout.kept`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Places, key: int, threshold: int) -> Tensor:
        """Return a tensor of the same shape and type.

        Args:
            values: on the CPU, fp32 or bf16.
            places: of the elements in the random sequence.
            key: key of the random sequence.
            threshold: probability of a zero, times 65,536.
        """
        ctx.options = places, key, threshold
        return _dropped(values, places, key, threshold)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, with the same zeros."""
        return _dropped(d_out, *ctx.options), None, None, None


def _dropped(values: Tensor, places: Places, key: int, threshold: int) -> Tensor:
    values = values.contiguous()
    out = POOL.take(tuple(values.shape), values.dtype)
    call = Dropping(
        bf16=is_bf16(values.dtype), threads=kernel_threads(), count=values.numel(), row=places.row, stride=places.stride,
        offset=places.offset, key=key, threshold=threshold, scale=65536 / (65536 - threshold), values=address(values),
        out=address(out),
    )  # fmt: skip
    library.current().charlm_drop(ctypes.byref(call))
    return out
