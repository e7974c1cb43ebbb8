"""What the machine offers and what a run draws from it: device, precision, threads, and reproducible randomness.

Every random choice of charlm is a function of (seed, purpose, step, …), not of how long the process has lived: a resumed
run draws exactly what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from charlm.errors import UsageError
from charlm.threads import limit, most

# Denormal numbers are flushed to zero: the tails of saturated gates make them, and they slow a CPU up to 20 times. The
# setting belongs to a thread, and worker threads inherit it when they are created: it must be made before the first
# parallel operation of the process, or a resumed run (which begins by reading tensors) would compute other bits.
torch.set_flush_denormal(True)


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that works.

    Raises:
        UsageError: an unknown name, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(f"{name}: expected auto, cpu, cuda or cuda:N", parameter="device")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"{name}: PyTorch {torch.__version__} sees no CUDA device here; use cpu", parameter="device")
        if index and int(index) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UsageError(f"{name}: this machine has {count} CUDA device(s), from cuda:0", parameter="device")
    return torch.device("cuda", int(index or 0)) if kind == "cuda" else torch.device("cpu")


def resolve_precision(name: str, device: torch.device, fp32_reason: str | None = None) -> tuple[str, str]:
    """Choose the arithmetic of matrix products.

    Args:
        name: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        fp32_reason: why ``auto`` is fp32 whatever the device, from the engine; ``None``: the device decides.

    Returns:
        The precision and, for ``auto``, why.

    Raises:
        UsageError: fp16 without CUDA (its range needs loss scaling, and CPUs gain nothing from it).
    """
    if name == "fp16" and device.type != "cuda":
        raise UsageError("train.precision: fp16 needs a CUDA device; use bf16, fp32 or auto")
    if name != "auto":
        return name, "as the recipe says"
    if fp32_reason is not None:
        return "fp32", fp32_reason
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "this GPU multiplies bf16 in hardware"
        return "fp32", "this GPU has no bf16 arithmetic"
    instructions = cpu_bf16_instructions()
    if instructions:
        return "bf16", f"this processor multiplies bf16 in hardware ({instructions})"
    return "fp32", "this processor has no bf16 arithmetic"


@cache
def cpu_bf16_instructions() -> str:
    """Name the instruction set with which the processor multiplies bf16 fast, or ``""``."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:  # not Linux: no portable way to ask, so the safe answer
        return ""
    return next((name for name in ("amx_bf16", "avx512_bf16") if name in flags), "")


@cache
def cpu_name() -> str:
    """The processor's model name, for results and reports."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """A device as people know it: ``cpu (AMD EPYC, 2 threads)``, ``cuda:0 (NVIDIA H100)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = most()
    return f"cpu ({cpu_name()}, {threads} thread{'s' if threads > 1 else ''})"


def prepare(threads: int | None) -> int:
    """Set the process up for recurrent networks and return the number of CPU threads that it may use.

    On a GPU fp32 means fp32: cuDNN, and matrix products if the environment asks, would otherwise use TF32's 10-bit mantissa.

    Args:
        threads: see :func:`charlm.threads.limit`.
    """
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return limit(threads)


def derived_seed(seed: int, *purpose: object) -> int:
    """Hash (seed, purpose, …) to 63 bits: the start of one independent random sequence."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, seed: int, *purpose: object) -> torch.Generator:
    """A random generator that belongs to one purpose alone, such as ``("dropout", step, layer)``."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *purpose))


_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run matrix products in ``precision``; weights, sums and losses stay fp32."""
    if precision == "fp32":
        yield
    else:
        with torch.autocast(device.type, dtype=_AUTOCAST_TYPES[precision]):
            yield
