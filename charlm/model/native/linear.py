"""Linear layers in C++. Sums have a fixed order, so results are bit-identical for any number of threads.

PyTorch divides long sums of matrix products between threads, so their last bits depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.model.native import interface, library
from charlm.model.native.interface import address, is_bf16
from charlm.model.native.memory import POOL
from charlm.threads import kernel_threads

PANEL = 32
"""Columns in a panel (``vectors.h``)."""

_DEPTH = 512
"""Maximum number of positions of a weight gradient that are packed together."""


def rounded_up(size: int) -> int:
    """Round up to whole panels."""
    return -(-size // PANEL) * PANEL


class Packed(NamedTuple):
    """A matrix in the order in which the products read it.

    Attributes:
        forward: for A·Wᵀ.
        backward: for A·W; ``None`` if no gradient is needed.
    """

    forward: Tensor
    backward: Tensor | None


def pack(matrix: Tensor, dtype: torch.dtype, *, gates: int = 1, backward: bool) -> Packed:
    """Pack a matrix ``(N, K)`` for A·Wᵀ and, with ``backward``, also for A·W in the backward pass.

    Both dimensions are padded with zeros to whole panels, N in each block.

    Args:
        gates: number of blocks of rows whose panels are interleaved.
    """
    matrix = matrix.detach().float().contiguous()
    N, K = matrix.shape
    size = gates * rounded_up(N // gates) * rounded_up(K)
    packed = Packed(POOL.take((size,), dtype), POOL.take((size,), dtype) if backward else None)
    call = interface.Packing(
        is_bf16(dtype), kernel_threads(), address(matrix), N, K, gates, address(packed.forward), address(packed.backward)
    )
    library.current().charlm_pack(ctypes.byref(call))
    return packed


def product(a: Tensor, packed: Tensor, N: int, out_dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """A·W + bias, ``(rows, N)``.

    Args:
        a: ``(rows, K)`` in the type of the packed W, fp32 or bf16.
        packed: W, from :func:`pack`.
        out_dtype: fp32, or the type of ``a``.
        bias: ``(N,)`` in fp32.
    """
    a = a.contiguous()
    out = POOL.take((len(a), N), out_dtype)
    bias = None if bias is None else bias.detach().float().contiguous()
    call = interface.Linear(
        bf16=is_bf16(a.dtype), threads=kernel_threads(), rows=len(a), K=a.shape[1], N=N, a=address(a), a_step=a.shape[1],
        gap_at=a.shape[1], weights=address(packed), bias=address(bias), out_is_float=int(out_dtype == torch.float32),
        out=address(out),
    )  # fmt: skip
    library.current().charlm_linear(ctypes.byref(call))
    return out


def weight_gradient(a: Tensor, b: Tensor, dtype: torch.dtype, *, sums: bool = False) -> tuple[Tensor, Tensor | None]:
    """Gradients of a weight and its bias: Aᵀ·B ``(M, N)`` in fp32 and, with ``sums``, the column sums of A ``(M,)``.

    Args:
        a: ``(K, M)``, fp32 or ``dtype``; M a multiple of 32; any row stride.
        b: ``(K, N)``, likewise.
        dtype: type of the operands of the product.
    """
    (K, M), N = a.shape, b.shape[1]
    depth = min(_DEPTH, rounded_up(K))
    packed = POOL.take(((M + N) * depth,), dtype)
    out = POOL.take((M, N), torch.float32)
    totals = torch.zeros(M) if sums else None
    call = interface.WeightGradient(
        is_bf16(dtype), kernel_threads(), K, M, N, M, int(a.dtype == torch.float32), int(b.dtype == torch.float32),
        a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(0), address(packed), depth, address(out), address(totals),
    )  # fmt: skip
    library.current().charlm_weight_gradient(ctypes.byref(call))
    return out, totals


class _Linear(torch.autograd.Function):
    """See :func:`linear`; all widths are multiples of 32."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, out_dtype: torch.dtype) -> Tensor:
        """``(rows, N)``."""
        operand = a.detach().to(dtype)
        packed = pack(weight, dtype, backward=ctx.needs_input_grad[0])
        ctx.kept = operand, packed.backward, a.dtype
        return product(operand, packed.forward, len(weight), out_dtype, bias)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of a, weight and bias."""
        operand, weights, a_dtype = ctx.kept
        d_out = d_out.contiguous()
        d_weight, d_bias = weight_gradient(d_out, operand, operand.dtype, sums=True)
        d_a = None
        if weights is not None:
            d_a = product(d_out.to(operand.dtype), weights, operand.shape[1], torch.float32).to(a_dtype)
        return d_a, d_weight, d_bias, None, None


def linear(a: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, out_dtype: torch.dtype) -> Tensor:
    """A·Wᵀ + bias, with gradients.

    Args:
        a: ``(…, K)``.
        weight: ``(N, K)`` in fp32, N a multiple of 32.
        bias: ``(N,)`` in fp32.
        dtype: type of the operands of the product, fp32 or bf16.
        out_dtype: fp32, or ``dtype``.
    """
    rows = a.reshape(-1, a.shape[-1])
    if missing := rounded_up(rows.shape[1]) - rows.shape[1]:
        rows, weight = F.pad(rows, (0, missing)), F.pad(weight, (0, missing))
    out: Tensor = _Linear.apply(rows, weight, bias, dtype, out_dtype)  # type: ignore[no-untyped-call]
    return out.view(*a.shape[:-1], len(weight))
