"""Checks on a CPU that PyTorch could record a function as a CUDA graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "unique", "equal")


class Recordable(TorchDispatchMode):
    """Fails on operations that wait for the device, or whose shapes depend on data. Notes all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in _FORBIDDEN, f"{name} waits for the device"
        scalars = [
            one for one in (*args, *(kwargs or {}).values()) if isinstance(one, int | float | list | tuple | torch.device)
        ]
        plain = [one for one in scalars if not isinstance(one, list | tuple) or not any(isinstance(x, Tensor) for x in one)]
        self.calls.append((name, repr(plain)))
        return func(*args, **(kwargs or {}))
