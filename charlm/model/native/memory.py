"""The activation memory pool: each training step reuses the memory of the step before."""

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
    """Allocates tensors and reuses their memory once no tensor or view refers to it.

    New memory costs a page fault per 4 KiB. For the activations of a recurrent layer this takes as long as the arithmetic.
    """

    def __init__(self) -> None:
        self._free: list[Block] = []  # by size
        self._lent: dict[int, tuple[weakref.ref[memoryview], Block]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor."""
        count = math.prod(shape)
        size = max(1, count) * dtype.itemsize
        fits = bisect_left(self._free, size, key=len)
        # A step of another length reuses a larger block, up to twice the size it needs.
        block = self._free.pop(fits) if fits < len(self._free) and len(self._free[fits]) <= 2 * size else _aligned(size)
        # PyTorch keeps `view` alive as long as it uses the memory. When `view` is collected, the block returns to the pool.
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
