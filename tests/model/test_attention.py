"""Attention over the past: what its equation says, in pieces as at once, looking back only, and carried like the state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from charlm.data.vocabulary import Vocabulary
from charlm.model.attention import Attention
from charlm.model.engines import ENGINES
from charlm.sampling import SamplingParams, generate

V = 9


def _attention(H: int = 6, W: int = 5, seed: int = 1) -> Attention:
    attention = Attention(H, W)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in attention.parameters():
            weight.normal_(generator=rng)
    return attention


@pytest.fixture
def model(network: Callable[..., Any]) -> Callable[..., Any]:
    """A network whose attention has something to say."""

    def make(**keys: Any) -> Any:
        made = network(V, hidden=12, **({"attention": 7} | keys))
        with torch.no_grad():
            made.attention.output.normal_(generator=torch.Generator().manual_seed(2))
        return made

    return make


def test_it_is_its_equation() -> None:
    """If this fails, scores, window, the choice to look at nothing or the sum differ from what is documented."""
    T, B, H, W = 9, 2, 6, 5
    attention = _attention(H, W)
    rng = torch.Generator().manual_seed(3)
    h, memory = torch.randn(T, B, H, generator=rng), torch.randn(W, B, H, generator=rng)
    memory[:2, 1] = 0  # the second stream has read three characters so far
    found, after = attention(h, memory)
    past, found, (query_weight, output) = torch.cat([memory, h]), found.detach(), (w.detach() for w in attention.parameters())
    for t, b in itertools.product(range(T), range(B)):
        query = query_weight @ h[t, b]
        seen = [past[s, b] for s in range(t, t + W) if past[s, b].any()]
        answers = [math.exp(float(query @ state) / math.sqrt(H)) for state in seen]
        looked_up = sum(answer / (1 + sum(answers)) * state for answer, state in zip(answers, seen, strict=True))
        torch.testing.assert_close(found[t, b], h[t, b] + output @ looked_up, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, past[-W:])


def test_a_long_text_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a result depends on how many steps are computed together."""
    attention = _attention(W=20)
    h = torch.randn(50, 2, 6, generator=torch.Generator().manual_seed(3))
    whole, _ = attention(h, torch.zeros(20, 2, 6))
    for size in (1, 7, 49):
        monkeypatch.setattr("charlm.model.attention._AT_ONCE", size)
        torch.testing.assert_close(attention(h, torch.zeros(20, 2, 6))[0], whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_reading_in_pieces_is_reading_at_once(model: Callable[..., Any], cell: str, engine: str) -> None:
    """If this fails, the memory that is handed on is not all that attention needs."""
    made = model(cell=cell, layers=2, engine=engine)
    ids = torch.randint(V, (30, 3), generator=torch.Generator().manual_seed(3))
    whole, last = made(ids, made.zero_state(3))
    state, parts = made.zero_state(3), []
    for piece in torch.split(ids, [1, 4, 9, 16]):
        logits, state = made(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    for mine, expected in zip(state, last, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


def test_it_looks_back_only_and_no_further_than_its_window(model: Callable[..., Any]) -> None:
    """If this fails, a prediction depends on what comes later."""
    made = model()
    ids = torch.randint(V, (20, 1), generator=torch.Generator().manual_seed(3))
    changed = ids.clone()
    changed[12] = (changed[12] + 1) % V
    one, other = (made(text, made.zero_state(1))[0] for text in (ids, changed))
    assert torch.equal(one[:12], other[:12]) and not torch.equal(one[12:], other[12:])

    attention = _attention(W=3)
    h = torch.randn(9, 1, 6, generator=torch.Generator().manual_seed(3))
    moved = h.clone()
    moved[0] += 1
    one, other = (attention(states, torch.zeros(3, 1, 6))[0] for states in (h, moved))
    assert torch.equal(one[4:], other[4:]) and not torch.allclose(one[3], other[3])


def test_it_begins_as_if_it_were_not_there(network: Callable[..., Any]) -> None:
    """If this fails, a fresh network with attention starts from another point than one without."""
    ids = torch.randint(V, (10, 2), generator=torch.Generator().manual_seed(3))
    with_it, without = network(V, hidden=12, attention=4), network(V, hidden=12)
    assert torch.equal(with_it(ids, with_it.zero_state(2))[0], without(ids, without.zero_state(2))[0])
    assert with_it.parameter_count() == without.parameter_count() + 2 * 12 * 12


def test_the_weights_that_are_shown_are_those_that_are_used() -> None:
    """If this fails, the picture of attention is of something else."""
    attention = _attention(W=4)
    rng = torch.Generator().manual_seed(3)
    h, memory = torch.randn(6, 2, 6, generator=rng), torch.randn(4, 2, 6, generator=rng)
    shown = attention.weights(h, memory)
    assert shown.shape == (2, 4) and bool((shown.sum(1) < 1).all())
    seen = torch.cat([memory, h])[-5:-1]
    expected = h[-1] + torch.einsum("bs,sbh->bh", shown, seen) @ attention.output.t()
    torch.testing.assert_close(attention(h, memory)[0][-1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_text_is_written_with_it(model: Callable[..., Any], engine: str) -> None:
    """If this fails, sampling leaves attention out: the likeliest text is not the one that reading gives."""
    made = model(engine=engine)
    vocabulary = Vocabulary("char", tuple(range(97, 97 + V)))
    written = list(itertools.islice(generate(made, vocabulary, [1, 2], SamplingParams(temperature=0), 1), 30))
    logits, _ = made(torch.tensor([[1], [2], *([index] for index in written[:-1])]), made.zero_state(1))
    assert written == [1 + int(row[1:].argmax()) for row in logits[1:, 0]]  # 0 is <unk>, which is never drawn
