"""Memory that is used again: the activations of a training step are as large as those of the step before."""

from __future__ import annotations

import ctypes
import math
import weakref

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""


class Pool:
    """Hands out tensors and takes their memory back when the last of them, or of their views, is gone.

    Fresh memory costs a page fault per 4 KiB, which for a recurrent layer's activations takes as long as the arithmetic.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray[tuple[int], np.dtype[np.uint8]]]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with whatever its memory last held."""
        size = max(1, math.prod(shape)) * dtype.itemsize
        waiting = self._free.setdefault(size, [])
        block = waiting.pop() if waiting else np.empty(size + ALIGNMENT, dtype=np.uint8)
        # PyTorch keeps `view` as long as it keeps the memory; when `view` goes, the block waits for its next user.
        view = (ctypes.c_char * size).from_buffer(block.data, -block.ctypes.data % ALIGNMENT)
        weakref.finalize(view, waiting.append, block).atexit = False
        return torch.frombuffer(view, dtype=dtype, count=math.prod(shape)).view(shape)

    def clear(self) -> None:
        """Give back to the system what nobody uses."""
        for waiting in self._free.values():
            waiting.clear()


POOL = Pool()
