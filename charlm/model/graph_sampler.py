"""Sampling on a GPU: the draw and the step of the model are one CUDA graph, and a block of characters is drawn without waiting.

N parallel streams    V symbols
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charlm.model.cells import State
from charlm.model.language_model import LanguageModel
from charlm.model.replay import Replay, Table

_ROWS = 128
"""The largest number of characters per call and stream."""


class GraphSampler:
    """Continues N streams after a prompt, as a :class:`charlm.model.engines.BlockSampler`. It also runs on a CPU, for tests.

    Args:
        model: on its device.
        logits: ``(N, V)`` for the next character.
        state: each ``(L, N, H)``.
        temperature, top_k, top_p: see :class:`charlm.sampling.SamplingParams`.
        banned: ids that are never drawn.
    """

    def __init__(
        self,
        model: LanguageModel,
        logits: Tensor,
        state: State,
        temperature: float,
        top_k: int,
        top_p: float,
        banned: frozenset[int],
    ) -> None:
        N, V = logits.shape
        device = model.output_bias.device
        self._model = model
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._banned = torch.tensor([index in banned for index in range(V)], device=device)
        self._ids = torch.arange(V, device=device)
        self._uniforms = Table((_ROWS, N), torch.float64, device)
        self._rows = torch.arange(_ROWS, device=device)[:, None]
        self._drawn = torch.zeros(_ROWS, N, dtype=torch.int64, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)  # of the draw in the tables
        self._logits = torch.zeros(N, V, dtype=torch.float64, device=device)
        self._state = model.zero_state(N)
        self._is_nonfinite = torch.zeros((), dtype=torch.bool, device=device)
        self._replay = Replay(self._step, device)  # changes logits and state, so they follow
        self._logits.copy_(logits)
        for own, given in zip(self._state, state, strict=True):
            own.copy_(given)
        self._is_nonfinite.fill_(False)

    @property
    def is_nonfinite(self) -> bool:
        """Whether a logit was NaN or infinite; the characters drawn are then invalid."""
        return bool(self._is_nonfinite)

    def draw(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Draw the next characters.

        Args:
            uniforms: ``(count, N)`` numbers in [0, 1); count is at most 128.

        Returns:
            Their ids, ``(count, N)``.
        """
        count = len(uniforms)
        self._uniforms.host[:count] = torch.from_numpy(uniforms)
        self._uniforms.send()
        self._slot.zero_()
        for _ in range(count):
            self._replay()
        return np.asarray(self._drawn[:count].cpu().numpy())

    @torch.no_grad()
    def _step(self) -> None:
        """Draw a character for each stream, and run the model over it: on static tensors, without waiting for the GPU."""
        self._is_nonfinite |= ~torch.isfinite(self._logits).all()
        drawn = self._next(self._uniforms.row(self._slot))
        self._drawn.copy_(torch.where(self._rows == self._slot, drawn, self._drawn))
        features, state = self._model.features(drawn[None], self._state)
        self._logits.copy_(self._model.logits(features[-1]))
        for own, after in zip(self._state, state, strict=True):
            own.copy_(after)
        self._slot += 1

    def _next(self, uniforms: Tensor) -> Tensor:
        """The ids of the rule in :mod:`charlm.sampling`, ``(N,)``: its functions ``distribution`` and ``draw``, for N rows."""
        # An id out of range would end the process's use of the GPU, so NaN must not choose one.
        logits = torch.where(self._is_nonfinite, 0.0, self._logits)
        scores = torch.where(self._banned, -math.inf, logits)
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices
        if self._temperature == 0:
            return order[:, 0]
        scores = torch.exp((scores - scores.amax(1, keepdim=True)) / self._temperature)
        ranks = torch.sort(order, dim=1).indices
        if self._top_k:
            scores = torch.where(ranks < self._top_k, scores, 0.0)
        if self._top_p < 1:
            mass = _running_sums(scores.gather(1, order))
            kept = (mass < self._top_p * mass[:, -1:]).sum(1, keepdim=True) + 1
            scores = torch.where(ranks < kept, scores, 0.0)
        probabilities = scores / scores.sum(1, keepdim=True)
        mass = _running_sums(probabilities)
        index = (mass <= uniforms[:, None] * mass[:, -1:]).sum(1)
        last = torch.where(probabilities > 0, self._ids, -1).amax(1)
        return torch.minimum(index, last)


def _running_sums(rows: Tensor) -> Tensor:
    """Cumulative sums of each row ``(N, V)``, by doubling distances.

    PyTorch's own ``cumsum`` adds in no fixed order on a GPU.
    """
    distance = 1
    while distance < rows.shape[1]:
        rows = torch.cat([rows[:, :distance], rows[:, distance:] + rows[:, :-distance]], dim=1)
        distance *= 2
    return rows
