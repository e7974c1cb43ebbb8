"""The cells' equations, against the same equations written out once more in NumPy, and against numeric gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from charlm import cells
from charlm.cells import CellEntry
from charlm.config import ModelSection
from charlm.model.cells import EQUATIONS
from charlm.model.engines import ReferenceEngine
from charlm.model.language_model import LanguageModel, parameter_shapes

CELLS = [entry.name for entry in cells.CELLS]
T, B, D, H = 6, 3, 4, 5


def _cell(name: str) -> CellEntry:
    return next(entry for entry in cells.CELLS if entry.name == name)


def _weights(cell: CellEntry, width: int = D, hidden: int = H, seed: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = cell.shapes(hidden, width)
    return {name: torch.randn(shape, dtype=torch.float64, generator=rng) for name, shape in shapes.items()}


def _state(cell: CellEntry, streams: int = B, hidden: int = H) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(2)
    return tuple(torch.randn(streams, hidden, dtype=torch.float64, generator=rng) for _ in cell.state)


def _layer(cell: CellEntry, weights: dict[str, torch.Tensor], width: int = D) -> Any:
    return SimpleNamespace(entry=cell, width=width, **weights)


def _step(cell: CellEntry, x: torch.Tensor, state: tuple[torch.Tensor, ...], weights: dict[str, torch.Tensor]) -> Any:
    return EQUATIONS[cell.name](x, state, *(weights[name] for name in cell.step_parameters))


def _zeros(cell: CellEntry) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(weight) for name, weight in _weights(cell).items()}


def _numpy(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in weights.items()}


@pytest.mark.parametrize("name", CELLS)
def test_one_step_is_its_equations(name: str, numpy_layer: Callable[..., Any]) -> None:
    """If this fails, a cell computes something else than its textbook says (tolerance 1e-12, float64)."""
    cell = _cell(name)
    weights, state = _weights(cell), _state(cell)
    x = torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    found = _step(cell, from_input, state, weights)
    _, expected = numpy_layer(name, _numpy(weights), x.numpy()[None], tuple(part.numpy() for part in state))
    assert len(found) == len(cell.state) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_is_its_steps_in_a_row(name: str, numpy_layer: Callable[..., Any]) -> None:
    """If this fails, the reference engine, the truth for all others, is wrong (tolerance 1e-12, float64)."""
    cell = _cell(name)
    weights, state = _weights(cell), _state(cell)
    inputs = torch.randn(T, B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    outputs, last = ReferenceEngine().run(_layer(cell, weights), inputs, state, None)
    expected, expected_last = numpy_layer(name, _numpy(weights), inputs.numpy(), tuple(part.numpy() for part in state))
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(outputs.numpy(), expected, rtol=0, atol=1e-12 * scale)
    for mine, theirs in zip(last, expected_last, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_ids_are_one_hot_vectors_or_rows_of_the_embedding(name: str, numpy_layer: Callable[..., Any]) -> None:
    """If this fails, looking the input's contribution up is not the product that it stands for."""
    cell, V = _cell(name), 7
    ids = torch.randint(V, (T, B), generator=torch.Generator().manual_seed(4))
    embedding = torch.randn(V, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for table in (None, embedding):
        weights, state = _weights(cell, width=V if table is None else D), _state(cell)
        rows = np.eye(V) if table is None else embedding.numpy()
        outputs, _ = ReferenceEngine().run(_layer(cell, weights), ids, state, table)
        expected, _ = numpy_layer(name, _numpy(weights), rows[ids.numpy()], tuple(s.numpy() for s in state))
        np.testing.assert_allclose(outputs.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("by_ids", [False, True], ids=["vectors", "ids"])
def test_gradients_are_those_of_finite_differences(name: str, by_ids: bool) -> None:
    """If this fails, training follows another direction than the loss's gradient (float64 gradcheck)."""
    cell = _cell(name)
    t, b, d, h, symbols = 3, 2, 2, 2, 4
    weights, state = _weights(cell, d, h), _state(cell, b, h)
    rng = torch.Generator().manual_seed(6)
    ids = torch.randint(symbols, (t, b), generator=rng)
    rows = torch.randn((symbols, d) if by_ids else (t, b, d), dtype=torch.float64, generator=rng)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        layer = _layer(cell, dict(zip(weights, tensors, strict=False)))
        given_, rest = tensors[len(weights)], tensors[len(weights) + 1 :]
        inputs, table = (ids, given_) if by_ids else (given_, None)
        outputs, last = ReferenceEngine().run(layer, inputs, rest, table)
        return outputs, *last

    tensors = [tensor.clone().requires_grad_() for tensor in (*weights.values(), rows, *state)]
    assert torch.autograd.gradcheck(run, tensors, eps=1e-6, atol=1e-6)


def test_the_two_grus_differ() -> None:
    """If this fails, reset_after changes nothing."""
    one, other = _cell("gru"), _cell("gru_reset_before")
    weights, state = _weights(one), _state(one)
    x = torch.zeros(B, 3 * H, dtype=torch.float64)
    (a,), (b,) = (_step(cell, x, state, weights) for cell in (one, other))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(("name", "z"), [("gru", 1), ("gru_reset_before", 1)])
def test_the_update_gate_keeps_the_old_state_at_1(name: str, z: float) -> None:
    """If this fails, the convention of z is not PyTorch's h′ = (1 − z)∘n + z∘h."""
    cell = _cell(name)
    (h,) = _state(cell)
    x = torch.zeros(B, 3 * H, dtype=torch.float64)
    x[:, H : 2 * H] = 100.0
    (kept,) = _step(cell, x, (h,), _zeros(cell))
    assert torch.equal(kept, h)


def test_an_open_forget_gate_passes_the_gradient_unshrunk() -> None:
    """If this fails, the LSTM does not do what it was invented for: ∂c/∂c₀ = 1 after 200 steps with f = 1, i = 0."""
    cell = _cell("lstm")
    x = torch.zeros(1, 4 * H, dtype=torch.float64)
    x[:, :H], x[:, H : 2 * H] = -50.0, 50.0
    start = torch.randn(1, H, dtype=torch.float64, requires_grad=True)
    state = (torch.zeros(1, H, dtype=torch.float64), start)
    for _ in range(200):
        state = _step(cell, x, state, _zeros(cell))
    state[1].sum().backward()
    assert start.grad is not None
    torch.testing.assert_close(start.grad, torch.ones_like(start))


def test_without_peepholes_it_is_the_lstm() -> None:
    """If this fails, `variant: peephole` differs from the LSTM in more than its peepholes."""
    cell, plain = _cell("lstm_peephole"), _cell("lstm")
    weights, state = _weights(cell), _state(cell)
    x = torch.randn(B, 4 * H, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    seen = _step(cell, x, state, weights)
    weights["weight_peephole"].zero_()
    unseen, expected = _step(cell, x, state, weights), _step(plain, x, state, weights)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(unseen, expected, strict=True))
    assert not any(torch.allclose(mine, theirs) for mine, theirs in zip(seen, expected, strict=True))


def test_coupled_gates_are_those_of_an_lstm_whose_input_gate_is_1_minus_f() -> None:
    """If this fails, `variant: coupled` is not the LSTM with i = 1 − f = σ(−f's argument)."""
    cell, plain = _cell("lstm_coupled"), _cell("lstm")
    state = _state(cell)
    x = torch.randn(B, 3 * H, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = _step(cell, x, state, _zeros(cell))
    expected = _step(plain, torch.cat([-x[:, :H], x], dim=-1), state, _zeros(plain))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


# -- cells with other parameters ----------------------------------------------------------------------------------------


def _leaky(x: torch.Tensor, state: tuple[torch.Tensor, ...], U: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A cell for tests: h′ = a∘h + tanh(U·input). It has no biases and no recurrent matrix, and uses its raw input."""
    (h,) = state
    return (a * h + torch.tanh(x @ U.T),)


LEAKY = CellEntry("leaky", "lstm", {}, "for tests", ("h",), parameters={"matrix": ("H", "D"), "decay": ("H",)})
"""In place of the LSTM, since a recipe only knows the cells of :mod:`charlm.cells`."""


@pytest.fixture
def only_leaky(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leaky cell is the only one."""
    monkeypatch.setattr(cells, "CELLS", (LEAKY,))
    monkeypatch.setitem(EQUATIONS, "leaky", _leaky)


@pytest.mark.parametrize("section", [{"input": "one-hot"}, {"embedding": D}], ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_cell_may_have_other_parameters_and_its_raw_input(only_leaky: None, section: dict[str, Any], seed: int) -> None:
    """If this fails, a cell must have weight_ih and the rest, or does not see its input (against NumPy, 1e-12)."""
    V, L = 7, 2
    model = LanguageModel(ModelSection(hidden=H, layers=L, **section), V, "reference").double()
    model.initialise(seed)
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == parameter_shapes(model.section, V)
    assert {name for name, _ in model.layers[0].named_parameters()} == {"matrix", "decay"}
    ids = torch.randint(V, (T, B), generator=torch.Generator().manual_seed(seed))
    values = np.eye(V)[ids.numpy()] if model.embedding is None else model.embedding.detach().numpy()[ids.numpy()]
    for layer in model.layers:
        matrix, decay = (weight.detach().numpy() for weight in layer.parameters())
        h, outputs = np.zeros((B, H)), []
        for vectors in values:
            h = decay * h + np.tanh(vectors @ matrix.T)
            outputs.append(h)
        values = np.stack(outputs)
    found, _ = model.features(ids, model.zero_state(B))
    np.testing.assert_allclose(found.detach().numpy(), values, rtol=0, atol=1e-12)
    found.sum().backward()
    assert all(weight.grad is not None for weight in model.layers.parameters())
    model.flatten_for_cudnn()  # PyTorch has no such cell: nothing to do


def test_every_entry_has_equations_and_they_take_its_parameters() -> None:
    """If this fails, a cell that a recipe may choose cannot be computed."""
    assert sorted(EQUATIONS) == sorted(CELLS)
    for entry in cells.CELLS:
        found = _step(entry, torch.zeros(B, len(entry.gates) * H, dtype=torch.float64), _state(entry), _weights(entry))
        assert [tuple(part.shape) for part in found] == [(B, H)] * len(entry.state), entry.name


@pytest.mark.parametrize("entry", [entry for entry in cells.CELLS if "f" in entry.gates], ids=lambda entry: entry.name)
def test_the_forget_bias_is_in_the_rows_of_the_forget_gate(entry: CellEntry) -> None:
    """If this fails, another gate begins open, and the forget gate begins as it happens to be drawn."""
    for init in ("pytorch", "normal", "orthogonal"):
        model = LanguageModel(
            ModelSection(cell=entry.cell, hidden=H, forget_bias=7.0, init=init, **entry.options), 5, "reference"
        )  # type: ignore[arg-type]
        model.initialise(1)
        layer = model.layers[0]
        total = (layer.bias_ih + layer.bias_hh).detach().view(len(entry.gates), H)
        is_forget = torch.tensor([gate == "f" for gate in entry.gates])
        assert bool((total[is_forget] == 7).all()) and bool((total[~is_forget].abs() < 2).all()), init
