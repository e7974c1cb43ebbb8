"""The plan of a training step against the autograd functions, which are held to the reference engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from charlm import cells
from charlm.config import ModelSection, TrainSection
from charlm.data.streams import IGNORED
from charlm.model.dropout import Dropout
from charlm.model.gradients import Backpropagation
from charlm.model.language_model import LanguageModel
from charlm.threads import kernel_threads, use
from charlm.training.update import Updater

CELLS = {entry.name: {"cell": entry.cell, **entry.options} for entry in cells.CELLS if "native" in entry.kernels}
FORMS: dict[str, dict[str, Any]] = {
    "one-hot": {},
    "embedding": {"input": "embedding", "embedding": 24, "layers": 2},
    "tied": {"input": "embedding", "tied": True, "layers": 3, "residual": True, "dropout": 0.3},
    "all dropout": {
        "input": "embedding", "embedding": 24, "layers": 2, "residual": True, "dropout": 0.3, "locked_dropout": True,
        "input_dropout": 0.2, "weight_drop": 0.4,
    },
    "tied, input dropout": {"input": "embedding", "tied": True, "layers": 2, "input_dropout": 0.2},
}  # fmt: skip


def _model(cell: str, form: str, H: int, V: int) -> LanguageModel:
    section = ModelSection(**CELLS[cell], **FORMS[form], hidden=H, engine="native")
    model = LanguageModel(section, V, "native")
    model.initialise(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("peephole"):
                weight.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    return model


def _gradients(update: Updater, V: int, T: int = 7, B: int = 5, drops: bool = True) -> tuple[float, list[torch.Tensor]]:
    """The loss, and the state and gradients of one batch; gradients of before are overwritten."""
    rng = torch.Generator().manual_seed(2)
    inputs, targets = (torch.randint(V, (T, B), generator=rng) for _ in range(2))
    targets[0, B - 1] = IGNORED
    state = tuple(torch.randn(part.shape, generator=rng) * 0.3 for part in update.model.zero_state(B))
    # As one of several processes, or of several parts of a batch.
    dropout = Dropout(update.model.section, seed=3, step=5).of_streams(2, B + 3) if drops else None
    update._gradient.flat.fill_(1e3)
    nats, state = update._backpropagate(inputs, targets, 1 / (T * B - 1), state, dropout)
    return nats, [*state, *(part.clone() for part in update._gradient.parts)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_plan_computes_the_gradients_of_autograd(cell: str, form: str, precision: str) -> None:
    """If this fails, training with a plan is not the training that the other tests check (sizes with and without padding)."""
    limit = 1e-5 if precision == "fp32" else 2e-2
    for H, V in [(32, 28), (40, 300)]:
        update = Updater(_model(cell, form, H, V), TrainSection(), precision)
        assert update._backpropagate.plan is not None
        for drops in (True, False):
            nats, found = _gradients(update, V, drops=drops)
            plan, update._backpropagate.plan = update._backpropagate.plan, None
            wanted_nats, wanted = _gradients(update, V, drops=drops)
            update._backpropagate.plan = plan
            assert nats == pytest.approx(wanted_nats, rel=limit)
            for mine, theirs in zip(found, wanted, strict=True):
                assert float((mine - theirs).norm()) <= limit * float(theirs.norm()) + 1e-9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_number_of_threads_changes_no_bit(cell: str, precision: str) -> None:
    """If this fails, a run gives other weights when another program makes it change its number of threads."""
    update = Updater(_model(cell, "all dropout", 96, 40), TrainSection(), precision)
    before, results = kernel_threads(), []
    try:
        for threads in (1, 2, 3):
            use(threads, torch_threads=1)
            results.append(_gradients(update, 40, T=20, B=33))
    finally:
        use(before)
    for nats, found in results[1:]:
        assert nats == results[0][0]
        assert all(torch.equal(mine, first) for mine, first in zip(found, results[0][1], strict=True))


def test_changed_weights_are_packed_again() -> None:
    """If this fails, a step is taken with the weights of the step before."""
    update = Updater(_model("lstm", "embedding", 32, 28), TrainSection(), "fp32")
    first, _ = _gradients(update, 28, drops=False)
    with torch.no_grad():
        update.model.layers[1].weight_hh.mul_(2)
    second, _ = _gradients(update, 28, drops=False)
    plan, update._backpropagate.plan = update._backpropagate.plan, None
    assert plan is not None
    third, _ = _gradients(update, 28, drops=False)
    assert first != second
    assert second == pytest.approx(third, rel=1e-6)


def test_batches_of_any_shape_take_turns() -> None:
    """If this fails, a plan reads memory of an earlier, larger or smaller batch."""
    update = Updater(_model("gru", "all dropout", 40, 50), TrainSection(), "fp32")
    for T, B in [(3, 2), (40, 9), (1, 2), (7, 33), (3, 2)]:
        nats, found = _gradients(update, 50, T, B)
        plan, update._backpropagate.plan = update._backpropagate.plan, None
        wanted_nats, wanted = _gradients(update, 50, T, B)
        update._backpropagate.plan = plan
        assert nats == pytest.approx(wanted_nats, rel=1e-6)
        for mine, theirs in zip(found, wanted, strict=True):
            assert float((mine - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-9


@pytest.mark.parametrize("wrong", [-1, 28, 2**40])
def test_an_id_out_of_range_is_refused(wrong: int) -> None:
    """If this fails, C++ reads memory outside of the table."""
    update = Updater(_model("lstm", "one-hot", 32, 28), TrainSection(), "fp32")
    inputs = torch.zeros(3, 2, dtype=torch.long)
    inputs[1, 1] = wrong
    with pytest.raises(IndexError, match=f"id {wrong}, expected 0 to 27"):
        update(inputs, torch.zeros_like(inputs), 6, update.model.zero_state(2), 0.1)


def test_a_target_out_of_range_is_refused() -> None:
    """If this fails, C++ writes memory outside of the logits."""
    update = Updater(_model("lstm", "one-hot", 32, 28), TrainSection(), "fp32")
    targets = torch.zeros(3, 2, dtype=torch.long)
    targets[2, 0] = 28
    with pytest.raises(IndexError, match="id 28, expected 0 to 27"):
        update(torch.zeros_like(targets), targets, 6, update.model.zero_state(2), 0.1)


def test_a_refused_batch_leaves_no_stale_weights() -> None:
    """If this fails, the step after an id out of range uses stale weights, or crashes for lack of packed ones."""
    V, T, B = 28, 2, 3
    model = _model("lstm", "embedding", 32, V)
    backpropagate = Backpropagation(model, "fp32")
    ids, refused, state = torch.zeros(T, B, dtype=torch.long), torch.full((T, B), V), model.zero_state(B)
    backpropagate(ids, ids, 1, state)
    with torch.no_grad():
        model.layers[1].weight_hh.mul_(2)
        model.output_weight.mul_(2)
    with pytest.raises(IndexError, match=f"id {V}, expected 0 to {V - 1}"):
        backpropagate(refused, ids, 1, state)
    nats, _ = backpropagate(ids, ids, 1, state)
    assert nats == pytest.approx(Backpropagation(model, "fp32")(ids, ids, 1, state)[0], rel=1e-6)


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_updaters_of_one_model_take_turns(engine: str) -> None:
    """If this fails, an updater applies the gradient of another one, or none after ``zero_grad``."""
    ids, nats = torch.randint(28, (7, 5), generator=torch.Generator().manual_seed(1)), []
    section = TrainSection(optimizer="sgd", accumulate=2)
    for is_alone in (True, False):
        model = _model("lstm", "embedding", 32, 28).with_engine(engine)
        first = Updater(model, section, "fp32")
        other = first if is_alone else Updater(model, section, "fp32")
        if not is_alone:
            first.optimizer.zero_grad()
        losses = [update(ids, ids, ids.numel(), model.zero_state(5), 0.1).nats for update in (first, other, first, other)]
        nats.append(losses)
    assert nats[0] == nats[1]
    assert nats[0][-1] < nats[0][0]


def test_an_empty_batch_is_refused() -> None:
    """If this fails, C++ divides by zero, which ends the process."""
    update = Updater(_model("lstm", "one-hot", 32, 28), TrainSection(), "fp32")
    empty = torch.zeros(3, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="at least one character"):
        update._backpropagate(empty, empty, 1.0, update.model.zero_state(0))


def test_weights_that_a_fused_optimizer_changed_are_used() -> None:
    """If this fails, a step after PyTorch's fused AdamW, which does not count its changes, takes the weights from before it."""
    update = Updater(_model("gru", "embedding", 32, 28), TrainSection(), "fp32")
    first, _ = _gradients(update, 28, drops=False)
    torch.optim.AdamW(update.model.parameters(), lr=0.1, fused=True).step()
    second, _ = _gradients(update, 28, drops=False)
    update._backpropagate.plan = None
    third, _ = _gradients(update, 28, drops=False)
    assert first != second
    assert second == pytest.approx(third, rel=1e-6)
