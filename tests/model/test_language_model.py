"""The language model: its size, its initial weights, its dropout, and a state that is a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from charlm.config import ModelSection
from charlm.model.dropout import Dropout, Places, kept
from charlm.model.engines import ENGINES
from charlm.model.language_model import LanguageModel, count_parameters, embedding_width, parameter_shapes, state_shapes
from charlm.model.native import library
from charlm.training.weight_average import WeightAverage

BLOCKS = {"rnn": 1, "gru": 3, "lstm": 4}


def _expected_parameters(cell: str, V: int, D: int, H: int, L: int, embedding: bool, tied: bool) -> int:
    G = BLOCKS[cell]
    layers = sum(G * H * ((D if n == 0 else H) + H + 2) for n in range(L))
    return layers + (V * D if embedding else 0) + (0 if tied else V * H) + V


@pytest.mark.parametrize("cell", BLOCKS)
@pytest.mark.parametrize("layers", [1, 3])
def test_parameter_counts_follow_the_formula(cell: str, layers: int) -> None:
    """If this fails, a model has more or fewer weights than G·H·(D + H + 2) a layer and V·H + V above."""
    V, H, D = 11, 6, 4
    cases: list[tuple[dict[str, Any], int, bool, bool]] = [
        ({"input": "one-hot"}, V, False, False),
        ({}, H, True, False),
        ({"input": "embedding", "embedding": D}, D, True, False),
        ({"embedding": D}, D, True, False),
        ({"input": "embedding"}, H, True, False),
        ({"tied": True}, H, True, True),
    ]
    for keys, width, embedding, tied in cases:
        section = ModelSection(cell=cell, hidden=H, layers=layers, **keys)  # type: ignore[arg-type]
        expected = _expected_parameters(cell, V, width, H, layers, embedding, tied)
        assert LanguageModel(section, V, "reference").parameter_count() == expected, keys
        assert count_parameters(section, V) == expected, keys


def test_a_known_size() -> None:
    """If this fails, sizes printed elsewhere differ: 65 symbols and <unk>, one-hot, one LSTM layer of 512."""
    assert (
        count_parameters(ModelSection(cell="lstm", hidden=512, input="one-hot"), 66) == 4 * 512 * (66 + 512 + 2) + 66 * 512 + 66
    )


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({"hidden": 100}, 100),
        ({"input": "one-hot"}, None),
        ({"tied": True, "hidden": 9}, 9),
        ({"embedding": 3}, 3),
    ],
)
def test_how_symbols_enter(keys: dict[str, Any], width: int | None) -> None:
    """If this fails, the width of an embedding is not what the recipe's documentation says."""
    assert embedding_width(ModelSection(**keys)) == width


@pytest.mark.parametrize("keys", [{"embedding": 3}, {"tied": True}, {"input_dropout": 0.1}])
def test_what_needs_an_embedding_is_refused_without_one(keys: dict[str, Any]) -> None:
    """If this fails, a key about the embedding is silently ignored."""
    with pytest.raises(ValidationError, match="one-hot"):
        ModelSection(input="one-hot", **keys)


def test_input_dropout_acts_on_whole_rows_of_the_embedding_and_only_in_training() -> None:
    """If this fails, input dropout does nothing, or differs between engines, or touches evaluation."""
    section = ModelSection(cell="gru", hidden=8, embedding=6, dropout=0, input_dropout=0.5)
    ids = torch.arange(12).view(6, 2) % 5
    drop = Dropout(section, seed=1, step=3)
    found = {}
    for engine in ENGINES:
        model = LanguageModel(section, 5, engine)
        model.initialise(1)
        state = model.zero_state(2)
        found[engine] = model(ids, state, drop)[0]
        assert not torch.allclose(found[engine], model(ids, state)[0], atol=1e-3)
    torch.testing.assert_close(found["torch"], found["reference"], rtol=0, atol=1e-5)


