"""Device, precision, threads and reproducible random numbers.

Every random choice of charlm is a function of (seed, purpose, step, …). It does not depend on earlier draws, so a resumed run
and an uninterrupted one make the same choices.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from charlm.errors import UsageError
from charlm.threads import limit, most

# Flush denormal numbers to zero: saturated gates produce them, and they make a CPU up to 20 times slower. Each thread has its
# own setting, and worker threads inherit it when they are created. So it must be set before the first parallel operation of
# the process; otherwise a resumed run, which first reads tensors, would not be bit-identical.
torch.set_flush_denormal(True)


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Args:
        local_rank: the number of this process among those of a run on this machine, which gives it a GPU of its own;
            ``None``: it is alone.

    Raises:
        UsageError: the name is unknown, or there is no such device.
    """
    if local_rank is not None and name not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"{name}: expected auto, cpu or cuda; each process takes the GPU of its own number", parameter="device"
        )
    if name == "cuda" and local_rank is not None and torch.cuda.is_available():
        name = f"cuda:{local_rank}"
    if name == "auto":
        return torch.device("cuda", local_rank or 0) if (local_rank or 0) < torch.cuda.device_count() else torch.device("cpu")
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
        The precision, and the reason for it.

    Raises:
        UsageError: fp16 without CUDA. (Its range needs loss scaling, and it does not make CPUs faster.)
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
    """The instruction set for fast bf16 products, or ``""``."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:  # not Linux: unknown, so assume none
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
    """A readable name: ``cpu (AMD EPYC, 2 threads)``, ``cuda:0 (NVIDIA H100)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = most()
    return f"cpu ({cpu_name()}, {threads} thread{'s' if threads > 1 else ''})"


def prepare(threads: int | None) -> int:
    """Configure PyTorch for recurrent networks, and return the number of CPU threads that the process may use.

    This disables TF32 on GPUs, whose mantissa has only 10 bits.

    Args:
        threads: see :func:`charlm.threads.limit`.
    """
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return limit(threads)


def use_deterministic_algorithms() -> None:
    """Let GPUs use only algorithms that add in a fixed order; PyTorch warns about an operation that has none.

    cuBLAS, which cuDNN's recurrent layers use too, needs a workspace of one size for this. It reads the variable when it is
    first used, so this function must be called before.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A check for programs that read such memory, which costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def derived_seed(seed: int, *purpose: object) -> int:
    """Hash (seed, purpose, …) to 63 bits: the seed of an independent random sequence."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, seed: int, *purpose: object) -> torch.Generator:
    """A random generator for one purpose, such as ``("dropout", step, layer)``."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *purpose))


_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute matrix products in ``precision``; weights, sums and losses stay fp32."""
    if precision == "fp32":
        yield
    else:
        with torch.autocast(device.type, dtype=_AUTOCAST_TYPES[precision]):
            yield
