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

    def norm(self) -> float:
        """The Euclidean norm of all gradients."""
        self._gradients = addresses([_gradient(weight) for weight in self._weights])
        self._call.threads = kernel_threads()
        self._call.gradients = ctypes.addressof(self._gradients)
        library.current().charlm_gradient_norm(ctypes.byref(self._call))
        return float(self._call.norm)

    def step(self, factor: float) -> None:
        """Update the weights as if every gradient had been multiplied by ``factor``; :meth:`norm` has been called before."""
        call, group = self._call, self._optimizer.param_groups[0]
        first, second = self._moments(group)
        weights, firsts, seconds = addresses(self._weights), addresses(first), addresses(second)
        call.weights, call.first, call.second = (ctypes.addressof(one) for one in (weights, firsts, seconds))
        call.factor, call.rate, call.momentum = factor, group["lr"], group.get("momentum", 0)
        call.beta1, call.beta2 = group.get("betas", (0, group.get("alpha", 0)))
        call.epsilon = group.get("eps", 0)
        library.current().charlm_update(ctypes.byref(call))
        torch.autograd.graph.increment_version(self._weights)

    def _moments(self, group: dict[str, Any]) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Each weight's moments, made where they are missing; counts the step."""
        adam = "betas" in group
        names = ["exp_avg", "exp_avg_sq"] if adam else ["momentum_buffer", "square_avg"]
        wanted = [adam or group["momentum"] > 0, adam or "alpha" in group]
        moments: tuple[list[Tensor | None], list[Tensor | None]] = ([], [])
        for weight in self._weights:
            state = self._optimizer.state[weight]
            for name, is_wanted, which in zip(names, wanted, moments, strict=True):
                if is_wanted and name not in state:
                    state[name] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
                which.append(state[name] if is_wanted else None)
            if wanted[1]:  # PyTorch counts steps where it keeps squares
                if "step" not in state:
                    state["step"] = torch.zeros(())
                state["step"] += 1
        if wanted[1]:
            self._call.step = int(self._optimizer.state[self._weights[0]]["step"].item())
        return moments


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    if not weight.grad.is_contiguous():
        weight.grad = weight.grad.contiguous()
    return weight.grad
