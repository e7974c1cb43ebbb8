"""Gradient flow: the norms are those of finite differences, and growth shows as well as decay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.gradients import gradients, untrained
from charlm.model.cells import EQUATIONS, GATES

V, K = 7, 6
CELLS: list[dict[str, Any]] = [
    {"cell": "rnn"},
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
    {"cell": "lstm"},
    {"cell": "lstm", "variant": "peephole"},
    {"cell": "lstm", "variant": "coupled"},
]


def _loss(model: Any, ids: np.ndarray, at: int, changed: tuple[int, int, int, int, float]) -> float:
    """−ln p(ids[at + 1]) after reading ids[: at + 1], step by step and layer by layer, with one number of a state changed.

    Args:
        changed: (step, layer, part of the state, unit, amount). A change of c reaches h of the same step.
    """
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    section = model.section
    layers = [layer.entry for layer in model.layers]
    states = [tuple(torch.zeros(1, section.hidden, dtype=torch.float64) for _ in entry.state) for entry in layers]
    step_changed, layer_changed, part_changed, unit, amount = changed
    outputs = []
    for step, symbol in enumerate(ids[: at + 1].tolist()):
        values = weights["embedding"][symbol][None]
        for number, entry in enumerate(layers):
            own = {name: weights[f"layers.{number}.{name}"] for name in entry.parameters}
            x = F.linear(values, own["weight_ih"], own["bias_ih"])
            before, parameters = states[number], [own[name] for name in entry.step_parameters]
            after = list(EQUATIONS[entry.name](x, before, *parameters))
            if (step, number) == (step_changed, layer_changed):
                if entry.state[part_changed] == "c":
                    # h = o∘tanh(c), and the output gate of a peephole sees c too.
                    gates = dict(zip(entry.gates, GATES[entry.name](x, before, *parameters), strict=True))
                    old = after[1].clone()
                    after[1][0, unit] += amount
                    o = gates["o"]
                    if entry.name == "lstm_peephole":
                        o = torch.sigmoid(torch.logit(o) + own["weight_peephole"].chunk(3)[2] * (after[1] - old))
                    after[0] = o * torch.tanh(after[1])
                else:
                    after[0][0, unit] += amount
            states[number] = tuple(after)
            values = after[0] + values if section.residual and number else after[0]
        outputs.append(values)
    features = outputs[-1]
    if section.attention:
        window = torch.stack(outputs[-section.attention - 1 : -1])[:, 0]
        scores = (weights["attention.query"] @ features[0]) @ window.t() / section.hidden**0.5
        found = torch.exp(scores) / (1 + torch.exp(scores).sum()) @ window
        features = features + F.linear(found, weights["attention.output"])
    logits = F.linear(features, weights["output_weight"], weights["output_bias"])
    return float(F.cross_entropy(logits, torch.tensor([ids[at + 1]])))


def _lively(model: Any) -> Any:
    """Initial weights are so small that some gradients would be lost in the differences; attention's begin at zero."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2).add_(0.1 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize(
    "section",
    [*({**cell, "layers": 2} for cell in CELLS), {"layers": 3, "residual": True}, {"cell": "gru", "layers": 2, "attention": 4}],
    ids=lambda section: "-".join(str(value) for value in section.values()),
)
def test_norms_agree_with_finite_differences(
    network: Callable[..., Any], text_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, section: dict[str, Any]
) -> None:
    """Failing would mean that a path from a state to the loss is missed, or that distances or layers are mixed up."""
    monkeypatch.setattr("charlm.evaluation.gradients._STEPS", 3)  # three pieces of a window
    model = _lively(network(V, **{"cell": "lstm", **section}, hidden=4, embedding=3))
    ids = np.random.default_rng(3).integers(0, V, 15)
    found = gradients(model, text_of(ids, V), distance=K, positions=2)
    assert found.positions.tolist() == [K, 13]
    eps = 1e-5
    names = model.layers[0].entry.state
    assert [(flow.layer, flow.state) for flow in found.flows] == [
        (layer, name) for layer in range(section["layers"]) for name in names
    ]
    for flow in found.flows:
        for k in range(K + 1):
            norms = []
            for at in found.positions.tolist():
                place = (at - k, flow.layer, names.index(flow.state))
                slopes = [
                    (_loss(model, ids, at, (*place, unit, eps)) - _loss(model, ids, at, (*place, unit, -eps))) / (2 * eps)
                    for unit in range(4)
                ]
                norms.append(np.linalg.norm(slopes))
            tolerance = 1e-5 if section.get("attention") else 1e-7  # attention computes its weights in fp32
            assert flow.median[k] == pytest.approx(np.mean(norms), rel=tolerance, abs=1e-9), (flow.layer, flow.state, k)


