"""The table of optimizers agrees with PyTorch's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm.checkpoint import load, save
from charlm.config import ModelSection, TrainSection
from charlm.errors import CheckpointError
from charlm.model.language_model import LanguageModel
from charlm.optimizers import OPTIMIZERS
from charlm.training.optimizer import make_optimizer, optimizer_tensors
from charlm.training.update import Updater


def _model(engine: str = "reference") -> LanguageModel:
    model = LanguageModel(ModelSection(cell="gru", hidden=40, dropout=0.0), 20, engine)
    model.initialise(1)
    return model


def _trained(engine: str, section: TrainSection, steps: int = 5) -> dict[str, torch.Tensor]:
    """Weights and moments after some updates."""
    model, rng = _model(engine), torch.Generator().manual_seed(1)
    update, state = Updater(model, section, "fp32"), model.zero_state(4)
    for _ in range(steps):
        ids = torch.randint(0, 20, (7, 4), generator=rng)
        state = update(ids, ids, 28, state, section.lr).state
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return weights | optimizer_tensors(update.optimizer, model)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_names_what_an_optimizer_keeps(name: str, momentum: float) -> None:
    """If this fails, the memory estimate is wrong, and runs of this optimizer cannot be resumed."""
    kept, entry = _trained("reference", TrainSection(optimizer=name, momentum=momentum), steps=1), OPTIMIZERS[name]
    weight = kept["output_bias"]
    mine = {key.partition("/")[2]: tensor for key, tensor in kept.items() if key.startswith("output_bias/")}
    assert {slot for slot, tensor in mine.items() if tensor.shape == weight.shape} == {*entry.kept(momentum)}
    assert {slot for slot, tensor in mine.items() if tensor.shape == ()} == {*entry.scalars}
    assert all(0 <= mine[slot].item() <= largest for slot, largest in entry.scalars.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_says_where_weight_decay_acts(name: str) -> None:
    """If this fails, charlm chooses a weight decay of 0.2 for an optimizer that adds it to the gradient.

    Without a gradient, decoupled decay shrinks a weight by exactly lr·weight_decay.
    """
    model = _model()
    optimizer = make_optimizer(model, TrainSection(optimizer=name, lr=0.1, weight_decay=0.5, momentum=0.0))
    before = {weight: weight.detach().clone() for weight in model.parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    shrunk = all(torch.allclose(weight, before[weight] * 0.95) for weight in model.parameters() if weight.dim() > 1)
    coupled_by_definition = name == "sgd"  # the two are the same without momentum
    assert shrunk == (OPTIMIZERS[name].decoupled or coupled_by_definition)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_engine_applies_the_same_optimizer(name: str) -> None:
    """If this fails, a recipe trains another model under another engine."""
    section = TrainSection(optimizer=name, lr=0.002, clip=0.05, momentum=0.5)
    expected = _trained("reference", section)
    for engine in ("torch", "native"):
        found = _trained(engine, section)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert float((found[key] - tensor).norm() / (tensor.norm() + 1e-9)) < 2e-4, (engine, key)


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if entry.scalars])
def test_numbers_that_an_optimizer_cannot_have_are_refused(
    name: str, tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, a checkpoint that charlm did not write divides by zero, or never ends."""
    keys = (f"train.optimizer={name}", "train.total_steps=2")
    last = tiny_run(english_file, tmp_path / "run", *keys, max_steps=1).folder / "last.safetensors"
    stored = load(last)
    for slot, largest in OPTIMIZERS[name].scalars.items():
        for value in (-1.0, largest + 1.0, float("nan")):
            changed = {key: torch.tensor(value) if key.endswith(f"/{slot}") else old for key, old in stored.optimizer.items()}
            save(last, replace(stored, optimizer=changed))
            with pytest.raises(CheckpointError, match=rf"the stored number .*/{slot} is"):
                tiny_run(english_file, tmp_path / "run", *keys, resume="must")


def test_nadam_by_hand() -> None:
    """If this fails, `nadam` is not Dozat's (2016) with PyTorch's schedule μ_t = β₁·(1 − 0.96^(t·0.004)/2)."""
    model = _model()
    weight = model.output_bias
    update = make_optimizer(model, TrainSection(optimizer="nadam", lr=0.01, betas=[0.9, 0.99]))
    theta, m, v, product = weight.detach().double().clone(), 0.0, 0.0, 1.0
    rng = torch.Generator().manual_seed(3)
    for t in range(1, 6):
        gradient = torch.randn(weight.shape, generator=rng)
        weight.grad = gradient.clone()
        update.step()
        g = gradient.double()
        mu, next_mu = (0.9 * (1 - 0.5 * 0.96 ** (step * 0.004)) for step in (t, t + 1))
        product *= mu
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        ahead = next_mu * m / (1 - product * next_mu) + (1 - mu) * g / (1 - product)
        theta = theta - 0.01 * ahead / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach().double(), theta, rtol=0, atol=1e-6)