# -- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "torch"])
@pytest.mark.parametrize("cell", BLOCKS)
def test_state_is_a_value(network: Callable[..., Any], cell: str, engine: str) -> None:
    """If this fails, a model remembers what it read before: the same call twice gives other bits."""
    model = network(9, engine, cell=cell, hidden=12, layers=2)
    rng = torch.Generator().manual_seed(3)
    ids = torch.randint(9, (7, 4), generator=rng)
    state = tuple(torch.randn(part.shape, generator=rng) for part in model.zero_state(4))
    before = [part.clone() for part in state]
    first, last = model(ids, state)
    model(ids.flip(0), last)
    second, again = model(ids, state)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(last, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True)), "the given state was changed"


@pytest.mark.parametrize("engine", ["reference", "torch"])
@pytest.mark.parametrize("cell", BLOCKS)
def test_reading_in_two_pieces_is_reading_at_once(network: Callable[..., Any], cell: str, engine: str) -> None:
    """If this fails, the state that is handed on is not all that the model needs."""
    model = network(9, engine, cell=cell, hidden=12, layers=2)
    ids = torch.randint(9, (10, 3), generator=torch.Generator().manual_seed(3))
    whole, last = model(ids, model.zero_state(3))
    head, between = model(ids[:4], model.zero_state(3))
    tail, end = model(ids[4:], between)
    torch.testing.assert_close(torch.cat([head, tail]), whole, rtol=0, atol=1e-6)
    for a, b in zip(end, last, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert last[0].shape == (2, 3, 12)
    assert len(last) == (2 if cell == "lstm" else 1)


@pytest.mark.parametrize("engine", ["reference", "torch"])
def test_evaluating_does_not_disturb_training(network: Callable[..., Any], text_of: Callable[..., Any], engine: str) -> None:
    """If this fails, a run that validates more often learns something else."""
    from charlm.evaluation.perplexity import carried, segments

    ids = torch.randint(9, (10, 3), generator=torch.Generator().manual_seed(3))
    text = text_of([*range(9)] * 30)

    def train(evaluating: bool) -> list[torch.Tensor]:
        model = network(9, engine, hidden=12)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        state = model.zero_state(3)
        for step in range(4):
            logits, state = model(ids, state, Dropout(ModelSection(dropout=0.3), 1, step))
            state = tuple(part.detach() for part in state)
            if evaluating:
                carried(model, text), segments(model, text, warm=20)
            optimizer.zero_grad()
            logits.square().mean().backward()
            optimizer.step()
        return [*model.parameters(), *state]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


# -- initial weights -------------------------------------------------------------------------------------------------


def test_initial_weights_by_default(network: Callable[..., Any]) -> None:
    """If this fails, `init: pytorch` is not uniform(±1/√H), or the embedding not normal(0, 1) as PyTorch's."""
    H = 64
    model = network(30, cell="gru", hidden=H, layers=2)
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if name == "embedding":
            assert float(weight.std()) == pytest.approx(1, rel=0.05)
            continue
        bound = 1 / math.sqrt(H)
        assert float(weight.abs().max()) <= bound, name
        if weight.numel() > 1000:
            assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            assert float(weight.mean()) == pytest.approx(0, abs=0.01), name


def test_initial_weights_as_in_d2l(network: Callable[..., Any]) -> None:
    """If this fails, `init: normal` is not normal(0, 0.01) with zero biases."""
    model = network(30, cell="rnn", hidden=64, init="normal")
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.dim() == 1:
            assert not weight.any(), name
        else:
            assert float(weight.std()) == pytest.approx(0.01, rel=0.1), name


def test_orthogonal_initial_weights(network: Callable[..., Any]) -> None:
    """If this fails, `init: orthogonal` leaves recurrent blocks that shrink or stretch the state."""
    model = network(9, cell="lstm", hidden=16, layers=2, init="orthogonal")
    for layer in model.layers:
        for block in layer.weight_hh.detach().split(16):
            torch.testing.assert_close(block @ block.T, torch.eye(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["pytorch", "normal", "orthogonal"])
def test_the_forget_gate_starts_open(network: Callable[..., Any], init: str) -> None:
    """If this fails, an LSTM begins by forgetting: the bias of gate f must be forget_bias, in sum over both biases."""
    H = 8
    for layer in network(9, cell="lstm", hidden=H, layers=2, init=init, forget_bias=2.5).layers:
        total = layer.bias_ih + layer.bias_hh
        assert (total[H : 2 * H] == 2.5).all()
        assert not (total[:H] == 2.5).any()
        assert not (total[2 * H :] == 2.5).any()
    plain = network(9, cell="lstm", hidden=H, init=init, forget_bias=None).layers[0]
    assert not (plain.bias_ih[H : 2 * H] == 1.0).any()


def test_initial_weights_follow_from_the_seed(network: Callable[..., Any]) -> None:
    """If this fails, a run cannot be repeated, or adding a layer changes the weights of the others."""
    one = dict(network(9, hidden=8, seed=1).named_parameters())
    same = dict(network(9, hidden=8, seed=1).named_parameters())
    other = dict(network(9, hidden=8, seed=2).named_parameters())
    deeper = dict(network(9, hidden=8, seed=1, layers=2).named_parameters())
    for name, weight in one.items():
        assert torch.equal(weight, same[name])
        assert torch.equal(weight, deeper[name])
        assert not torch.equal(weight, other[name])


# -- dropout ---------------------------------------------------------------------------------------------------------


def _mask(probability: float, seed: int, step: int, layer: int, shape: tuple[int, ...] = (50, 8, 100)) -> torch.Tensor:
    """What outputs of 1 become."""
    return Dropout(ModelSection(dropout=probability), seed, step).outputs(torch.ones(shape), layer)


def test_dropout_follows_from_seed_step_and_layer() -> None:
    """If this fails, a resumed run drops other units, or two layers or steps drop the same ones."""
    masks = [_mask(0.5, seed, step, layer) for seed in (1, 2) for step in (0, 1) for layer in (0, 1)]
    for number, one in enumerate(masks):
        for other in masks[:number]:
            same = ((one == 0) == (other == 0)).float().mean()
            assert float(same) == pytest.approx(0.5, abs=0.02)
    torch.manual_seed(99)
    assert torch.equal(_mask(0.5, 2, 1, 1), masks[-1]), "the process's own random state is used"


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
def test_dropout_has_its_rate_and_is_unbiased(probability: float) -> None:
    """If this fails, training sees other activations on average than evaluation does."""
    mask = _mask(probability, 1, 7, 0)
    assert float((mask == 0).float().mean()) == pytest.approx(probability, abs=0.01)
    kept = mask[mask != 0]
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - probability)), rtol=1e-4)
    rounded = round(probability * 65536) / 65536
    assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - rounded)), rtol=1e-6), "the scale is not that of the rate"


