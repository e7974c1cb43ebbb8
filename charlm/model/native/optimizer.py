"""Updates all weights in one pass of C++, with the state that ``torch.optim`` keeps: the two can take turns."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from charlm.model.native import library
from charlm.model.native.interface import RULES, Update, addresses
from charlm.threads import kernel_threads

_VARIANTS = ("amsgrad", "centered", "dampening", "maximize", "nesterov")
"""Options of PyTorch's optimizers that the rules in C++ do not have."""


class NativeOptimizer:
    """Applies one of PyTorch's optimizers.

    Args:
        optimizer: one that :meth:`implements` accepts; its groups' rates and decays are read at each step, its state is kept
            in it.
    """

    @staticmethod
    def implements(optimizer: torch.optim.Optimizer) -> bool:
        """Whether there is a rule in C++ for it: SGD, Adam, AdamW and RMSprop, without their variants."""
        options, kind = optimizer.defaults, type(optimizer)
        decoupled = options.get("decoupled_weight_decay", False) and kind is not torch.optim.AdamW
        return kind in RULES and not decoupled and not any(options.get(variant) for variant in _VARIANTS)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._weights: list[Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
        count = len(self._weights)
        self._sizes = (ctypes.c_int64 * count)(*(weight.numel() for weight in self._weights))
        self._decays = (ctypes.c_double * count)(
            *(group["weight_decay"] for group in optimizer.param_groups for _ in group["params"])
        )
        self._call = Update(
            rule=RULES[type(optimizer)], count=count, sizes=ctypes.addressof(self._sizes), decay=ctypes.addressof(self._decays)
        )
        self._addresses: dict[str, tuple[list[int | None], ctypes.Array[ctypes.c_void_p]]] = {}

    def norm(self) -> float:
        """The Euclidean norm of all gradients."""
        self._point_to_gradients()
        library.current().charlm_gradient_norm(ctypes.byref(self._call))
        return float(self._call.norm)

    def step(self, factor: float) -> None:
        """Update the weights as if every gradient had been multiplied by ``factor``."""
        call, group = self._call, self._optimizer.param_groups[0]
        first, second = self._moments(group)
        self._point_to_gradients()
        self._point("weights", self._weights)
        self._point("first", first)
        self._point("second", second)
        call.factor, call.rate, call.momentum = factor, group["lr"], group.get("momentum", 0)
        call.beta1, call.beta2 = group.get("betas", (0, group.get("alpha", 0)))
        call.epsilon = group.get("eps", 0)
        library.current().charlm_update(ctypes.byref(call))
        torch.autograd.graph.increment_version(self._weights)

    def _point_to_gradients(self) -> None:
        self._call.threads = kernel_threads()
        self._point("gradients", [_gradient(weight) for weight in self._weights])

    def _point(self, field: str, tensors: Sequence[Tensor | None]) -> None:
        """Write the addresses of tensors into a field of the call, if they have changed."""
        now = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        if field not in self._addresses or self._addresses[field][0] != now:
            self._addresses[field] = now, addresses(tensors)
            setattr(self._call, field, ctypes.addressof(self._addresses[field][1]))

    def _moments(self, group: dict[str, Any]) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Each weight's moments, made where they are missing; counts the step."""
        adam = "betas" in group
        names = ["exp_avg", "exp_avg_sq"] if adam else ["momentum_buffer", "square_avg"]
        wanted = [adam or group["momentum"] > 0, adam or "alpha" in group]
        moments: tuple[list[Tensor | None], list[Tensor | None]] = ([], [])
        states = [self._optimizer.state[weight] for weight in self._weights]
        for name, is_wanted, which in zip(names, wanted, moments, strict=True):
            for state, weight in zip(states, self._weights, strict=True):
                if is_wanted and name not in state:
                    state[name] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
                which.append(state[name] if is_wanted else None)
        if wanted[1]:  # PyTorch counts steps where it keeps squares
            for state in states:
                if "step" not in state:
                    state["step"] = torch.zeros(())
            torch._foreach_add_([state["step"] for state in states], 1)
            self._call.step = int(states[0]["step"].item())
        return moments


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    if not weight.grad.is_contiguous():
        weight.grad = weight.grad.contiguous()
    return weight.grad
