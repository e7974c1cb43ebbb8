"""The number of threads, and how the work is divided between them, change no bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from charlm.model.native import interface, layer
from charlm.model.native.sampling import NativeSampler
from charlm.threads import use

CELLS = ["rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm", "lstm_peephole", "lstm_coupled"]
SHAPES: list[dict[str, Any]] = [
    {"T": 6, "B": 1, "H": 64, "V": 9},
    {"T": 4, "B": 3, "H": 33, "V": 70},
    {"T": 5, "B": 40, "H": 96, "V": 33},
    {"T": 3, "B": 70, "H": 130, "V": 12},
]


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str) -> None:
    assert found.keys() == expected.keys()
    for name, part in found.items():
        assert torch.equal(part, expected[name]), f"{what}: {name}"


def _use(threads: int) -> None:
    """As a training does: PyTorch's own operations get one thread."""
    use(threads, torch_threads=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_bit(case: Callable[..., Any], cell: str, precision: str) -> None:
    """If this fails, a run cannot be repeated on a machine with another number of cores, or not at all."""
    for shape in SHAPES:
        one = case(cell, **shape)
        model = one.model("native")
        _use(1)
        first = one.outcome(model, precision)
        for threads in (1, 2, 3):
            _use(threads)
            found = one.outcome(model, precision)
            _assert_same(found, first, f"{shape}, {threads} threads")
            for _ in range(2):
                _assert_same(one.outcome(model, precision), found, f"{shape}, {threads} threads, again")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_streams_or_units_can_be_divided(
    case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, cell: str, precision: str
) -> None:
    """If this fails, one of the two ways to divide a layer leaves something out, or does not wait for the others."""
    for shape in SHAPES:
        one = case(cell, **shape)
        model = one.model("native")
        _use(1)
        first = one.outcome(model, precision)
        for threads, parts in [(2, 1), (2, 2), (3, 1), (3, 2), (4, 2), (2, 5)]:
            _use(threads)
            with monkeypatch.context() as patch:
                patch.setattr(layer, "Layer", lambda p=parts, **fields: interface.Layer(rows_split=p, **fields))
                found = one.outcome(model, precision)
            _assert_same(found, first, f"{shape}, {threads} threads, {parts} parts")


def test_a_whole_network_gives_the_same_bits_every_time(case: Callable[..., Any]) -> None:
    """If this fails, a run cannot be repeated even with the same number of threads."""
    for cell, threads in [("lstm", 2), ("gru", 3), ("gru_reset_before", 2), ("rnn_tanh", 3)]:
        one = case(cell, T=20, B=32, H=100, V=60, layers=2, inputs="tied")
        model = one.model("native")
        _use(threads)
        for precision in ("fp32", "bf16"):
            first = one.outcome(model, precision)
            for _ in range(3):
                _assert_same(one.outcome(model, precision), first, f"{cell}, {precision}")


@pytest.mark.parametrize("cell", CELLS)
def test_threads_wait_for_each_other_at_every_step(case: Callable[..., Any], cell: str) -> None:
    """If this fails, a thread continues before the others have finished a step, or all wait for ever."""
    one = case(cell, T=100, B=2, H=96, V=20)
    model = one.model("native")
    _use(1)
    first = one.outcome(model)
    for threads in (2, 3):
        _use(threads)
        _assert_same(one.outcome(model), first, f"{threads} threads")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_character_that_is_written(case: Callable[..., Any], cell: str, precision: str) -> None:
    """If this fails, the same seed writes another text on a machine with another number of cores."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for shape in [{"B": 1, "H": 70, "V": 40, "layers": 2}, {"B": 5, "H": 32, "V": 100, "inputs": "tied"}]:
        one = case(cell, **shape)
        model = one.model("native")
        ids, _ = one.batch()
        uniforms = np.random.default_rng(1).random((50, one.B))
        with torch.no_grad():
            logits, state = model(ids, model.zero_state(one.B))
        texts = []
        for threads in (1, 2, 3, 2):
            _use(threads)
            sampler = NativeSampler(model, logits[-1], state, 1.0, 0, 0.95, frozenset({0}), dtype)
            pieces = [sampler.draw(part) for part in (uniforms[:1], uniforms[1:8], uniforms[8:])]
            texts.append(np.concatenate(pieces))
        assert all((text == texts[0]).all() for text in texts)
        assert len(np.unique(texts[0])) > 10
