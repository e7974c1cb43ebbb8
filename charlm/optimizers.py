"""The optimizers: a row of ``OPTIMIZERS`` each, with the names of PyTorch's classes. Knows nothing of torch.

To add an optimizer, add a row. :func:`charlm.training.optimizer.make_optimizer` constructs it, the recipe's schema offers
it, the memory estimate counts its moments, and checkpoints store them. Engines without a rule for it use PyTorch's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimizerEntry:
    """A row of ``OPTIMIZERS``.

    Attributes:
        torch_name: its class in ``torch.optim``.
        keys: the keys of ``train`` that it uses, besides ``lr`` and ``weight_decay``; also the names of the class's arguments.
        options: further arguments of the class.
        moments: names of the state tensors, each with the shape of its weight tensor, without the momentum buffer.
        scalars: scalar state of each weight tensor: name → largest possible value; the smallest is 0.
        decoupled: whether weight decay shrinks the weights directly (Loshchilov & Hutter 2019) instead of the gradient.
        takes_adams_lr: whether Adam's learning rates suit it. If so, charlm can choose one for a text.
    """

    torch_name: str
    keys: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    moments: tuple[str, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    decoupled: bool = False
    takes_adams_lr: bool = False

    def kept(self, momentum: float) -> tuple[str, ...]:
        """The names of all state tensors that have the shape of their weight tensor.

        Args:
            momentum: ``train.momentum``; above 0 it adds a momentum buffer.
        """
        has_buffer = "momentum" in self.keys and momentum > 0
        return (*self.moments, "momentum_buffer") if has_buffer else self.moments


_STEP = {"step": float("inf")}

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry("SGD", keys=("momentum",)),
    "adam": OptimizerEntry(
        "Adam",
        keys=("betas",),
        options={"fused": True},
        moments=("exp_avg", "exp_avg_sq"),
        scalars=_STEP,
        takes_adams_lr=True,
    ),
    "adamw": OptimizerEntry(
        "AdamW",
        keys=("betas",),
        options={"fused": True},
        moments=("exp_avg", "exp_avg_sq"),
        scalars=_STEP,
        decoupled=True,
        takes_adams_lr=True,
    ),
    "rmsprop": OptimizerEntry("RMSprop", keys=("momentum",), moments=("square_avg",), scalars=_STEP),
    "nadam": OptimizerEntry(  # Adam with Nesterov momentum (Dozat 2016)
        "NAdam",
        keys=("betas",),
        moments=("exp_avg", "exp_avg_sq"),
        scalars={**_STEP, "mu_product": 1.0},
        takes_adams_lr=True,
    ),
}
"""The values of ``train.optimizer``."""
