"""Dropout in C++: one pass, and no mask is kept, since the backward pass draws the same zeros again."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from charlm.model.native import library
from charlm.model.native.interface import Dropping, address, is_bf16
from charlm.model.native.memory import POOL
from charlm.threads import kernel_threads


class Drop(torch.autograd.Function):
    """Zeroes some numbers and scales the others up; the sequence is :func:`charlm.model.dropout.kept`'s."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, period: int, key: int, threshold: int) -> Tensor:
        """The same shape and type.

        Args:
            values: on the CPU, fp32 or bf16.
            period: after so many numbers the zeros repeat; a divisor of their count.
            key: of the random sequence.
            threshold: probability of a zero, times 65,536.
        """
        ctx.options = period, key, threshold
        return _dropped(values, period, key, threshold)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, with the same zeros."""
        return _dropped(d_out, *ctx.options), None, None, None


def _dropped(values: Tensor, period: int, key: int, threshold: int) -> Tensor:
    values = values.contiguous()
    out = POOL.take(tuple(values.shape), values.dtype)
    call = Dropping(
        bf16=is_bf16(values.dtype), threads=kernel_threads(), count=values.numel(), period=period, key=key,
        threshold=threshold, scale=65536 / (65536 - threshold), values=address(values), out=address(out),
    )  # fmt: skip
    library.current().charlm_drop(ctypes.byref(call))
    return out
