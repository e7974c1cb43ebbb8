"""Steps that can be recorded as a CUDA graph. A CPU runs them without a graph, and checks that they can be recorded."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recordable import Recordable
from torch import Tensor

from charlm.checkpoint import load
from charlm.config import ModelSection, TrainSection
from charlm.errors import DivergedError
from charlm.model.dropout import Dropout
from charlm.training import cuda_graph
from charlm.training.budget import characters_in
from charlm.training.cuda_graph import AT_ONCE, BatchesFromHost, GraphUpdater, Job, steps_at_once
from charlm.training.events import StepDone
from charlm.training.loss_scale import LossScale
from charlm.training.run import observed
from charlm.training.update import Updater


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers use ``GraphUpdater`` on the CPU too."""
    monkeypatch.setattr(cuda_graph, "why_not", lambda *_: None)


RECIPES = {
    "adamw": ["train.optimizer=adamw", "train.weight_decay=0.1"],
    "sgd": ["train.optimizer=sgd", "train.lr=0.5", "train.clip=0.1"],
    "momentum": ["train.optimizer=sgd", "train.lr=0.1", "train.momentum=0.9", "train.clip=null"],
    "dropout": ["model.dropout=0.3", "model.layers=2", "model.weight_drop=0.2", "model.input_dropout=0.1", "train.average=0.9"],
    "locked": ["model.cell=gru", "model.dropout=0.3", "model.locked_dropout=true", "model.tied=true"],
    "attention": ["model.attention=8", "model.input=one-hot", "train.precision=bf16"],
    "windows": ["train.batching=windows", "model.cell=rnn", "model.residual=true", "model.layers=2"],
    "d2l": ["train.random_offset=true", "train.drop_last=true"],
    "unknown": ["data.unknown_rate=0.5"],
    "reference": ["model.engine=reference", "model.reset_after=false", "model.cell=gru"],
}


def _differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of each tensor of two checkpoints."""
    found = []
    for folder in (one, other):
        stored = load(folder / "last.safetensors")
        state = {f"state {number}": part for number, part in enumerate(stored.state)}
        found.append(stored.weights | stored.optimizer | stored.average | state)
    assert found[0].keys() == found[1].keys()
    return {name: float((tensor - found[1][name]).abs().max()) for name, tensor in found[0].items()}


@pytest.mark.parametrize("name", RECIPES)
def test_queued_steps_train_like_single_steps(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a run on a GPU is another training: other batches, zeros, rates, clipping or state."""
    keys = ["model.engine=torch", "train.total_steps=130", "evaluate.every=64", *RECIPES[name]]  # beyond an epoch
    if name == "unknown":
        text = english_file.read_text(encoding="utf-8")
        english_file = tmp_path / "rare.txt"
        english_file.write_text(f"{text[:1000]}@{text[1000:2000]}#{text[2000:3000]}%{text[3000:]}", encoding="utf-8")
    single = tiny_run(english_file, tmp_path / "single", *keys)
    monkeypatch.setattr(cuda_graph, "why_not", lambda *_: None)
    queued = tiny_run(english_file, tmp_path / "queued", *keys)
    expected, found = single.lines("step"), queued.lines("step")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert [line["learning_rate"] for line in found] == [line["learning_rate"] for line in expected]
    assert [line["nats"] for line in found] == pytest.approx([line["nats"] for line in expected], rel=2e-3)
    first = [abs(one["nats"] - other["nats"]) for one, other in zip(found[:20], expected[:20], strict=True)]
    assert max(first) < (5e-3 if "bf16" in str(keys) else 1e-5)
    assert [type(event) for event in queued.events] == [type(event) for event in single.events]


