"""Peak memory of a case."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from charlm.bench.record import Configuration, Shape
from charlm.bench.timing import warm_up
from charlm.bench.work import build
from charlm.runtime import prepare


def peak_memory(case: Configuration, shape: Shape, device: torch.device, threads: int) -> int | None:
    """Peak memory of a case, weights included, minus the memory of the same case with a tiny network.

    The tiny network measures Python, PyTorch and the code of the kernels. On a CPU, resident memory of a new process is
    measured: an old process could reuse freed memory, which would not count. On a GPU, PyTorch's allocations are measured.

    Returns:
        Bytes; ``None``: unknown on this system (other than Linux).
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_peak_memory_here, case, shape, str(device), threads).result()


def _peak_memory_here(case: Configuration, shape: Shape, device_name: str, threads: int) -> int | None:
    prepare(threads)
    device = torch.device(device_name)
    warm_up(build(case, Shape(hidden=2, symbols=2, seq_length=2, batch=1, layers=shape.layers), device))
    if device.type == "cuda":
        return peak_on_gpu(case, shape, device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
        before = _status("VmRSS")
        warm_up(build(case, shape, device))
        return _status("VmHWM") - before
    except OSError:
        return None


def peak_on_gpu(case: Configuration, shape: Shape, device: torch.device) -> int:
    """Peak memory in bytes that PyTorch allocates for a case, minus its allocations so far."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    warm_up(build(case, shape, device))
    return torch.cuda.max_memory_allocated(device) - before


def _status(name: str) -> int:
    """A line of this process's ``/proc/self/status``, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
