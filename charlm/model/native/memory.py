"""Memory that is used again: the activations of a training step are as large as those of the step before."""

from __future__ import annotations

import math
import weakref
from bisect import bisect_left, insort

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""


Block = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Pool:
    """Hands out tensors and takes their memory back when the last of them, or of their views, is gone.

    Fresh memory costs a page fault per 4 KiB, which for a recurrent layer's activations takes as long as the arithmetic.
    """

    def __init__(self) -> None:
        self._free: list[Block] = []  # by size
        self._lent: dict[int, tuple[weakref.ref[memoryview], Block]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with whatever its memory last held."""
        count = math.prod(shape)
        size = max(1, count) * dtype.itemsize
        fits = bisect_left(self._free, size, key=len)
        # Steps of another length take what there is, if that is not much too large.
        block = self._free.pop(fits) if fits < len(self._free) and len(self._free[fits]) <= 2 * size else _aligned(size)
        # PyTorch holds `view` for as long as it holds the memory; when `view` goes, the block waits for its next user.
        view = memoryview(block.data)
        lent = weakref.ref(view, self._back)
        self._lent[id(lent)] = (lent, block)
        return torch.frombuffer(view, dtype=dtype, count=count).view(shape) if count else torch.empty(shape, dtype=dtype)

    def _back(self, lent: weakref.ref[memoryview]) -> None:
        _, block = self._lent.pop(id(lent))
        insort(self._free, block, key=len)


def _aligned(size: int) -> Block:
    block = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


POOL = Pool()
