"""A busy machine changes how fast a run is, and not one bit of what it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm import threads
from charlm.checkpoint import Checkpoint, load
from charlm.model.native import library
from charlm.training.events import ThreadsChanged


def _tensors(stored: Checkpoint) -> dict[str, torch.Tensor]:
    state = {f"state {number}": part for number, part in enumerate(stored.state)}
    return {**stored.weights, **stored.optimizer, **stored.average, **state}


@pytest.fixture
def on_three_cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The number of threads is free, up to three."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_state", {"kernels": None, "fixed": None, "most": 3})
    monkeypatch.setattr(threads, "_chosen", {})
    yield monkeypatch
    torch.set_num_threads(before)


def _every_seven_pieces(patch: pytest.MonkeyPatch) -> None:
    """Let every tuner take 3, 1, 2, 3, … threads, whatever it measures."""
    patch.setattr(threads.Tuner, "choose", lambda self: None)

    def observe(self: Any, work: float, seconds: float) -> None:
        self.pieces = getattr(self, "pieces", 0) + 1
        self.threads = (3, 1, 2)[self.pieces // 7 % 3]

    patch.setattr(threads.Tuner, "observe", observe)


@pytest.mark.parametrize(
    "options",
    [
        ["model.cell=lstm", "train.precision=bf16", "model.dropout=0.3", "model.input_dropout=0.2", "train.average=0.9"],
        ["model.cell=gru", "train.precision=fp32", "model.layers=2", "model.residual=true", "train.optimizer=rmsprop"],
        ["model.cell=gru", "model.reset_after=false", "train.precision=bf16", "model.tied=true"],
        ["model.cell=rnn", "train.precision=fp32", "model.weight_drop=0.2", "model.layers=2", "train.optimizer=sgd"],
    ],
    ids=lambda options: options[0].removeprefix("model.cell="),
)
def test_a_run_that_changes_its_threads_every_seven_steps_ends_with_the_same_bits(
    tiny_run: Callable[..., Any], english_file: Path, tmp_path: Path, on_three_cores: pytest.MonkeyPatch, options: list[str]
) -> None:
    """If this fails, a run beside other programs ends elsewhere than one alone, and resuming is exact no longer."""
    if library.reason() is not None:
        pytest.skip(str(library.reason()))
    keys = [*options, "model.engine=native", "model.hidden=100", "train.batch=40", "train.total_steps=30", "evaluate.every=10"]
    alone = tiny_run(english_file, tmp_path / "alone", *keys, "train.threads=1")
    _every_seven_pieces(on_three_cores)
    busy = tiny_run(english_file, tmp_path / "busy", *keys, "train.threads=null")
    told = [event.threads for event in busy.events if isinstance(event, ThreadsChanged)]
    assert told[:3] == [1, 2, 3] and [line["threads"] for line in busy.lines("threads")] == told
    for name in ("last", "best"):
        one, other = (_tensors(load(run.folder / f"{name}.safetensors")) for run in (alone, busy))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    for key in ("nats_per_character", "train_nats", "validation_nats", "best_step"):
        assert alone.record[key] == busy.record[key]
    assert (alone.folder / "samples.txt").read_text() == (busy.folder / "samples.txt").read_text()


def test_the_engine_torch_keeps_its_threads_between_evaluations(
    tiny_run: Callable[..., Any], english_file: Path, tmp_path: Path, on_three_cores: pytest.MonkeyPatch
) -> None:
    """If this fails, a run of the engine torch changes its last bits in the middle of a stretch, and nobody can repeat it."""
    used: list[int] = []
    choices = iter([3, 2, 1, 1])
    on_three_cores.setattr(threads.Load, "others", lambda self, seconds=0.1: None)

    def choose(self: Any) -> None:
        if self.kind == "training":
            self._take(next(choices))

    on_three_cores.setattr(threads.Tuner, "choose", choose)
    piece = threads.Tuner.piece

    def noted(self: Any, work: float) -> Any:
        if self.kind == "training":
            used.append(self.next)
        return piece(self, work)

    on_three_cores.setattr(threads.Tuner, "piece", noted)
    keys = ["model.engine=torch", "train.threads=null", "train.total_steps=15", "evaluate.every=5", "checkpoint.every=5"]
    run = tiny_run(english_file, tmp_path / "run", *keys, max_steps=12)
    assert used == [3] * 5 + [2] * 5 + [1] * 2
    assert [event.threads for event in run.events if isinstance(event, ThreadsChanged)] == [2, 1]
    assert load(run.folder / "last.safetensors").resolved["threads"] == 1
    used.clear()
    tiny_run(english_file, tmp_path / "run", *keys, resume="auto")
    assert used == [1] * 3