@pytest.mark.parametrize("shape", [(1,), (3, 1, 5), (7, 3, 2)])
def test_dropout_of_any_shape(shape: tuple[int, ...]) -> None:
    """If this fails, sizes that are no multiple of four crash or leave values undropped."""
    assert _mask(0.5, 1, 1, 1, shape).shape == shape
    drawn = torch.stack([_mask(0.5, 1, step, 0, shape) for step in range(200)])
    assert ((drawn == 0).float().mean(0) - 0.5).abs().max() < 0.2, "some position is always kept or always dropped"


def test_neighbouring_dropout_decisions_are_independent() -> None:
    """If this fails, units are dropped in groups (four decisions are cut from each random word)."""
    dropped = (_mask(0.5, 3, 3, 0).flatten() == 0).float()
    for distance in (1, 2, 3, 4):
        both = (dropped[distance:] * dropped[:-distance]).mean()
        assert float(both) == pytest.approx(0.25, abs=0.015)


def test_no_dropout_at_zero() -> None:
    """If this fails, dropout: 0 still costs time or changes values."""
    nothing = Dropout(ModelSection(dropout=0), 1, 1)
    values = torch.ones(4, 3, 2)
    assert nothing.outputs(values, 0) is values
    assert nothing.recurrent(values[0], 0) is not None and torch.equal(nothing.recurrent(values[0], 0), values[0])
    assert nothing.embedding(values[0]).equal(values[0])


