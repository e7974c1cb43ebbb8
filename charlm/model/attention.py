"""Attention over a layer's own past: what the state has forgotten can still be looked up (as in SHA-RNN, Merity 2019).

One head. The hidden state h_t asks with q_t = W_q·h_t, and each of the W hidden states before it answers as it is:

    a_s = exp(q_t·h_s / √H) / (1 + Σ_r exp(q_t·h_r / √H))        s, r in t − W … t − 1
    h′_t = h_t + W_o·Σ_s a_s·h_s

The 1 below is the choice to look at nothing. The W states before the first step are carried from batch to batch like the
state itself; an empty place is all zeros, and is not looked at.

    T time steps    B streams    H hidden units    W window
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_AT_ONCE = 256
"""Steps whose weights are computed together: memory stays bounded however long the text is."""


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
        """Add to each state what it looks up in its past.

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
        """The a_s of the last step: ``(B, W)``, oldest first. They sum to less than 1: the rest looks at nothing."""
        return self._weights(h[-1:], torch.cat([memory.to(h.dtype), h[:-1]])[-self.window :])[:, 0]

    def _weights(self, h: Tensor, seen: Tensor) -> Tensor:
        """Who looks where, ``(B, t, W + t − 1)``: step i of ``h (t, B, H)`` at ``seen[i : i + W]``."""
        scores = torch.einsum("tbh,sbh->bts", F.linear(h, self.query).to(seen.dtype), seen).float() / math.sqrt(h.shape[-1])
        away = torch.arange(len(seen), device=h.device) - torch.arange(len(h), device=h.device)[:, None]
        allowed = ((away >= 0) & (away < self.window)) & (seen.detach() != 0).any(-1).t()[:, None]
        scores = scores.masked_fill(~allowed, -math.inf)
        return torch.softmax(F.pad(scores, (1, 0)), dim=-1)[..., 1:]
