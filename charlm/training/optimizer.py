"""Constructs an optimizer, and stores and restores its moments."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from charlm.config import TrainSection
from charlm.errors import CheckpointError
from charlm.model.language_model import LanguageModel
from charlm.optimizers import OPTIMIZERS


def make_optimizer(model: LanguageModel, section: TrainSection) -> torch.optim.Optimizer:
    """Construct the recipe's optimizer for all weights. Weight decay applies to matrices, not to biases."""
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


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: LanguageModel) -> dict[str, Tensor]:
    """The optimizer's moments as ``parameter/slot`` → tensor; empty slots are omitted."""
    return {
        f"{name}/{slot}": value
        for name, weight in model.named_parameters()
        for slot, value in sorted(optimizer.state.get(weight, {}).items())
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: LanguageModel, section: TrainSection, tensors: dict[str, Tensor]
) -> None:
    """Restore stored moments. Each tensor is copied.

    Args:
        section: the section that the optimizer was made from.
        tensors: from :func:`optimizer_tensors`; empty before the first step.

    Raises:
        CheckpointError: the moments do not fit this optimizer and these weights.
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
            raise CheckpointError(f"the stored number {key} is {stored.item():g}; expected 0 to {entry.scalars[slot]:g}")
        # As in PyTorch: moments and scalars of fused optimizers are on the device of the weights, other scalars on the CPU.
        on_device = slot not in entry.scalars or optimizer.defaults.get("fused")
        optimizer.state[weight][slot] = stored.clone().to(weight.device if on_device else "cpu")