def test_locked_dropout_zeroes_the_same_units_at_all_steps() -> None:
    """If this fails, locked_dropout does nothing, or drops the same units in all streams or steps of training."""
    values = torch.ones(20, 3, 200)
    first, later = (Dropout(ModelSection(dropout=0.4, locked_dropout=True), 1, step).outputs(values, 0) for step in (0, 1))
    assert torch.equal(first, first[:1].expand_as(first))
    assert not torch.equal(first[0, 0], first[0, 1]) and not torch.equal(first, later)
    assert float((first[0] == 0).float().mean()) == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize("cell", BLOCKS)
def test_every_engine_drops_the_same_weights(network: Callable[..., Any], cell: str) -> None:
    """If this fails, weight_drop reaches another engine's weights, or none, or its gradient ignores the zeros."""
    dropout = Dropout(ModelSection(dropout=0, weight_drop=0.5), 1, 3)
    ids = torch.randint(9, (6, 3), generator=torch.Generator().manual_seed(3))
    found = {}
    for engine in ENGINES:
        model = network(9, engine, cell=cell, hidden=12, layers=2, residual=True)
        logits, _ = model(ids, model.zero_state(3), dropout)
        logits.square().mean().backward()
        found[engine] = [logits, *(weight.grad for weight in model.parameters())]
        assert not torch.allclose(logits, model(ids, model.zero_state(3))[0], atol=1e-4), "nothing was dropped"
        for number, layer in enumerate(model.layers):
            dropped = dropout.recurrent(torch.ones_like(layer.weight_hh), number) == 0
            assert 0.3 < float(dropped.float().mean()) < 0.7
            assert layer.weight_hh.grad is not None and not layer.weight_hh.grad[dropped].any()
    for engine, results in found.items():
        for mine, expected in zip(results, found["reference"], strict=True):
            torch.testing.assert_close(
                mine, expected, rtol=1e-4, atol=1e-5, msg=lambda text, engine=engine: f"{engine}: {text}"
            )


def test_dropout_acts_on_every_layer(network: Callable[..., Any]) -> None:
    """If this fails, dropout reaches only some layers' outputs, or the recurrent path."""
    seen: list[tuple[int, tuple[int, ...]]] = []

    class Recorder(Dropout):
        def outputs(self, values: torch.Tensor, layer: int, drop: object) -> torch.Tensor:
            seen.append((layer, tuple(values.shape)))
            return values * 0

    model = network(9, hidden=6, layers=3)
    dropout = Recorder(ModelSection(), 1, 1)
    features, state = model.features(torch.zeros(4, 2, dtype=torch.int64), model.zero_state(2), dropout)
    assert seen == [(0, (4, 2, 6)), (1, (4, 2, 6)), (2, (4, 2, 6))]
    assert not features.any()
    assert state[0].detach().abs().min() > 0, "the carried state was dropped"


def test_residual_layers_add_their_input(network: Callable[..., Any]) -> None:
    """If this fails, residual: true adds nothing, or something at the first layer."""
    ids = torch.randint(9, (5, 2), generator=torch.Generator().manual_seed(3))
    model = network(9, hidden=6, layers=2, residual=True)
    plain = network(9, hidden=6, layers=2)
    first = network(9, hidden=6, layers=1)
    below, _ = first.features(ids, first.zero_state(2))
    top, _ = plain.features(ids, plain.zero_state(2))
    features, _ = model.features(ids, model.zero_state(2))
    torch.testing.assert_close(features, top + below, rtol=0, atol=1e-6)


