"""Every optimizer is one row of ``OPTIMIZERS``. Knows nothing of torch: the names are those of PyTorch's optimizers.

To add one: a row here. :func:`charlm.training.optimizer.make_optimizer` constructs it, the recipe's schema offers it, the
memory estimate counts its moments, and checkpoints store them. Where an engine has no code for it, PyTorch's runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimizerEntry:
    """What charlm knows of an optimizer.

    Attributes:
        torch_name: its class in ``torch.optim``.
        keys: of the recipe's section ``train``, beside ``lr`` and ``weight_decay``: also the names of the class's arguments.
        options: further arguments of the class.
        moments: the tensors that it keeps for each weight, of the weight's shape, without the momentum's.
        scalars: the numbers that it keeps for each weight, and the largest value of each; the smallest is 0.
        decoupled: weight decay shrinks the weights, apart from the gradient (Loshchilov & Hutter 2019); else it is added to it.
        takes_adams_lr: learning rates that suit Adam suit it, so charlm can choose one for a text.
    """

    torch_name: str
    keys: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    moments: tuple[str, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    decoupled: bool = False
    takes_adams_lr: bool = False

    def kept(self, momentum: float) -> tuple[str, ...]:
        """The names of all tensors that it keeps for each weight, of the weight's shape.

        Args:
            momentum: ``train.momentum``, whose buffer is one of them.
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
