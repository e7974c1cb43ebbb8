"""What the native engine's tests share: a model, a batch, and all that an update computes from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from charlm.config import ModelSection
from charlm.data.streams import IGNORED
from charlm.model.language_model import LanguageModel
from charlm.model.native import library
from charlm.threads import use

CELLS: dict[str, dict[str, Any]] = {
    "rnn_tanh": {"cell": "rnn"},
    "rnn_relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "gru_reset_before": {"cell": "gru", "reset_after": False},
    "lstm": {"cell": "lstm"},
    "lstm_peephole": {"cell": "lstm", "variant": "peephole"},
    "lstm_coupled": {"cell": "lstm", "variant": "coupled"},
}


@dataclass(frozen=True)
class Case:
    """A network and a batch for it; both follow from the seed.

    Attributes:
        inputs: ``one-hot``, ``tied``, or the width of an embedding.
        wanted: what the gradient is taken of: the ``loss``, the final ``state``, or ``both``.
    """

    cell: str
    T: int = 5
    B: int = 3
    H: int = 33
    V: int = 30
    layers: int = 1
    inputs: str | int = "one-hot"
    wanted: str = "both"
    seed: int = 1

    def model(self, engine: str) -> LanguageModel:
        """The network."""
        width: dict[str, Any] = {"input": "embedding", "embedding": self.inputs}
        if isinstance(self.inputs, str):
            width = {"one-hot": {"input": "one-hot"}, "tied": {"tied": True}}[self.inputs]
        section = ModelSection(hidden=self.H, layers=self.layers, dropout=0.0, **CELLS[self.cell], **width)
        model = LanguageModel(section, self.V, engine)
        model.initialise(self.seed)
        return model

    def batch(self) -> tuple[Tensor, Tensor]:
        """Ids and targets ``(T, B)``; some targets are not scored, one always is."""
        rng = torch.Generator().manual_seed(self.seed)
        ids, targets = torch.randint(self.V, (2, self.T, self.B), generator=rng)
        targets[torch.rand(self.T, self.B, generator=rng) < 0.1] = IGNORED
        targets[-1, -1] = ids[-1, -1]
        return ids, targets

    def outcome(self, model: LanguageModel, precision: str = "fp32") -> dict[str, Tensor]:
        """Outputs, final state, loss, and the gradients of loss and final state, from a state that is not zero."""
        rng = torch.Generator().manual_seed(self.seed + 1)
        dtype = model.output_bias.dtype
        shapes = [part.shape for part in model.zero_state(self.B)]
        state = [(torch.randn(shape, generator=rng) / 2).to(dtype).requires_grad_() for shape in shapes]
        ids, targets = self.batch()
        with torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext():
            features, last = model.features(ids, tuple(state))
            weight = model.output_weight if model.output_weight is not None else model.embedding
            nats = model.engine.cross_entropy(features.flatten(0, 1), weight, model.output_bias, targets.flatten())
        total = torch.zeros((), dtype=torch.float64)
        if self.wanted in ("loss", "both"):
            total = total + nats / (self.T * self.B)
        if self.wanted in ("state", "both"):
            total = total + sum((part * torch.randn(part.shape, generator=rng)).sum() for part in last) / self.B
        weights = dict(model.named_parameters())
        gradients = torch.autograd.grad(total, [*weights.values(), *state], allow_unused=True)
        found = {"outputs": features, "loss": nats}
        found |= {f"state {n}": part for n, part in enumerate(last)}
        names = [*(f"gradient of {name}" for name in weights), *(f"gradient of state {n}" for n in range(len(state)))]
        found |= {name: part for name, part in zip(names, gradients, strict=True) if part is not None}
        return {name: part.detach().double() for name, part in found.items()}


def distances(mine: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Per name the norm of the difference over the norm. A gradient's norm counts as a twentieth of the largest at least.

    A gradient that is much smaller than the others is what is left of terms that cancelled, and their rounding stays.
    """
    assert mine.keys() == truth.keys()
    gradients = [float(part.norm()) for name, part in truth.items() if name.startswith("gradient")]
    places = math.prod(truth["outputs"].shape[:2]) if "outputs" in truth else 1
    least = max(0.05 * max(gradients, default=0.0), 0.03 / math.sqrt(places))
    return {
        name: float((mine[name] - part).norm()) / max(float(part.norm()), least if name.startswith("gradient") else 1e-3)
        for name, part in truth.items()
    }


@pytest.fixture(autouse=True)
def _usable(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that computes with the engine needs it; `test_build.py` brings its own."""
    if request.path.name != "test_build.py" and library.reason() is not None:
        pytest.skip(str(library.reason()))
    threads = torch.get_num_threads()
    yield
    use(threads)


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    """``case("gru", H=33, …)``: see :class:`Case`."""
    return Case


@pytest.fixture(scope="session")
def differences() -> Callable[..., dict[str, float]]:
    """``differences(mine, truth)``: see :func:`distances`."""
    return distances