def test_positions_side_by_side_are_those_one_by_one(
    network: Callable[..., Any], text_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a stream's gradient holds a part of another's, or that groups of streams are mixed up."""
    text = text_of(np.random.default_rng(4).integers(0, V, 90), V)
    for cell in ("rnn", "lstm"):
        model = _lively(network(V, "torch", cell=cell, hidden=6))
        together = gradients(model, text, distance=5, positions=20)
        with monkeypatch.context() as patch:
            patch.setattr("charlm.evaluation.gradients._BYTES", 1)
            patch.setattr("charlm.evaluation.gradients._STEPS", 2)
            alone = gradients(model, text, distance=5, positions=20)
        for flow, other in zip(together.flows, alone.flows, strict=True):
            for curve in ("lower_quartile", "median", "upper_quartile"):
                np.testing.assert_allclose(getattr(flow, curve), getattr(other, curve), rtol=1e-10)
            assert (flow.lower_quartile < flow.median).all() and (flow.median < flow.upper_quartile).all()
        assert together.rates[0].factor == pytest.approx(alone.rates[0].factor)


def test_a_plain_rnn_with_large_weights_shows_growth(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """Failing would mean that an exploding gradient looks like a vanishing one, or like none."""
    model = network(V, cell="rnn", nonlinearity="relu", hidden=4, input="one-hot")
    with torch.no_grad():
        layer = model.layers[0]
        layer.weight_hh.copy_(1.25 * torch.eye(4))
        layer.weight_ih.fill_(0.1)
        layer.bias_ih.zero_()
        layer.bias_hh.zero_()
    text = text_of(np.random.default_rng(5).integers(0, V, 150), V)
    found = gradients(model, text, distance=40)
    (flow,), (rate,) = found.flows, found.rates
    assert flow.median[40] / flow.median[0] == pytest.approx(1.25**40, rel=1e-6)
    assert flow.half_life is None
    assert (rate.name, rate.factor, rate.slowest_unit) == ("spectral radius", pytest.approx(1.25), None)


def test_half_life_and_rates_of_a_known_decay(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """Failing would mean that the half-life is another than its definition, or that theory's gate is the wrong one."""
    text = text_of(np.random.default_rng(6).integers(0, V, 400), V)
    model = network(V, cell="lstm", hidden=5)
    with torch.no_grad():
        for name, weight in model.layers[0].named_parameters():
            weight.zero_()
            if name == "bias_ih":
                weight[model.layers[0].entry.rows("f", 5)] = float(torch.logit(torch.tensor(0.8)))
                weight[model.layers[0].entry.rows("g", 5)] = 0.1
    found = gradients(model, text, distance=100)
    h, c = found.flows
    assert found.rates[0].name == "forget gate" and found.rates[0].factor == pytest.approx(0.8)
    np.testing.assert_allclose(c.median / c.median[0], 0.8 ** np.arange(101), rtol=1e-5)
    assert c.half_life == 4, "0.8^3 = 0.512, 0.8^4 = 0.41"
    assert h.half_life == 1 and not h.median[1:].any(), "nothing but c is passed on"
    with torch.no_grad():
        assert model.output_weight is not None
        model.output_weight.zero_()
    assert [flow.half_life for flow in gradients(model, text, distance=20).flows] == [None, None], "there is no gradient"
    gru = network(V, cell="gru", hidden=5)
    with torch.no_grad():
        for name, weight in gru.layers[0].named_parameters():
            weight.zero_()
            if name == "bias_ih":
                weight[gru.layers[0].entry.rows("z", 5)] = torch.logit(torch.tensor([0.9, 0.9, 0.9, 0.9, 0.95]))
        assert gru.output_weight is not None
        gru.output_weight[:, 4] = 0  # the slow unit is not read
    found = gradients(gru, text, distance=100)
    assert found.rates[0].name == "update gate" and found.rates[0].factor == pytest.approx((4 * 0.9 + 0.95) / 5)
    assert found.rates[0].slowest_unit == pytest.approx(0.95)
    np.testing.assert_allclose(found.flows[0].median / found.flows[0].median[0], 0.9 ** np.arange(101), rtol=1e-5)


def test_what_is_smaller_than_float32_is_measured(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """Failing would mean that the curve of a network that forgets ends in zeros."""
    model = network(V, cell="rnn", hidden=4)
    with torch.no_grad():
        model.layers[0].weight_hh.copy_(0.3 * torch.eye(4))
    median = gradients(model, text_of(np.random.default_rng(7).integers(0, V, 1200), V), distance=500).flows[0].median
    assert 0 < median[-1] < 1e-200
    assert np.diff(np.log(median)).max() < np.log(0.31)


def test_short_texts_and_lost_weights_are_named(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """Failing would mean a traceback, or a curve of NaN."""
    model = network(V, cell="gru", hidden=4)
    with pytest.raises(CorpusError, match="2 characters"):
        gradients(model, text_of([1, 2], V))
    found = gradients(model, text_of([1, 2, 3], V))
    assert (found.distances.tolist(), found.positions.tolist()) == ([0, 1], [1])
    with torch.no_grad():
        model.output_bias[0] = torch.nan
    with pytest.raises(DivergedError):
        gradients(model, text_of([1, 2, 3, 4], V))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_an_untrained_model_is_that_of_its_seed(network: Callable[..., Any], cell: str) -> None:
    """Failing would mean that the comparison is with trained weights, with another size, or differs from call to call."""
    model = network(V, "reference", cell="lstm", variant="peephole", hidden=6, layers=2, residual=True, embedding=3)
    made = untrained(model, cell, 5)
    expected = network(V, seed=5, cell=cell, hidden=6, layers=2, residual=True, embedding=3)
    assert dataclasses.asdict(made.layers[0].entry) == dataclasses.asdict(expected.layers[0].entry)
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], weight, rtol=0, atol=0)
