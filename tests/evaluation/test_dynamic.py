"""Dynamic evaluation: it learns from what it has scored, from nothing else, and leaves the model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from charlm.errors import DivergedError
from charlm.evaluation.dynamic import dynamic
from charlm.evaluation.perplexity import carried
from charlm.model.engines import ENGINES

V = 11
PHRASE = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def model(network: Callable[..., Any]) -> Any:
    return network(V, "reference", cell="lstm", hidden=16, layers=2)


def test_without_a_rate_it_is_the_exact_figure(model: Any, text_of: Callable[..., Any]) -> None:
    """If this fails, characters at segments' ends are lost or scored twice, or the state is not carried."""
    text = text_of(PHRASE * 11, V)
    exact = carried(model, text)
    for segment in (1, 7, 32, 10_000):
        score = dynamic(model, text, segment=segment, rate=0)
        assert score.characters == exact.characters
        assert score.nats == pytest.approx(exact.nats, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_gradient_descent_on_what_has_been_scored(
    network: Callable[..., Any], text_of: Callable[..., Any], engine: str
) -> None:
    """If this fails, the result depends on later characters, or the update is another than the one that is documented."""
    n, rate = 5, 0.3
    found = dynamic(network(V, engine, hidden=16, layers=2), text_of(PHRASE * 3, V), segment=n, rate=rate)

    learner = network(V, "reference", hidden=16, layers=2)
    state, nats = learner.zero_state(1), 0.0
    ids = torch.tensor(PHRASE * 3)
    for start in range(0, len(ids) - 1, n):
        inputs, targets = ids[:-1][start : start + n], ids[1:][start : start + n]
        logits, state = learner(inputs[:, None], tuple(part.detach() for part in state))
        cost = F.cross_entropy(logits[:, 0], targets)
        nats += float(cost.detach()) * len(targets)
        for weight, gradient in zip(learner.parameters(), torch.autograd.grad(cost, list(learner.parameters())), strict=True):
            weight.data -= rate * gradient
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_it_learns_a_text_that_repeats_itself_and_forgets_it_again(model: Any, text_of: Callable[..., Any]) -> None:
    """If this fails, nothing is learned, or the model that was handed in is changed."""
    before = [weight.detach().clone() for weight in model.parameters()]
    text = text_of(PHRASE * 200, V)
    first = dynamic(model, text, rate=0.5)
    assert first.nats < 0.9 * carried(model, text).nats
    assert all(torch.equal(old, weight) for old, weight in zip(before, model.parameters(), strict=True))
    assert dynamic(model, text, rate=0.5).nats == first.nats, "a second evaluation starts from what the first has learned"


def test_unknown_characters_are_counted(model: Any, text_of: Callable[..., Any]) -> None:
    """If this fails, unknown characters of a text go unnoticed."""
    assert dynamic(model, text_of([1, 0, 3, 0, 0, 2], V), unknown_id=0).unknown_characters == 3


def test_a_rate_that_is_too_high_is_said(model: Any, text_of: Callable[..., Any]) -> None:
    """If this fails, infinity or nonsense is reported as a figure."""
    with pytest.raises(DivergedError, match="use a learning rate below"):
        dynamic(model, text_of(PHRASE * 40, V), rate=1e38)
