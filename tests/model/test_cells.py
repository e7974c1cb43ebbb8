"""The cells' equations, against the same equations written out once more in NumPy, and against numeric gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from charlm.model.cells import Cell, cell_of
from charlm.model.engines import ReferenceEngine

CELLS = ["rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm"]
T, B, D, H = 6, 3, 4, 5


def _cell(name: str) -> Cell:
    if name.startswith("rnn"):
        return cell_of("rnn", name.removeprefix("rnn_"))
    return cell_of("gru", reset_after=False) if name == "gru_reset_before" else cell_of(name)


def _weights(cell: Cell, width: int = D, hidden: int = H, seed: int = 1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    rows = cell.gates * hidden
    shapes = {"weight_ih": (rows, width), "weight_hh": (rows, hidden), "bias_ih": (rows,), "bias_hh": (rows,)}
    return {name: torch.randn(shape, dtype=torch.float64, generator=rng) for name, shape in shapes.items()}


def _state(cell: Cell, streams: int = B, hidden: int = H) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(2)
    return tuple(torch.randn(streams, hidden, dtype=torch.float64, generator=rng) for _ in cell.state_names)


def _layer(cell: Cell, weights: dict[str, torch.Tensor]) -> Any:
    return SimpleNamespace(cell=cell, **weights)


def _numpy(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in weights.items()}


@pytest.mark.parametrize("name", CELLS)
def test_one_step_is_its_equations(name: str, numpy_layer: Callable[..., Any]) -> None:
    """If this fails, a cell computes something else than its textbook says (tolerance 1e-12, float64)."""
    cell = _cell(name)
    weights, state = _weights(cell), _state(cell)
    x = torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    from_input = x @ weights["weight_ih"].T + weights["bias_ih"]
    found = cell.step(from_input, state, weights["weight_hh"], weights["bias_hh"])
    _, expected = numpy_layer(name, _numpy(weights), x.numpy()[None], tuple(part.numpy() for part in state))
    assert len(found) == len(cell.state_names) == len(expected)
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
        given_, rest = tensors[4], tensors[5:]
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
    (a,), (b,) = (cell.step(x, state, weights["weight_hh"], weights["bias_hh"]) for cell in (one, other))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(("name", "z"), [("gru", 1), ("gru_reset_before", 1)])
def test_the_update_gate_keeps_the_old_state_at_1(name: str, z: float) -> None:
    """If this fails, the convention of z is not PyTorch's h′ = (1 − z)∘n + z∘h."""
    cell = _cell(name)
    (h,) = _state(cell)
    x = torch.zeros(B, 3 * H, dtype=torch.float64)
    x[:, H : 2 * H] = 100.0
    (kept,) = cell.step(x, (h,), torch.zeros(3 * H, H, dtype=torch.float64), torch.zeros(3 * H, dtype=torch.float64))
    assert torch.equal(kept, h)


def test_an_open_forget_gate_passes_the_gradient_unshrunk() -> None:
    """If this fails, the LSTM does not do what it was invented for: ∂c/∂c₀ = 1 after 200 steps with f = 1, i = 0."""
    cell = _cell("lstm")
    x = torch.zeros(1, 4 * H, dtype=torch.float64)
    x[:, :H], x[:, H : 2 * H] = -50.0, 50.0
    start = torch.randn(1, H, dtype=torch.float64, requires_grad=True)
    state = (torch.zeros(1, H, dtype=torch.float64), start)
    for _ in range(200):
        state = cell.step(x, state, torch.zeros(4 * H, H, dtype=torch.float64), torch.zeros(4 * H, dtype=torch.float64))
    state[1].sum().backward()
    assert start.grad is not None
    torch.testing.assert_close(start.grad, torch.ones_like(start))


def test_there_is_no_other_cell() -> None:
    """If this fails, a misspelt cell is taken for another one."""
    with pytest.raises(KeyError):
        cell_of("qrnn")
    assert [cell_of(name).gates for name in ("rnn", "gru", "lstm")] == [1, 3, 4]
