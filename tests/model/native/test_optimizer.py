"""The update in C++ against torch.optim: the same weights, the same state, and the two can take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from charlm.config import ModelSection, TrainSection
from charlm.model.engines import ENGINES
from charlm.model.language_model import LanguageModel
from charlm.training.optimizer import optimizer_tensors
from charlm.training.update import Updater

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "sgd with momentum and decay": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    "adam with decay": {"optimizer": "adam", "weight_decay": 0.01, "betas": [0.8, 0.95]},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.05},
    "rmsprop": {"optimizer": "rmsprop"},
    "rmsprop with momentum": {"optimizer": "rmsprop", "momentum": 0.5},
}
STEPS = 6


Tensors = dict[str, torch.Tensor]


def _trained(rule: str, native: list[bool], clip: float | None = 0.5) -> tuple[Tensors, Tensors, list[float]]:
    """Weights, moments and norms after ``STEPS`` updates of which those marked are made in C++."""
    model = LanguageModel(ModelSection(cell="lstm", hidden=40, layers=2, dropout=0.0), 30, "native")
    model.initialise(1)
    update = Updater(model, TrainSection(lr=0.002, clip=clip, **RULES[rule]), "fp32")
    in_cpp, state, norms = update._fused, model.zero_state(4), []
    assert in_cpp is not None
    rng = torch.Generator().manual_seed(1)
    for is_native in native:
        ids = torch.randint(0, 30, (9, 4), generator=rng)
        update._fused = in_cpp if is_native else None
        outcome = update(ids, ids, 36, state, 0.002)
        state = outcome.state
        norms.append(outcome.norm)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return weights, optimizer_tensors(update.optimizer, model), norms


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, of the whole tensor: a single gradient that is nearly zero may be mostly rounding."""
    return float((found - expected).norm() / (expected.norm() + 1e-9))


@pytest.mark.parametrize("clip", [0.05, None])
@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_same_optimizer(rule: str, clip: float | None) -> None:
    """If this fails, a recipe trains another model when the native engine runs it."""
    ours, theirs = _trained(rule, [True] * STEPS, clip), _trained(rule, [False] * STEPS, clip)
    for mine, expected in zip(ours[:2], theirs[:2], strict=True):
        assert mine.keys() == expected.keys()
        for name, value in expected.items():
            assert _distance(mine[name], value) < 1e-4, name
    assert ours[2] == pytest.approx(theirs[2], rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_they_can_take_turns(rule: str) -> None:
    """If this fails, a run that is resumed with another engine has lost its moments."""
    mixed, theirs = _trained(rule, [True, False] * (STEPS // 2)), _trained(rule, [False] * STEPS)
    for name, value in theirs[0].items():
        assert _distance(mixed[0][name], value) < 1e-4, name


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, dampening=0.5),
        lambda weights: torch.optim.AdamW(weights, amsgrad=True),
        lambda weights: torch.optim.Adam(weights, decoupled_weight_decay=True),
        lambda weights: torch.optim.RMSprop(weights, centered=True),
        lambda weights: torch.optim.Adagrad(weights),
    ],
    ids=["nesterov", "dampening", "amsgrad", "adam, decoupled decay", "centered", "adagrad"],
)
def test_a_rule_without_cpp_is_left_to_pytorch(optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> None:
    """If this fails, the native engine runs another rule than the recipe's, or none."""
    assert ENGINES["native"].fused_optimizer(optimizer([torch.zeros(2, requires_grad=True)])) is None
