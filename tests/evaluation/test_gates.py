"""Gates: those of the cell's own equations, counted exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from charlm.cells import CELLS
from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.gates import gates
from charlm.evaluation.hidden_states import hidden_states
from charlm.model.cells import CANDIDATES, GATES, KEEP_GATES
from charlm.model.recording import with_record

V = 7
GATED = [entry for entry in CELLS if entry.name in GATES]


def _model(network: Callable[..., Any], name: str, engine: str = "reference", **section: Any) -> Any:
    """A model with lively gates."""
    entry = next(entry for entry in CELLS if entry.name == name)
    model = network(V, engine, cell=entry.cell, hidden=6, **entry.options, **section)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model.requires_grad_(False)


def test_every_cell_with_gates_has_them() -> None:
    """Failing would mean that a new cell is taken for one without gates."""
    assert {entry.name for entry in CELLS} - set(GATES) == {"rnn_tanh", "rnn_relu"}
    for entry in GATED:
        assert sum(gate in KEEP_GATES for gate in entry.gates) == 1 and set(entry.gates) & set(CANDIDATES)


@pytest.mark.parametrize("name", [entry.name for entry in GATED])
def test_states_made_of_the_gates_are_those_of_the_reference_engine(
    network: Callable[..., Any], text_of: Callable[..., Any], name: str
) -> None:
    """Failing would mean that the gates that are shown are not the gates that the model uses."""
    ids = np.random.default_rng(1).integers(0, V, 40)
    model = _model(network, name, layers=2)
    recording, engine = with_record(model)
    recording.features(torch.from_numpy(ids)[:, None], model.zero_state(1))
    for layer, record in enumerate(engine.recorded):
        expected = hidden_states(model, text_of(ids, V))[:, layer]
        gate = {part: values[:, 0].numpy() for part, values in record.gates().items()}
        assert list(gate) == list(record.entry.gates)
        h, c = np.zeros(6), np.zeros(6)
        for step in range(40):
            at = {part: values[step] for part, values in gate.items()}
            if "f" in at:
                c = at["f"] * c + at.get("i", 1 - at["f"]) * at["g"]
                h = at["o"] * np.tanh(c)
            else:
                h = (1 - at["z"]) * at["n"] + at["z"] * h
            np.testing.assert_allclose(h, expected[step], atol=2e-6)


@pytest.mark.parametrize("name", [entry.name for entry in GATED])
@pytest.mark.parametrize("length", [2, 41, 1500])
def test_counts_are_those_of_all_values(
    network: Callable[..., Any], text_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, length: int
) -> None:
    """Failing would mean that pieces overlap or leave gaps, or that a share or a mean counts other values."""
    ids = np.random.default_rng(2).integers(0, V, length)
    model = _model(network, name, "reference", layers=2)
    monkeypatch.setattr("charlm.evaluation.gates._BYTES", 1 << 15)  # several chunks of each piece
    found = gates(model, text_of(ids, V))
    recording, engine = with_record(model)
    recording.features(torch.from_numpy(ids)[:, None], model.zero_state(1))
    assert length - 64 <= found.steps < length
    skipped = length - found.steps
    expected = {
        (layer, gate): values[skipped:, 0].double().numpy()
        for layer, record in enumerate(engine.recorded)
        for gate, values in record.gates().items()
        if gate not in CANDIDATES
    }
    assert [(gate.layer, gate.name) for gate in found.gates] == list(expected)
    for gate in found.gates:
        values = expected[gate.layer, gate.name]
        np.testing.assert_allclose(gate.unit_means, values.mean(axis=0), atol=1e-5)
        assert gate.histogram.sum() == pytest.approx(1)
        np.testing.assert_allclose(gate.histogram, np.histogram(values, 20, (0, 1))[0] / values.size, atol=2e-3)
        assert gate.below == pytest.approx((values < 0.1).mean(), abs=2e-3)
        assert gate.above == pytest.approx((values > 0.9).mean(), abs=2e-3)
        assert gate.keeps == (gate.name in ("f", "z"))
    for change in found.changes:
        states = engine.recorded[change.layer].states
        part = engine.recorded[0].entry.state.index(change.state)
        x = torch.stack([state[part][0] for state in states])[skipped:].double().numpy()
        ratios = np.linalg.norm(np.diff(x, axis=0), axis=1) / np.linalg.norm(x[1:], axis=1)
        assert change.mean == pytest.approx(ratios.mean(), rel=1e-4)


def test_memory_is_the_time_constant_of_the_mean_gate(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """Failing would mean that a unit that keeps its state for ten steps is called a short one."""
    model = network(V, cell="gru", hidden=3)
    with torch.no_grad():
        for weight in model.layers[0].parameters():
            weight.zero_()
        model.layers[0].bias_ih[3:6] = torch.tensor([-1.0, 100.0, 2.0])
    text = text_of(np.random.default_rng(3).integers(0, V, 300), V)
    r, z = gates(model, text).gates
    assert (r.name, z.name, r.memory) == ("r", "z", None)
    assert z.memory is not None and z.memory[1] == np.inf
    assert z.memory[2] == pytest.approx(-1 / np.log(1 / (1 + np.exp(-2))), rel=1e-5)
    assert z.longest(2) == [1, 2]
    assert (z.above, z.below, z.histogram[19]) == (pytest.approx(1 / 3), 0, pytest.approx(1 / 3))


@pytest.mark.parametrize("options", [{"residual": True, "layers": 3}, {"attention": 5}, {"input": "one-hot"}], ids=str)
def test_a_plain_rnn_has_no_gates_but_changes(
    network: Callable[..., Any], text_of: Callable[..., Any], options: dict[str, Any]
) -> None:
    """Failing would mean that an RNN is refused, or that its activation is called a gate."""
    model = network(V, "torch", cell="rnn", hidden=6, **options)
    found = gates(model, text_of(np.random.default_rng(4).integers(0, V, 700), V))
    assert found.gates == () and [change.state for change in found.changes] == ["h"] * options.get("layers", 1)
    assert all(0 < change.mean < 3 for change in found.changes)


def test_a_state_that_never_changes_has_no_change(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """Failing would mean a division by zero where a ReLU network is silent."""
    model = network(V, cell="rnn", nonlinearity="relu", hidden=3)
    with torch.no_grad():
        for weight in model.layers[0].parameters():
            weight.fill_(-1e-3)
        model.embedding.abs_()
    (change,) = gates(model, text_of(np.arange(50) % V, V)).changes
    assert change.mean == 0


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_short_texts_and_lost_weights_are_named(network: Callable[..., Any], text_of: Callable[..., Any], cell: str) -> None:
    """Failing would mean a traceback, or gates of NaN."""
    model = network(V, cell=cell, hidden=4)
    with pytest.raises(CorpusError, match="1 characters"):
        gates(model, text_of([1], V))
    with torch.no_grad():
        model.layers[0].weight_hh[0, 0] = torch.nan
    with pytest.raises(DivergedError):
        gates(model, text_of([1, 2, 3, 4], V))
