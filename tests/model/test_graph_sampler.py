"""Sampling as a CUDA graph. A CPU runs the same steps without a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from recordable import Recordable

from charlm import sampling
from charlm.data.vocabulary import Vocabulary
from charlm.errors import DivergedError
from charlm.model.graph_sampler import GraphSampler
from charlm.sampling import SamplingParams, distribution, draw, generate_parallel

VOCABULARY = Vocabulary("char", tuple(range(97, 97 + 29)))  # and <unk>

PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.5, top_k=3),
    SamplingParams(top_p=0.6, banned=frozenset({1, 7})),
    SamplingParams(temperature=2.0, top_k=10, top_p=0.9),
]


def _sampler(model: Any, logits: torch.Tensor, params: SamplingParams) -> GraphSampler:
    state = model.zero_state(len(logits))
    return GraphSampler(model, logits, state, params.temperature, params.top_k, params.top_p, params.banned)


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_the_draw_follows_the_rule(network: Callable[..., Any], params: SamplingParams) -> None:
    """Failing would mean that a GPU draws other characters than a CPU: equal logits and u near 1 are where rules differ."""
    random = np.random.default_rng(1)
    logits = random.normal(size=(200, 30)).round(1)  # rounded: many are equal
    uniforms = random.random(200)
    uniforms[:3] = 0.0, np.nextafter(1.0, 0.0), 0.5
    expected = [draw(distribution(row, params), one) for row, one in zip(logits, uniforms, strict=True)]
    sampler = _sampler(network(30, hidden=8), torch.from_numpy(logits), params)
    assert sampler.draw(uniforms[None])[0].tolist() == expected


@pytest.mark.parametrize("keys", [{}, {"cell": "gru", "layers": 2}, {"attention": 4}], ids=str)
def test_the_same_seed_gives_the_same_text(
    network: Callable[..., Any], keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that samples of a GPU cannot be repeated on a CPU, or that a block starts from another state."""
    model = network(30, hidden=16, **keys).with_engine("torch")
    params = SamplingParams(top_p=0.9)
    expected = list(islice(generate_parallel(model, VOCABULARY, [3, 4], params, 5, [0, 1, 9]), 300))
    monkeypatch.setattr(type(model.engine), "block_sampler", lambda self, *arguments: GraphSampler(*arguments[:-1]))
    found = list(islice(generate_parallel(model, VOCABULARY, [3, 4], params, 5, [0, 1, 9]), 300))
    assert found == expected
    alone = list(islice(generate_parallel(model, VOCABULARY, [3, 4], params, 5, [9]), 300))
    assert [row[0] for row in alone] == [row[2] for row in expected]


def test_bad_logits_are_reported(network: Callable[..., Any]) -> None:
    """Failing would mean that text is drawn from NaN."""
    sampler = _sampler(network(30, hidden=8), torch.zeros(2, 30), SamplingParams())
    sampler.draw(np.full((2, 2), 0.5))
    assert not sampler.is_nonfinite
    sampler = _sampler(network(30, hidden=8), torch.full((2, 30), math.nan), SamplingParams())
    sampler.draw(np.full((2, 2), 0.5))
    assert sampler.is_nonfinite
    with pytest.raises(DivergedError):
        next(sampling._in_blocks(sampler, [np.random.default_rng(1)] * 2, sampling.Tuner("sampling", True)))


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_a_draw_never_waits(network: Callable[..., Any], params: SamplingParams) -> None:
    """Failing would mean that PyTorch cannot record the draw, or that all characters of a block get the same number."""
    sampler = _sampler(network(30, hidden=8).with_engine("torch"), torch.zeros(2, 30), params)
    seen = []
    for slot in (0, 5):
        sampler._slot.fill_(slot)
        with Recordable() as mode:
            sampler._step()
        seen.append(mode.calls)
    assert seen[0] == seen[1] and len(seen[0]) > 10
