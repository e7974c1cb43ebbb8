"""Optimizers with their stored moments, the average of the weights, and the loss scale of fp16."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor

from charlm.config import TrainSection
from charlm.errors import CheckpointError
from charlm.model.language_model import LanguageModel
from charlm.optimizers import OPTIMIZERS


def make_optimizer(model: LanguageModel, section: TrainSection) -> torch.optim.Optimizer:
    """The update rule over all weights. Weight decay acts on matrices; biases are left alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    biases = [weight for weight in model.parameters() if weight.dim() == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": section.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    entry = OPTIMIZERS[section.optimizer]
    options = {key: getattr(section, key) for key in entry.keys}
    made = getattr(torch.optim, entry.torch_name)(groups, lr=section.lr, **options, **entry.options)
    return cast(torch.optim.Optimizer, made)


class WeightAverage:
    """An exponential moving average of the weights, which is often better than the last of them (Polyak & Juditsky 1992).

    It is taken every ``EVERY`` steps, which costs nothing noticeable. At first it covers about the last tenth of the steps
    so far, until that is longer than ``decay`` remembers.

    Args:
        model: whose weights are averaged.
        decay: per step, such as 0.999: about the last thousand steps count.
    """

    EVERY = 10

    def __init__(self, model: LanguageModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.flatten_for_cudnn()
        self._weights: list[Tensor] = list(model.parameters())
        self._averages: list[Tensor] = list(self.model.parameters())
        self._decay = decay**self.EVERY

    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        if step % self.EVERY == 0:
            taken = step // self.EVERY
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._weights, 1 - min(self._decay, taken / (9 + taken)))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: LanguageModel) -> dict[str, Tensor]:
    """The optimizer's moments as ``parameter/slot`` → tensor; empty slots are left out."""
    return {
        f"{name}/{slot}": value
        for name, weight in model.named_parameters()
        for slot, value in sorted(optimizer.state.get(weight, {}).items())
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: LanguageModel, section: TrainSection, tensors: dict[str, Tensor]
) -> None:
    """Put stored moments back, each copied into memory of its own.

    Args:
        section: that the optimizer was made from.
        tensors: as :func:`optimizer_tensors` names them; empty: it has made no step yet.

    Raises:
        CheckpointError: the moments are not those of this optimizer and these weights.
    """
    entry = OPTIMIZERS[section.optimizer]
    names = dict(model.named_parameters())
    slots = (*entry.kept(section.momentum), *entry.scalars)
    wanted = {f"{name}/{slot}" for name in names for slot in slots} if tensors else set()
    if stray := sorted(wanted ^ tensors.keys()):
        raise CheckpointError(f"the stored moment {stray[0]} is {'missing' if stray[0] in wanted else 'not of this optimizer'}")
    for key, stored in tensors.items():
        name, _, slot = key.rpartition("/")
        weight = names[name]
        if stored.shape != (() if slot in entry.scalars else weight.shape):
            raise CheckpointError(f"the stored moment {key} {tuple(stored.shape)} does not fit {tuple(weight.shape)}")
        if slot in entry.scalars and not (0 <= stored.item() <= entry.scalars[slot] and math.isfinite(stored.item())):
            raise CheckpointError(f"the stored number {key} is {stored.item():g}")
        # Where PyTorch keeps them: moments and the numbers of fused optimizers beside the weights, other numbers on the CPU.
        beside = slot not in entry.scalars or optimizer.defaults.get("fused")
        optimizer.state[weight][slot] = stored.clone().to(weight.device if beside else "cpu")


class LossScale:
    """fp16 only: gradients below 6e-8 would vanish, so the loss is multiplied by a power of two (Micikevicius 2018).

    Where a gradient overflows, the step is left out and the scale halved; after ``GROW_AFTER`` good steps it doubles.
    """

    GROW_AFTER = 1000

    def __init__(self, enabled: bool, scale: float = 2.0**12, good_steps: int = 0) -> None:
        self.enabled = enabled
        self.scale = scale if enabled else 1.0
        self.good_steps = good_steps

    def overflowed(self) -> bool:
        """Halve the scale. Returns whether the step may simply be left out: not once the scale has come down to 1."""
        if self.scale <= 1:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True

    def succeeded(self) -> None:
        """Count a good step."""
        self.good_steps += 1
        if self.enabled and self.good_steps >= self.GROW_AFTER:
            self.scale, self.good_steps = min(self.scale * 2, 2.0**24), 0
