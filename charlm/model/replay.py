"""Repeats a function on static tensors: on a GPU as one CUDA graph, on a CPU by calling it.

A small network launches thousands of short kernels per step, and launching them from Python takes longer than running them. A
CUDA graph records the launches once and repeats them together. The function must therefore read and write the same memory at
every call, without a copy to the CPU and without Python values that change. A CPU runs the same function, so that tests need
no GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WARM_UPS = 3
"""Calls before the recording, in which libraries choose their kernels and allocate their workspaces."""


class Replay:
    """Calling it runs the function.

    Args:
        function: reads and writes tensors that it holds. It runs ``_WARM_UPS`` times before it is recorded.
        device: of these tensors.

    Attributes:
        why_not: the reason if calls do not replay a graph; ``None``: they do.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self.why_not: str | None = None
        self._run: Callable[[], Any] = function
        if device.type != "cuda":
            self.why_not = "CUDA graphs need a GPU"
            return
        with torch.cuda.device(device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable")  # the calls before the recording
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                # The outer context: a recording that fails leaves its own stream in place.
                with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
                    function()
            except RuntimeError as error:
                self.why_not = f"PyTorch could not record it: {str(error).splitlines()[0]}"
            else:
                self._run = graph.replay

    def __call__(self) -> None:
        """Run the function once; on a GPU the CPU does not wait for it."""
        self._run()


class Table:
    """Rows that the CPU writes before several replays, one row for each; one copy sends all of them.

    Args:
        shape: ``(rows, …)``.
        device: of the copy that :meth:`row` reads.

    Attributes:
        host: the rows; page-locked for a GPU, so that the copy does not block.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.host = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._device = torch.zeros(shape, dtype=dtype, device=device)

    def send(self) -> None:
        """Copy all rows to the device. Results of the replays must be read before the rows change again."""
        self._device.copy_(self.host, non_blocking=True)

    def row(self, number: Tensor) -> Tensor:
        """A row on the device.

        Args:
            number: ``(1,)``, on the device.
        """
        return self._device.index_select(0, number)[0]