def test_results_do_not_depend_on_how_many_steps_are_queued(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, queued: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a run depends on the speed of the machine, and that resuming is not exact."""
    keys = ["model.engine=torch", "model.dropout=0.2", "train.total_steps=20"]
    tiny_run(english_file, tmp_path / "whole", *keys)
    tiny_run(english_file, tmp_path / "parts", *keys, max_steps=7)
    monkeypatch.setattr(cuda_graph, "AT_ONCE", 3)
    tiny_run(english_file, tmp_path / "parts", *keys, resume="must")
    assert set(_differences(tmp_path / "whole", tmp_path / "parts").values()) == {0.0}


def test_a_text_that_does_not_fit_is_sent_in_batches(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, queued: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a large text, or a full GPU, changes the training."""
    keys = ["model.engine=torch", "train.total_steps=130", "evaluate.every=130"]
    tiny_run(english_file, tmp_path / "device", *keys)
    monkeypatch.setattr(cuda_graph, "TextOnDevice", lambda batches, dtype, device: BatchesFromHost(batches, device))
    tiny_run(english_file, tmp_path / "host", *keys)
    assert set(_differences(tmp_path / "device", tmp_path / "host").values()) == {0.0}


# -- numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_bad_step_changes_nothing(
    tmp_path: Path, begin: Callable[..., Any], tiny_run: Callable[..., Any], english_file: Path, queued: None, optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Failing would mean that a loss of NaN, found steps later, has already ruined the weights that are saved."""
    keys = ["model.engine=torch", f"train.optimizer={optimizer}", "train.momentum=0.5", "train.total_steps=40",
            "evaluate.every=40", "train.average=0.9"]  # fmt: skip
    keys = keys if optimizer == "sgd" else [key for key in keys if "momentum" not in key]
    tiny_run(english_file, tmp_path / "good", *keys, max_steps=5)
    monkeypatch.setattr(cuda_graph, "steps_at_once", lambda *_, **__: AT_ONCE)
    monkeypatch.setattr("charlm.training.trainer.steps_at_once", lambda *_, **__: AT_ONCE)
    trainer = begin(english_file, tmp_path / "bad", *keys).trainer
    honest = trainer.model.cross_entropy
    calls = []

    def broken(features: Tensor, targets: Tensor) -> Tensor:
        calls.append(None)
        return honest(features, targets) * (math.nan if len(calls) == 6 else 1.0)

    monkeypatch.setattr(trainer.model, "cross_entropy", broken)
    events = []
    with pytest.raises(DivergedError, match="step 6"):
        for event in observed(trainer):
            events.append(event)
    trainer.folder.close()
    assert len(calls) == AT_ONCE, "the steps after the bad one were not queued"
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5]
    assert set(_differences(tmp_path / "good", tmp_path / "bad").values()) == {0.0}


def test_fp16_overflows_are_skipped_and_the_scale_follows_the_rule(updater: GraphUpdater) -> None:
    """Failing would mean that fp16 training stops at its first overflow, or that its scale never recovers."""
    updater.scale = LossScale(True, 4.0, LossScale.GROW_AFTER - 1)
    updater._scale.fill_(4.0)
    updater._good_steps.fill_(LossScale.GROW_AFTER - 1)
    updater._has_failed.fill_(False)
    expected = LossScale(True, 4.0, LossScale.GROW_AFTER - 1)
    finite, infinite = torch.tensor(1.0), torch.tensor(math.inf)
    for norm in (finite, infinite, finite, infinite, infinite):
        is_good, has_overflowed = updater._judge(finite, norm)
        updater._adapt_scale(is_good, has_overflowed)
        if norm is finite:
            expected.succeeded()
        else:
            assert expected.overflowed() == bool(has_overflowed)
        assert (updater._scale.item(), updater._good_steps.item()) == (expected.scale, expected.good_steps)
        assert bool(is_good) == (norm is finite)
    assert not updater._has_failed
    updater._adapt_scale(*updater._judge(finite, infinite))  # at a scale of 1
    assert updater._has_failed


# -- can the step be recorded? ---------------------------------------------------------------------------------------


def _updater(begin: Callable[..., Any], text: Path, folder: Path, *keys: str) -> tuple[GraphUpdater, Any]:
    trainer = begin(text, folder, "model.engine=torch", *keys).trainer
    trainer.folder.close()
    return trainer._update, trainer


@pytest.fixture
def updater(tmp_path: Path, begin: Callable[..., Any], english_file: Path, queued: None) -> GraphUpdater:
    return _updater(begin, english_file, tmp_path / "r")[0]


def _jobs(trainer: Any, first: int, count: int) -> list[Job]:
    model = trainer.recipe.model
    return [
        Job(trainer.batches.span(0, step), 0, step, 0.01 / (step + 1), Dropout(model, 1, step))
        for step in range(first, first + count)
    ]


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "reference"])
def test_a_step_never_waits_and_holds_no_changing_number(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, queued: None, name: str
) -> None:
    """Failing would mean that PyTorch cannot record the step, or that a replay repeats the numbers of the recorded step."""
    update, trainer = _updater(begin, english_file, tmp_path / "r", *RECIPES[name])
    update.train(_jobs(trainer, 0, 1), trainer._state)  # allocates the moments, as before a recording
    seen = []
    for first in (1, 4):
        update._control.host.random_(1, 5)
        update._has_failed.fill_(False)
        update._slot.fill_(first)
        with Recordable() as mode:
            update._replayed()
        seen.append(mode.calls)
    assert seen[0] == seen[1], "an operation got another number in the second step"
    assert len(seen[0]) > 30


@pytest.mark.parametrize("name", ["sgd", "dropout", "locked", "attention"])
def test_a_step_takes_nothing_from_the_cpu(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, queued: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a step copies something from or to the CPU, which a recording forbids.

    The step runs on PyTorch's device ``meta``, which has no data and refuses to be mixed with the CPU. It has no fused
    optimizers, so the optimizer is left out.
    """
    _, trainer = _updater(begin, english_file, tmp_path / "r", *RECIPES[name])
    update = GraphUpdater(trainer.model.to("meta"), TrainSection(optimizer="sgd"), "fp32", trainer.batches)
    monkeypatch.setattr(update.optimizer, "step", lambda: None)
    with Recordable() as mode:
        update._replayed()
    assert "cpu" not in repr(mode.calls)


def test_keys_on_the_device_give_the_same_zeros() -> None:
    """Failing would mean that dropout depends on the device: a run could not move between CPU and GPU."""
    section = ModelSection(hidden=8, dropout=0.5, input_dropout=0.3, weight_drop=0.4, layers=2)
    host = Dropout(section, seed=3, step=7)
    keys = torch.tensor(host.keys())
    device = Dropout(section, 0, 0, device_keys=keys)
    values = torch.randn(5, 3, 8)
    for layer in (0, 1):
        assert torch.equal(host.outputs(values, layer), device.outputs(values, layer))
        assert torch.equal(host.recurrent(values[0], layer), device.recurrent(values[0], layer))
    assert torch.equal(host.embedding(values[0]), device.embedding(values[0]))
    assert len(set(host.keys())) == 5


# -- when ------------------------------------------------------------------------------------------------------------


def test_no_step_is_queued_past_a_step_that_something_follows() -> None:
    """Failing would mean that a validation, sample or checkpoint has the weights of a later step."""
    assert steps_at_once(0, [100], [None], 0.001) == AT_ONCE
    assert steps_at_once(95, [100, 7], [None], 0.001) == 3
    assert steps_at_once(95, [100], [97], 0.001) == 2
    assert steps_at_once(95, [None, 100], [200], 0.05) == 2, "a stop waits for at most a tenth of a second"
    assert steps_at_once(95, [100], [200], 60.0) == 1
    assert steps_at_once(0, [100], [], 0.0) == 1, "the first step is timed alone"


def test_a_fallback_has_a_reason() -> None:
    """Failing would mean that a slow GPU run cannot be explained."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert cuda_graph.why_not(TrainSection(optimizer="adamw"), gpu) is None
    assert cuda_graph.why_not(TrainSection(optimizer="sgd"), gpu) is None
    assert "RMSprop" in str(cuda_graph.why_not(TrainSection(optimizer="rmsprop"), gpu))
    assert "GPU" in str(cuda_graph.why_not(TrainSection(), cpu))


def test_deterministic_algorithms_are_chosen_by_the_recipe(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that `train.deterministic` has no effect, or that every run pays for it."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    begin(english_file, tmp_path / "fast").trainer.folder.close()
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    try:
        begin(english_file, tmp_path / "exact", "train.deterministic=true").trainer.folder.close()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def test_a_time_limit_is_planned_with_the_speed_of_queued_steps(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, queued: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a run with a time limit is planned with the speed of single steps, several times too short."""
    trainer = begin(english_file, tmp_path / "r", "model.engine=torch").trainer
    trainer.folder.close()
    monkeypatch.delattr(Updater, "__call__")  # only queued steps are timed
    resolved = trainer.resolved
    assert characters_in(4.0, trainer.recipe, trainer.dataset, resolved, time.monotonic()) > 1000
