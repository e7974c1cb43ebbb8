"""Output layer and cross-entropy in C++: one pass computes 32 rows of logits at a time, and their gradients."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.model.native import library
from charlm.model.native.interface import CrossEntropy, address, is_bf16
from charlm.model.native.linear import pack, rounded_up, weight_gradient
from charlm.model.native.memory import POOL
from charlm.threads import kernel_threads

_GRADIENTS_AT_ONCE = 1 << 24
"""Maximum number of elements of d_logits in memory."""


class OutputLoss(torch.autograd.Function):
    """Σ −ln softmax(W·features + b)[target]."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """A scalar in fp64.

        Args:
            features: ``(N, H)`` in fp32 or bf16, H a multiple of 32.
            weight: ``(V, H)``.
            targets: ``(N,)``; negative targets are not scored.
        """
        (N, H), (V, _) = features.shape, weight.shape
        dtype, padded = features.dtype, rounded_up(V)
        features, targets, bias = features.contiguous(), targets.contiguous(), bias.detach().contiguous()
        packed = pack(weight, dtype, backward=True)
        nats = POOL.take((N,), torch.float64)
        d_features = POOL.take((N, H), dtype)
        d_weight = torch.zeros(V, H)
        d_bias = torch.zeros(V)
        rows = max(32, _GRADIENTS_AT_ONCE // padded)
        for first in range(0, N, rows):
            part = slice(first, min(N, first + rows))
            here = part.stop - part.start
            d_logits = POOL.take((here, padded), dtype)
            d_biases = POOL.take((-(-here // 32), padded), torch.float32)
            call = CrossEntropy(
                is_bf16(dtype), kernel_threads(), here, H, V, padded,
                address(features[part]), address(packed.forward), address(packed.backward), address(bias),
                address(targets[part]), 1, address(nats[part]), address(d_logits),
                address(d_features[part]), address(d_biases),
            )  # fmt: skip
            library.current().charlm_cross_entropy(ctypes.byref(call))
            d_weight += weight_gradient(d_logits, features[part], dtype)[0][:V]
            d_bias += d_biases.sum(0)[:V]
        ctx.kept = (d_features, d_weight, d_bias)
        return nats.new_tensor(nats.numpy().sum())  # in a fixed order, unlike the sum of PyTorch

    @staticmethod
    def backward(ctx: Any, d_nats: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of features, weight and bias."""
        factor = d_nats.item()
        return (*(gradient.mul_(factor) for gradient in ctx.kept), None)


def cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """See :class:`charlm.model.engines.Engine`; ``dtype``: type of the operands of products."""
    if not torch.is_grad_enabled():
        nats = nll(features, weight, bias, targets, dtype)
        return nats.new_tensor(nats.numpy().sum())
    loss: Tensor = OutputLoss.apply(*_padded(features, weight, dtype), bias, targets)  # type: ignore[no-untyped-call]
    return loss


def nll(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """See :class:`charlm.model.engines.Engine`; ``dtype``: type of the operands of products."""
    features, weight = _padded(features, weight, dtype)
    (N, H), V = features.shape, len(weight)
    features, targets, bias = features.contiguous(), targets.contiguous(), bias.detach().contiguous()
    packed = pack(weight, dtype, backward=False)
    nats = POOL.take((N,), torch.float64)
    call = CrossEntropy(
        is_bf16(dtype), kernel_threads(), N, H, V, rounded_up(V),
        address(features), address(packed.forward), None, address(bias), address(targets), 1, address(nats), None, None, None,
    )  # fmt: skip
    library.current().charlm_cross_entropy(ctypes.byref(call))
    return nats


def _padded(features: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pad H of both to whole panels."""
    if missing := rounded_up(features.shape[1]) - features.shape[1]:
        features, weight = F.pad(features, (0, missing)), F.pad(weight, (0, missing))
    return features.to(dtype), weight
