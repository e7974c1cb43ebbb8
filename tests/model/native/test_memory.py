"""The activation memory pool: it never reuses memory too early, and callers notice nothing."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from charlm.model.native import memory
from charlm.model.native.memory import ALIGNMENT, POOL, Pool

CELLS = ["rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm", "lstm_peephole", "lstm_coupled"]


@pytest.fixture
def pool() -> Pool:
    """A pool of its own."""
    return Pool()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given back is overwritten at once with what is not a number, and new memory is full of it."""
    back, take = Pool._back, Pool.take

    def spoil_and_take_back(self: Pool, lent: Any) -> None:
        self._lent[id(lent)][1].fill(255)
        back(self, lent)

    def take_poisoned(self: Pool, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return take(self, shape, dtype).fill_(torch.nan)

    monkeypatch.setattr(Pool, "_back", spoil_and_take_back)
    monkeypatch.setattr(Pool, "take", take_poisoned)


def test_memory_is_used_again_when_nobody_has_it(pool: Pool) -> None:
    """If this fails, every training step pays for fresh memory, or gets some that is still in use."""
    first = pool.take((4, 6), torch.float32)
    place = first.data_ptr()
    second = pool.take((4, 6), torch.float32)
    assert second.data_ptr() != place
    del first
    third = pool.take((3, 17), torch.bfloat16)
    assert third.data_ptr() != place, "of another size"
    fourth = pool.take((24,), torch.float32)
    assert fourth.data_ptr() == place


def test_a_view_keeps_its_memory(pool: Pool) -> None:
    """If this fails, outputs change while a caller still holds a part of them."""
    whole = pool.take((5, 8), torch.float32)
    place = whole.data_ptr()
    views = [whole[2:], whole.view(40)[::2], whole.detach().t(), whole[1].numpy()]
    del whole
    while views:
        assert pool.take((5, 8), torch.float32).data_ptr() != place
        views.pop()
        gc.collect()
    assert place in {tensor.data_ptr() for tensor in [pool.take((5, 8), torch.float32) for _ in range(5)]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_memory_begins_at_a_cache_line(pool: Pool, dtype: torch.dtype) -> None:
    """If this fails, vectors cross cache lines."""
    tensors = [pool.take(shape, dtype) for shape in [(1,), (3, 5), (7, 1, 33), (1000,)] for _ in range(8)]
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % ALIGNMENT == 0
        tensor.fill_(number)
    for number, tensor in enumerate(tensors):
        assert bool((tensor == number).all()), "two tensors share memory"
    assert pool.take((0, 4), dtype).shape == (0, 4)


def test_steps_of_other_lengths_take_turns(pool: Pool) -> None:
    """If this fails, two tensors share memory, or a text's last, shorter batch has memory of its own made each time."""
    for _ in range(3):
        tensors = [pool.take((length, 8), torch.float32).fill_(length) for length in (5, 3, 5, 2, 64, 4)]
        assert [float(tensor.mean()) for tensor in tensors] == [5, 3, 5, 2, 64, 4]
        assert [len(tensor) for tensor in tensors] == [5, 3, 5, 2, 64, 4]
        places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
        assert all(here + size <= after for (here, size), (after, _) in itertools.pairwise(places))
        del tensors


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_no_result_depends_on_what_memory_held_or_will_hold(
    case: Callable[..., Any], poisoned: None, cell: str, precision: str
) -> None:
    """If this fails, something is read before it is written, or after it was given back."""
    for shape in [{"T": 5, "B": 3, "H": 33, "layers": 2}, {"T": 1, "B": 17, "H": 64, "inputs": "tied"}]:
        one = case(cell, **shape)
        model = one.model("native")
        first = one.outcome(model, precision)
        again = one.outcome(model, precision)
        for name, part in first.items():
            assert part.isfinite().all(), f"{shape}: {name}"
            assert torch.equal(part, again[name]), f"{shape}: {name}"


@pytest.mark.parametrize("cell", CELLS)
def test_two_forward_passes_before_a_backward_pass(case: Callable[..., Any], poisoned: None, cell: str) -> None:
    """If this fails, the second forward pass overwrites what the first one's backward pass needs."""
    cases = [case(cell, T=6, layers=2, seed=seed) for seed in (1, 2)]
    model = cases[0].model("native")
    alone = []
    for one in cases:
        ids, targets = one.batch()
        nats, state = model.nll_sum(ids, targets, model.zero_state(one.B))
        alone.append(torch.autograd.grad(nats + state[0].sum(), list(model.parameters())))
    losses = []
    for one in cases:
        ids, targets = one.batch()
        nats, state = model.nll_sum(ids, targets, model.zero_state(one.B))
        losses.append(nats + state[0].sum())
    for loss, expected in zip(losses[::-1], alone[::-1], strict=True):
        for mine, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_results_stay_what_they_are(case: Callable[..., Any], poisoned: None, cell: str, precision: str) -> None:
    """If this fails, outputs, states or gradients of one step are overwritten by the next ones."""
    one = case(cell, T=6, layers=2)
    model = one.model("native")
    ids, targets = one.batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        features, state = model.features(ids, model.zero_state(one.B))
        with torch.no_grad():
            read, read_state = model.features(ids, model.zero_state(one.B))
    features.float().sum().backward()
    held = [features, *state, read, *read_state, *(weight.grad for weight in model.parameters() if weight.grad is not None)]
    copies = [part.detach().clone() for part in held]
    for _ in range(3):
        one.outcome(model, precision)
        with torch.no_grad():
            model.nll_sum(ids, targets, model.zero_state(one.B))
    for part, copy in zip(held, copies, strict=True):
        assert part.isfinite().all() and torch.equal(part, copy)


def test_a_training_step_takes_no_more_memory_than_the_one_before(
    case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, memory grows with every step."""
    new: list[int] = []
    fresh = memory._aligned
    monkeypatch.setattr(memory, "_aligned", lambda size: new.append(size) or fresh(size))
    one = case("lstm", T=11, B=7, H=45, layers=2, inputs="tied")
    model = one.model("native")
    monkeypatch.setattr(POOL, "_free", [])
    held = len(POOL._lent)
    for step in range(4):
        one.outcome(model)
        gc.collect()
        assert len(POOL._lent) <= held, "somebody still holds memory of a step that is over"
        assert bool(new) == (step == 0)
        new.clear()
