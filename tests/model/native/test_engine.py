"""The native engine as training and evaluation use it: numbers that are none, weights that change, a whole learning curve."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from charlm.config import ModelSection, TrainSection
from charlm.data.streams import IGNORED
from charlm.model.engines import ENGINES
from charlm.model.language_model import LanguageModel
from charlm.model.native.optimizer import NativeOptimizer
from charlm.runtime import arithmetic
from charlm.training.update import Updater

CPU = torch.device("cpu")
CELLS = ["rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm", "lstm_peephole", "lstm_coupled"]

# -- numbers that are none -------------------------------------------------------------------------------------------


def _places(model: LanguageModel, state: tuple[torch.Tensor, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """All that a wrong number can stand in."""
    yield from model.named_parameters()
    yield from ((f"state {n}", part) for n, part in enumerate(state))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_is_not_hidden(case: Callable[..., Any], cell: str, precision: str, wrong: float) -> None:
    """If this fails, a run that has diverged continues as if nothing had happened."""
    one = case(cell, T=4, B=3, H=40, V=35, layers=2, inputs="tied")
    whole = one.model("reference")
    ids, _ = one.batch()
    ids[0, 0], ids[2, 1] = 1, 34
    targets = ids.roll(-1, 0)
    names = [name for name, _ in _places(whole, whole.zero_state(one.B))]
    if cell == "lstm_peephole" and math.isinf(wrong):
        # The reference multiplies an infinite c by a gate that is exactly 0. In C++ σ(−∞) is 10⁻³⁸, so c stays infinite and
        # its tanh is ±1, as in the plain LSTM. No step makes c infinite: it grows by at most 1 per step.
        names.remove("state 1")
    for name in names:
        for at in (0, -1):
            model, state = copy.deepcopy(whole), tuple(part + 0.1 for part in whole.zero_state(one.B))
            with torch.no_grad():
                dict(_places(model, state))[name].view(-1)[at] = wrong
            losses = []
            for engine in ("reference", "native"):
                with arithmetic(precision, CPU):
                    loss, _ = model.with_engine(engine).nll_sum(ids, targets, state)
                loss.backward()
                losses.append(loss.item())
            truth, found = losses
            assert math.isfinite(truth) or not math.isfinite(found), f"{name}[{at}] = {wrong}: {truth} became {found}"
            if math.isfinite(truth) and math.isfinite(found):  # an infinite argument of a gate is an answer too
                assert found == pytest.approx(truth, rel=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4, 1e30])
def test_the_loss_of_logits_of_any_size(size: float, dtype: torch.dtype) -> None:
    """If this fails, a confident network's loss or gradient overflows or is lost (fp64, 1e-5; gradients in bf16 1e-2)."""
    rng = torch.Generator().manual_seed(1)
    for N, H, V in [(1, 1, 2), (31, 32, 31), (33, 8, 33), (65, 40, 300)]:
        features = torch.randn(N, H, generator=rng).to(dtype).float()
        weight = (torch.randn(V, H, generator=rng) * size / math.sqrt(H)).to(dtype).float()
        bias = torch.randn(V, generator=rng)
        targets = torch.randint(V, (N,), generator=rng)
        targets[::3] = IGNORED
        targets[0] = V - 1
        tensors = [tensor.requires_grad_() for tensor in (features, weight, bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = ENGINES["native"].cross_entropy(*tensors, targets)
        doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
        truth = F.cross_entropy(F.linear(*doubles), targets, ignore_index=IGNORED, reduction="sum")
        assert found.item() == pytest.approx(truth.item(), rel=1e-5, abs=1e-5)
        if size > 1e4:  # which of two logits is the larger hangs on the last bit of 1e30
            continue
        for mine, theirs in zip(torch.autograd.grad(found, tensors), torch.autograd.grad(truth, doubles), strict=True):
            limit = (2e-3 if size > 100 else 1e-5) if dtype == torch.float32 else 1e-2
            assert mine.isfinite().all()
            assert float((mine - theirs).norm()) <= limit * max(float(theirs.norm()), 1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_targets_that_are_not_scored_teach_nothing(case: Callable[..., Any], precision: str) -> None:
    """If this fails, padding is learned."""
    one = case("gru", layers=2)
    model = one.model("native")
    ids, _ = one.batch()
    with arithmetic(precision, CPU):
        loss, _ = model.nll_sum(ids, torch.full_like(ids, IGNORED), model.zero_state(one.B))
    loss.backward()
    assert loss.item() == 0
    for name, weight in model.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name


# -- weights that change ---------------------------------------------------------------------------------------------

Change = Callable[[LanguageModel, Callable[[], torch.Tensor]], None]


def _with_torch(rule: Callable[[Any], torch.optim.Optimizer]) -> Change:
    def change(model: LanguageModel, nats: Callable[[], torch.Tensor]) -> None:
        optimizer = rule(model.parameters())
        optimizer.zero_grad()
        nats().backward()
        optimizer.step()

    return change


def _with_updater(engine: str, optimizer: str = "adamw") -> Change:
    def change(model: LanguageModel, nats: Callable[[], torch.Tensor]) -> None:
        updater = Updater(model.with_engine(engine), TrainSection(optimizer=optimizer, lr=0.1), "fp32")
        ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
        updater(ids, ids, ids.numel(), model.zero_state(3), 0.1)

    return change


def _reading_before_the_step(model: LanguageModel, nats: Callable[[], torch.Tensor]) -> None:
    optimizer = NativeOptimizer(torch.optim.AdamW(model.parameters(), lr=0.1, fused=True))
    model.zero_grad()
    nats().backward()
    with torch.no_grad():
        nats()
    optimizer.norm()
    optimizer.step(1.0)


def _loaded(model: LanguageModel, nats: Callable[[], torch.Tensor]) -> None:
    model.load_state_dict({name: weight * 1.5 for name, weight in model.state_dict().items()})


def _one_weight_at_a_time(model: LanguageModel, nats: Callable[[], torch.Tensor]) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            nats()
            weight.copy_(weight * 1.5)
            nats()


def _replaced(model: LanguageModel, nats: Callable[[], torch.Tensor]) -> None:
    for layer in model.layers:
        layer.weight_hh = torch.nn.Parameter(layer.weight_hh.detach() * 4)


CHANGES: dict[str, Change] = {
    "sgd": _with_torch(lambda weights: torch.optim.SGD(weights, lr=0.1)),
    "adam, fused": _with_torch(lambda weights: torch.optim.Adam(weights, lr=0.1, fused=True)),
    "nadam, by PyTorch under the native engine": _with_updater("native", "nadam"),
    "adamw, fused": _with_torch(lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True)),
    "our own": _with_updater("native"),
    "our own, after reading once more": _reading_before_the_step,
    "training with the reference engine": _with_updater("reference"),
    "training with the torch engine": _with_updater("torch"),
    "loading": _loaded,
    "one weight at a time": _one_weight_at_a_time,
    "replacing": _replaced,
}


@pytest.mark.parametrize("inputs", ["one-hot", "tied"])
@pytest.mark.parametrize(
    ("cell", "change"),
    [
        (cell, change)
        for cell in ("gru", "lstm", "lstm_peephole")
        for change in CHANGES
        if (cell, change) != ("lstm_peephole", "training with the torch engine")  # it has no peepholes
    ],
)
def test_reading_uses_the_weights_of_the_moment(case: Callable[..., Any], cell: str, change: str, inputs: str) -> None:
    """If this fails, an evaluation measures the weights of an earlier step."""
    one = case(cell, T=3, H=40, layers=2, inputs=inputs)
    model = one.model("native")
    ids, targets = one.batch()

    def nats() -> torch.Tensor:
        total: torch.Tensor = model.nll_sum(ids, targets, model.zero_state(one.B))[0]
        return total / ids.numel()

    before = None
    for _ in range(3):
        for precision, limit in [("fp32", 1e-5), ("bf16", 1e-2), ("fp32", 1e-5)]:
            with torch.no_grad(), arithmetic(precision, CPU):
                found, _ = model(ids, model.zero_state(one.B))
            with torch.no_grad():
                truth, _ = model.with_engine("reference")(ids, model.zero_state(one.B))
            assert float((found - truth).norm() / truth.norm()) < limit
        assert before is None or float((truth - before).norm() / before.norm()) > 0.01, "nothing changed"
        before = truth
        CHANGES[change](model, nats)


def test_a_model_that_is_gone_leaves_nothing_behind(case: Callable[..., Any]) -> None:
    """If this fails, what was prepared of a model's weights outlives it, or another model gets it."""
    for seed in range(5):
        one = case("lstm", seed=seed)
        model = one.model("native")
        ids, _ = one.batch()
        with torch.no_grad():
            found, _ = model(ids, model.zero_state(one.B))
            truth, _ = model.with_engine("reference")(ids, model.zero_state(one.B))
        assert float((found - truth).norm() / truth.norm()) < 1e-5


def test_weights_made_without_version_counters_are_read_anew(case: Callable[..., Any]) -> None:
    """If this fails, a model from torch.inference_mode cannot be read, or its changes go unnoticed."""
    with torch.inference_mode():
        one = case("lstm")
        model = one.model("native")
        ids, _ = one.batch()
        for _ in range(2):
            found, _ = model(ids, model.zero_state(one.B))
            truth, _ = model.with_engine("reference")(ids, model.zero_state(one.B))
            assert float((found - truth).norm() / truth.norm()) < 1e-5
            model.layers[0].weight_hh.mul_(3)


# -- learning --------------------------------------------------------------------------------------------------------


def _curve(engine: str, text: str, section: dict[str, Any], train: TrainSection, updates: int) -> list[float]:
    """The loss of each update on consecutive pieces of a text."""
    alphabet = sorted(set(text))
    B, T = train.batch, train.seq_length
    ids = torch.tensor([alphabet.index(character) for character in text])
    streams = ids[: len(ids) // B * B].view(B, -1).t().contiguous()
    model = LanguageModel(ModelSection(dropout=0.0, **section), len(alphabet), engine)
    model.initialise(1)
    updater, state, losses = Updater(model, train, "fp32"), model.zero_state(B), []
    pieces = (len(streams) - 1) // T
    for step in range(updates):
        at = step % pieces * T
        if at == 0:
            state = model.zero_state(B)
        outcome = updater(streams[at : at + T], streams[at + 1 : at + T + 1], T * B, state, train.lr)
        assert not outcome.diverged
        state = outcome.state
        losses.append(outcome.nats)
    return losses


@pytest.mark.parametrize(
    ("section", "train"),
    [
        ({"cell": "lstm", "hidden": 48}, {"optimizer": "sgd", "lr": 1.0}),
        ({"cell": "gru", "hidden": 40, "layers": 2}, {"optimizer": "sgd", "lr": 0.5, "momentum": 0.5}),
        ({"cell": "rnn", "hidden": 33}, {"optimizer": "rmsprop", "lr": 0.001}),
        ({"cell": "lstm", "hidden": 32, "tied": True}, {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.01}),
    ],
    ids=["lstm, sgd", "gru, momentum", "rnn, rmsprop", "lstm, adamw"],
)
def test_two_engines_learn_the_same(english: Callable[..., str], section: dict[str, Any], train: dict[str, Any]) -> None:
    """If this fails, a network learns something else under the native engine than under PyTorch's.

    200 updates in fp32, each loss within 1e-4. The last bits differ from the first update on, and learning could amplify
    that without bound; gradients clipped to norm 1 keep it below 1e-6 here.
    """
    recipe = TrainSection(batch=8, seq_length=16, clip=1.0, **train)
    mine, theirs = (_curve(engine, english(4000), section, recipe, 200) for engine in ("native", "torch"))
    assert mine[0] == pytest.approx(theirs[0], rel=1e-6)
    assert mine == pytest.approx(theirs, rel=1e-4)
    assert sum(mine[-10:]) < 0.8 * sum(mine[:10]), "it did not learn"
