"""Attention over a layer's past outputs, for context that the state has forgotten (as in SHA-RNN, Merity 2019).

One head. The query is q_t = W_q·h_t; the W hidden states before it are keys and values, without projections:

    a_s = exp(q_t·h_s / √H) / (1 + Σ_r exp(q_t·h_r / √H))        s, r in t − W … t − 1
    h′_t = h_t + W_o·Σ_s a_s·h_s

The 1 in the denominator lets a step attend to nothing. The W states before the first step are carried from batch to batch
like the state; an empty slot is all zeros and is masked.

    T time steps    B streams    H hidden units    W window
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_AT_ONCE = 256
"""Steps whose weights are computed together, so that memory does not grow with the text."""


class Attention(nn.Module):
    """The weights ``query (H, H)`` and ``output (H, H)``.

    Args:
        hidden: H.
        window: W.
    """

    def __init__(self, hidden: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.query = nn.Parameter(torch.empty(hidden, hidden))
        self.output = nn.Parameter(torch.empty(hidden, hidden))

    def forward(self, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Add the attention over the past to each state.

        Args:
            h: ``(T, B, H)``, a layer's outputs.
            memory: ``(W, B, H)``, the outputs before them.

        Returns:
            h′ ``(T, B, H)``, and the memory after the last step.
        """
        past = torch.cat([memory.to(h.dtype), h])
        found = []
        for start in range(0, len(h), _AT_ONCE):
            seen = past[start : start + self.window + min(_AT_ONCE, len(h) - start) - 1]
            weights = self._weights(h[start : start + _AT_ONCE], seen)
            found.append(torch.einsum("bts,sbh->tbh", weights.to(seen.dtype), seen))
        return h + F.linear(torch.cat(found), self.output).to(h.dtype), past[-self.window :].float()

    def weights(self, h: Tensor, memory: Tensor) -> Tensor:
        """The a_s of the last step: ``(B, W)``, oldest first. Their sum is below 1; the rest attends to nothing."""
        return self._weights(h[-1:], torch.cat([memory.to(h.dtype), h[:-1]])[-self.window :])[:, 0]

    def _weights(self, h: Tensor, seen: Tensor) -> Tensor:
        """Attention weights ``(B, t, W + t − 1)``: step i of ``h (t, B, H)`` attends to ``seen[i : i + W]``."""
        scores = torch.einsum("tbh,sbh->bts", F.linear(h, self.query).to(seen.dtype), seen).float() / math.sqrt(h.shape[-1])
        away = torch.arange(len(seen), device=h.device) - torch.arange(len(h), device=h.device)[:, None]
        allowed = ((away >= 0) & (away < self.window)) & (seen.detach() != 0).any(-1).t()[:, None]
        scores = scores.masked_fill(~allowed, -math.inf)
        return torch.softmax(F.pad(scores, (1, 0)), dim=-1)[..., 1:]
