"""Context: planted memories are found with their length, and the losses are those of fresh forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.context import DISTANCES, context
from charlm.evaluation.perplexity import carried

V = 4


def _remembers(network: Callable[..., Any], distance: int) -> Any:
    """A plain RNN that predicts the character that came ``distance`` places before the next: a register of one-hot blocks.

    Block 0 takes the input, block j what block j − 1 held, and the output reads the last.
    """
    model = network(V, cell="rnn", nonlinearity="relu", hidden=V * distance, input="one-hot")
    layer = model.layers[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        layer.weight_ih[:V] = torch.eye(V)
        for block in range(1, distance):
            layer.weight_hh[V * block : V * (block + 1), V * (block - 1) : V * block] = torch.eye(V)
        model.output_weight[:, -V:] = 8 * torch.eye(V)
    return model


def _periodic(text_of: Callable[..., Any], period: int, characters: int = 1600) -> Any:
    ids = np.random.default_rng(period).integers(0, V, period)
    return text_of(np.resize(ids, characters), V)


def test_a_model_that_looks_one_character_back_has_a_context_of_one(network: Callable[..., Any], text_of) -> None:
    """If this fails, a context is found in a model that has no recurrence at all."""
    ids = np.arange(1600) % V  # each character tells the next
    model = _remembers(network, 1)
    with torch.no_grad():
        model.output_weight.copy_(8 * torch.roll(torch.eye(V), 1, 0))
    found = context(model, text_of(ids, V))
    assert found.effective_context == 1
    np.testing.assert_allclose(found.cut[1:], found.full, rtol=1e-6)
    assert found.cut[0] == pytest.approx(math.log(V)) and found.full < 0.01


@pytest.mark.parametrize("distance", [2, 7, 24])
def test_a_planted_memory_is_found_with_its_length(network: Callable[..., Any], text_of, distance: int) -> None:
    """If this fails, effective context is not the distance that a model looks back."""
    found = context(_remembers(network, distance), _periodic(text_of, distance), positions=300)
    assert found.positions == 300 and found.effective_context is not None
    assert distance <= found.effective_context <= max(distance, 1.05 * distance)
    short, long = found.distances < distance, found.distances >= distance
    assert (found.cut[short] > 1).all() and (found.cut[long] < 0.01).all()
    assert (found.replaced[short] > 1).all() and (found.replaced[long] < 0.01).all()
    assert (found.shuffled[short] > 1).all() and (found.shuffled[long] < 0.01).all()
    assert (found.cold_start[: distance - 1] > 1).all() and (found.cold_start[distance - 1 :] < 0.01).all()


@pytest.mark.parametrize("section", [{"cell": "rnn"}, {"cell": "lstm", "layers": 2, "attention": 5}], ids=["rnn", "attention"])
def test_untrained_weights_have_no_context(network: Callable[..., Any], text_of: Callable[..., Any], section) -> None:
    """If this fails, the measure sees context where there is only noise."""
    model = network(V, hidden=8, init="normal", **section)
    found = context(model, text_of(np.random.default_rng(1).integers(0, V, 500), V), positions=256)
    assert found.effective_context == 0
    for losses in (found.cut, found.shuffled, found.replaced, found.cold_start):
        np.testing.assert_allclose(losses, math.log(V), rtol=0.01)


@pytest.mark.parametrize(
    "section",
    [{"cell": "gru", "reset_after": False}, {"cell": "lstm", "layers": 2, "residual": True, "attention": 5}],
    ids=["gru", "attention"],
)
def test_the_losses_are_those_of_fresh_forward_passes(network: Callable[..., Any], text_of, section, monkeypatch) -> None:
    """If this fails, the history is cut at another place, or streams are mixed up."""
    model = network(V, hidden=8, **section)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    ids = np.random.default_rng(2).integers(0, V, 420)
    text = text_of(ids, V)
    monkeypatch.setattr("charlm.evaluation.context._STATE_AT_ONCE", 2000)  # several groups
    found = context(model, text, positions=256)
    assert found.distances.tolist() == [0, 1, 2, 5, 10, 20, 50]
    at = np.linspace(100, 419, 256).round().astype(int)

    def loss(reads: np.ndarray, t: int) -> float:
        with torch.inference_mode():
            logits, _ = model(torch.from_numpy(reads[:, None]), model.zero_state(1))
        return -float(torch.log_softmax(logits[-1, 0].double(), -1)[ids[t]])

    for number, k in ((1, 1), (3, 5), (4, 10)):
        assert found.cut[number] == pytest.approx(np.mean([loss(ids[t - k : t], t) for t in at]), abs=1e-5)
        other = [np.concatenate([ids[q - 50 : q], ids[t - k : t]]) for t, q in zip(at, np.roll(at, 128), strict=True)]
        expected = np.mean([loss(reads, t) for t, reads in zip(at, other, strict=True)])
        assert found.replaced[number] == pytest.approx(expected, abs=1e-5)
    bias = torch.log_softmax(model.output_bias.detach().double(), -1).numpy()
    assert found.cut[0] == pytest.approx(-bias[ids[at]].mean(), abs=1e-5)
    each = np.zeros(419)
    carried(model, text, each=each)
    assert found.full == pytest.approx(each[at - 1].mean(), rel=1e-6)
    starts = np.linspace(0, 419 - 50, 256).round().astype(int)
    for k in (1, 17):
        expected = np.mean([loss(ids[start : start + k], start + k) for start in starts])
        assert found.cold_start[k - 1] == pytest.approx(expected, abs=1e-5)


def test_shuffling_what_a_model_ignores_changes_nothing(network: Callable[..., Any], text_of) -> None:
    """If this fails, shuffling or replacing touches the k characters that are kept, or nothing at all."""
    text = text_of(np.random.default_rng(3).integers(0, V, 2000), V)
    found = context(_remembers(network, 5), text, positions=256)
    kept = found.distances >= 5
    for losses in (found.shuffled, found.replaced):
        np.testing.assert_allclose(losses[kept], found.cut[kept], rtol=1e-6)
        assert (np.abs(losses[~kept] - found.cut[~kept]) > 0.1).all()


@pytest.mark.parametrize("characters", [2, 3, 200, 256])
def test_a_short_text_has_no_effective_context(network: Callable[..., Any], text_of, characters: int) -> None:
    """If this fails, a number is stated that rests on a handful of positions."""
    found = context(_remembers(network, 1), text_of(np.arange(characters) % V, V))
    assert found.effective_context is None and found.positions == characters - 1
    assert len(found.cut) == len(found.distances) and found.distances[0] == 0


def test_a_memory_beyond_the_largest_distance_is_not_guessed(network: Callable[..., Any], text_of) -> None:
    """If this fails, a model that needs more than was tried gets a number all the same."""
    found = context(_remembers(network, 60), _periodic(text_of, 60, 310), positions=256)
    assert found.distances[-1] == 20 < DISTANCES[-1] and found.effective_context is None


def test_questions_without_an_answer_are_refused(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """If this fails, one character or a model of NaN gives a traceback."""
    model = network(V, cell="gru", hidden=4)
    with pytest.raises(CorpusError):
        context(model, text_of([1], V))
    with torch.no_grad():
        model.output_bias.fill_(torch.nan)
    with pytest.raises(DivergedError):
        context(model, text_of([1, 2, 3], V))