def test_almost_certain_dropout_still_keeps_something() -> None:
    """If this fails, a probability that rounds to one divides by zero."""
    assert bool(torch.isfinite(_mask(0.999999, 1, 1, 0)).all())


@pytest.mark.skipif(library.reason() is not None, reason=str(library.reason()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("locked", [False, True])
def test_dropout_in_cpp_draws_the_same_zeros(dtype: torch.dtype, locked: bool) -> None:
    """If this fails, engines drop different units, or round differently, or gradients pass where values did not."""
    shapes = [(1, 1, 1), (3, 2, 5), (2, 3, 7), (4, 5, 64), (5, 9, 1000)]
    for number, shape in enumerate(shapes):
        dropout = Dropout(ModelSection(dropout=0.3, locked_dropout=locked), 5, number)
        found = []
        for engine in ("native", "reference"):
            values = torch.full(shape, 0.75, dtype=dtype, requires_grad=True)
            dropped = dropout.outputs(values, 1, ENGINES[engine].drop)
            dropped.sum().backward()
            found.append((dropped.detach().clone(), values.grad))
        for mine, expected in zip(*found, strict=True):
            assert torch.equal(mine == 0, expected == 0), (shape, dtype)
            assert torch.equal(mine, expected), (shape, dtype)


@pytest.mark.parametrize("count", [1, 10, 4096])
def test_zeros_are_drawn_by_splitmix64(count: int) -> None:
    """Failing would mean that devices without the native engine drop other numbers, so that a moved run is another run."""
    key, threshold = 2**63 - 5, 20000
    mask = (1 << 64) - 1
    expected = []
    for block in range(1, -(-count // 4) + 1):
        z = (key + block * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        expected += [(z >> 16 * quarter & 0xFFFF) >= threshold for quarter in range(4)]
    assert kept(key, Places(count, count), 1, threshold, torch.device("cpu"))[0].tolist() == expected[:count]


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if name != "native" or not library.reason()])
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("H", [1, 5, 6, 64, 1000])
def test_dropout_of_some_streams_is_that_of_the_whole_batch(engine: str, locked: bool, H: int) -> None:
    """If this fails, a run in several processes, or with a batch in parts, trains with other zeros than one process."""
    dropout, drop = Dropout(ModelSection(dropout=0.4, locked_dropout=locked), 3, 8), ENGINES[engine].drop
    whole = dropout.outputs(torch.ones(6, 7, H), 1, drop).clone()
    for first, stop in [(0, 7), (0, 3), (3, 7), (2, 3), (6, 7)]:
        some = dropout.of_streams(first, 7).outputs(torch.ones(6, stop - first, H), 1, drop)
        assert torch.equal(some, whole[:, first:stop]), (first, stop)


def test_copies_are_laid_out_for_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that cuDNN copies the averaged weights at each call, and warns of it."""
    laid_out: list[LanguageModel] = []
    monkeypatch.setattr(LanguageModel, "flatten_for_cudnn", lambda model: laid_out.append(model))
    average = WeightAverage(LanguageModel(ModelSection(hidden=4), 5, "reference"), 0.99)
    assert laid_out == [average.model]


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"cell": "gru", "layers": 3},
        {"cell": "rnn", "input": "one-hot", "layers": 2},
        {"tied": True},
        {"attention": 5, "embedding": 3},
    ],
    ids=str,
)
def test_shapes_are_known_without_building(network: Callable[..., Any], section: dict[str, Any]) -> None:
    """If this fails, good checkpoints are refused, or memory is estimated for another model than the one that is built."""
    model = network(11, hidden=8, **section)
    found = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert parameter_shapes(model.section, 11) == found
    assert count_parameters(model.section, 11) == model.parameter_count()
    assert state_shapes(model.section, 3) == [tuple(part.shape) for part in model.zero_state(3)]
