"""Influence: replacement agrees with reading every changed text, the gradient with finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from charlm.errors import CorpusError, DivergedError, UsageError
from charlm.evaluation.attention import attention_weights
from charlm.evaluation.influence import influence

V = 7
MODELS: list[dict[str, Any]] = [
    {"cell": "rnn"},
    {"cell": "rnn", "input": "embedding", "embedding": 5},
    {"cell": "gru", "layers": 2, "residual": True},
    {"cell": "gru", "reset_after": False, "tied": True},
    {"cell": "lstm", "attention": 6},
    {"cell": "lstm", "variant": "peephole", "layers": 2},
]


def _model(network: Callable[..., Any], section: dict[str, Any], engine: str = "reference") -> Any:
    model = network(V, engine, hidden=9, **section)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.4, generator=torch.Generator().manual_seed(len(name))) if weight.dim() > 1 else weight.mul_(2)
    return model


def _log_p(model: Any, ids: np.ndarray) -> np.ndarray:
    """ln p(· | all ids) from a fresh forward pass."""
    with torch.inference_mode():
        logits, _ = model(torch.from_numpy(ids[:, None]), model.zero_state(1))
    return torch.log_softmax(logits[-1, 0].double(), -1).numpy()


@pytest.mark.parametrize("section", MODELS, ids=lambda s: "-".join(map(str, s.values())))
def test_replacement_agrees_with_brute_force(network: Callable[..., Any], text_of: Callable[..., Any], section) -> None:
    """If this fails, the batched computation replaces another character, mixes up streams or loses state."""
    ids = np.random.default_rng(5).integers(0, V, 24)
    model = _model(network, section)
    found = influence(model, text_of(ids, V), count=3, distance=12, unknown_id=0)
    assert (found.start, found.divergence.shape, found.replacements) == (21, (3, 12), V - 2)
    for row, t in enumerate(range(21, 24)):
        own = _log_p(model, ids[:t])
        assert found.nats[row] == pytest.approx(-own[ids[t]], abs=1e-5)
        for d in range(1, 13):
            others = []
            for symbol in range(1, V):
                changed = ids.copy()
                changed[t - d] = symbol
                others += [_log_p(model, changed[:t])] if symbol != ids[t - d] else []
            # The character may be <unk> itself: then there is one symbol more to try.
            divergence = np.mean([(np.exp(own) * (own - other)).sum() for other in others])
            change = np.mean([abs(own[ids[t]] - other[ids[t]]) for other in others])
            assert found.divergence[row, d - 1] == pytest.approx(divergence, abs=1e-5)
            assert found.change[row, d - 1] == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("section", MODELS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_gradient_agrees_with_finite_differences(network: Callable[..., Any], text_of: Callable[..., Any], section) -> None:
    """If this fails, gradient × input is not the derivative by the scale of a character's input vector."""
    ids = np.random.default_rng(6).integers(0, V, 20)
    model = _model(network, section).double()
    found = influence(model, text_of(ids, V), 18, count=4, distance=9)
    # Attention computes its scores in fp32, whatever the weights are.
    step, tolerance = (1e-2, 1e-3) if model.attention is not None else (1e-5, 1e-7)
    table = torch.eye(V, dtype=torch.float64) if model.embedding is None else model.embedding.detach()
    for row, t in enumerate(range(15, 19)):
        for d in range(1, 10):
            costs = []
            for scale in (1 + step, 1 - step):
                inputs = F.embedding(torch.from_numpy(ids[:t]), table)[:, None].clone()
                inputs[t - d] *= scale
                with torch.no_grad():
                    features, _ = model.features(inputs, model.zero_state(1))
                    costs.append(-float(torch.log_softmax(model.logits(features[-1, 0]), -1)[ids[t]]))
            assert found.gradient[row, d - 1] == pytest.approx((costs[0] - costs[1]) / (2 * step), abs=tolerance)


@pytest.mark.parametrize("engine", ["reference", "native", "torch"])
def test_many_positions_are_each_as_if_asked_alone(network: Callable[..., Any], text_of, engine: str, monkeypatch) -> None:
    """If this fails, the page shows other influences than the terminal does."""
    text = text_of(np.random.default_rng(7).integers(0, V, 60), V)
    model = _model(network, {"cell": "lstm", "attention": 5}, engine)
    many = influence(model, text, 40, count=40, distance=8)
    assert many.start == 1 and not many.divergence[0, 1:].any(), "nothing comes before the text"
    for position in (1, 5, 30, 40):
        one = influence(model, text, position, distance=8)
        reach = one.divergence.shape[1]
        for name in ("divergence", "change", "gradient", "attention"):
            row = getattr(many, name)[position - 1]
            np.testing.assert_allclose(row[:reach], getattr(one, name)[0], atol=2e-6)
            assert not row[reach:].any()
    monkeypatch.setattr("charlm.evaluation.influence._NUMBERS_AT_ONCE", 100)  # one stream and one gradient at a time
    small = influence(model, text, 40, count=40, distance=8)
    for name in ("nats", "divergence", "change", "gradient"):
        np.testing.assert_allclose(getattr(small, name), getattr(many, name), atol=2e-6)


def test_attention_is_shown_beside_the_character_that_was_read(network: Callable[..., Any], text_of) -> None:
    """If this fails, attention's weights are one place off."""
    ids = np.random.default_rng(8).integers(0, V, 30)
    model = _model(network, {"cell": "gru", "attention": 6})
    found = influence(model, text_of(ids, V), distance=10)
    assert found.attention is not None and found.attention[0, 0] == 0 and found.attention[0, 1:7].all()
    np.testing.assert_allclose(found.attention[0, 1:10], attention_weights(model, ids[:-1].tolist())[::-1][:9], atol=1e-6)
    assert influence(_model(network, {"cell": "gru"}), text_of(ids, V)).attention is None


def test_a_sample_of_symbols_is_the_same_every_time(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """If this fails, two runs of one command disagree, or the sample is not a sample of all symbols."""
    text = text_of(np.random.default_rng(9).integers(1, V, 30), V)
    model = _model(network, {"cell": "lstm"})
    first, second = (influence(model, text, distance=5, replacements=2) for _ in range(2))
    assert first.replacements == 2 and (first.divergence == second.divergence).all()
    everything = influence(model, text, distance=5, replacements=1000)
    assert everything.replacements == V - 1
    assert 0.2 < first.divergence.sum() / everything.divergence.sum() < 5


def test_untrained_weights_depend_mostly_on_nothing(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """If this fails, influence is found where there is none."""
    model = network(V, cell="gru", hidden=16, init="normal")
    found = influence(model, text_of(np.random.default_rng(1).integers(0, V, 50), V))
    assert found.divergence.max() < 1e-4 and np.abs(found.gradient).max() < 1e-2


def test_questions_without_an_answer_are_refused(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """If this fails, a short text, a wrong position or a model of NaN gives a traceback."""
    model = _model(network, {"cell": "rnn"})
    with pytest.raises(CorpusError, match="1 characters"):
        influence(model, text_of([1], V))
    for position in (0, 2, -2, 99):
        with pytest.raises(UsageError, match="position"):
            influence(model, text_of([1, 2], V), position)
    assert influence(model, text_of([1, 2], V)).divergence.shape == (1, 1)
    with torch.no_grad():
        model.output_bias.fill_(torch.nan)
    with pytest.raises(DivergedError):
        influence(model, text_of([1, 2, 3], V))
