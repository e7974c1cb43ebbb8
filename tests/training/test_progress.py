"""The counters of a training and its reasons to stop, without a model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from charlm.errors import CheckpointError
from charlm.training.plan import Limits, Plan
from charlm.training.progress import Best, TrainingProgress
from charlm.training.stopping import StopConditions

SUMMARY = ["step", "epoch", "characters", "train_nats", "validation_nats", "evaluated_at", "best"]


def _progress(steps: int = 0) -> TrainingProgress:
    """Epochs of three batches; step n has n characters, 1/n nats per character, and takes a second."""
    progress = TrainingProgress(lambda epoch: 3)
    for step in range(1, steps + 1):
        progress.advance(1 / step, step, 1.0)
    return progress


def test_steps_are_counted_by_epochs() -> None:
    """If this fails, a resumed run reads other batches, or metrics have the wrong epoch."""
    progress = _progress(7)
    assert (progress.step, progress.epoch, progress.index, progress.epochs_done) == (7, 2, 1, 2.3333)
    assert (progress.characters, progress.seconds, progress.mean_speed) == (28, 7.0, 4.0)
    assert progress.train_nats == pytest.approx(3 / (5 + 6 + 7)), "an epoch has three steps, of one nat each"
    assert math.isnan(_progress().train_nats) and _progress().mean_speed == 0


def test_a_checkpoint_has_the_keys_that_it_always_had() -> None:
    """If this fails, older checkpoints cannot be resumed, or older versions of charlm cannot read new ones."""
    progress = _progress(2)
    assert list(progress.summary()) == SUMMARY
    assert list(progress.state_dict()) == [*SUMMARY, "position", "recent", "worse_in_a_row", "seconds"]
    assert progress.state_dict()["best"] == {"nats": None, "step": None}
    progress.best, progress.stopped_best = Best(1.5, 1), Best(1.25, 2, averaged=True)
    assert progress.state_dict()["best"] == {"nats": 1.5, "step": 1, "averaged": False}, "that of the schedule"
    assert progress.summary()["best"] == {"nats": 1.25, "step": 2, "averaged": True}, "that of the weights"


def test_stored_counters_are_restored() -> None:
    """If this fails, a resumed run is another one than the run without an interruption."""
    progress = _progress(5)
    progress.best, progress.worse_in_a_row, progress.validation_nats, progress.evaluated_at = Best(1.5, 3), 2, 1.75, 5
    again = _progress()
    again.load_state_dict(json.loads(json.dumps(progress.state_dict())))
    assert again.state_dict() == progress.state_dict()
    assert (again.resumed_from, again.characters_here, list(again.timed)) == (5, 0, [])
    for one in (progress, again):
        one.advance(1.0, 10, 2.0)
    assert again.state_dict() == progress.state_dict()
    assert again.mean_speed == 5.0, "this attempt's speed"

    beyond: dict[str, Any] = progress.state_dict() | {"position": [1, 3]}
    with pytest.raises(CheckpointError, match="batch 3 of epoch 1, is beyond the end of the epoch"):
        _progress().load_state_dict(beyond)


@pytest.mark.parametrize(("nats", "is_best"), [(1.4, True), (1.5, False), (1.6, False), (math.nan, False), (-math.inf, False)])
def test_a_new_best_is_lower_and_finite(nats: float, is_best: bool) -> None:
    """If this fails, `best` is replaced by worse weights, or by weights whose loss is not a number."""
    assert Best(1.5, 1).is_beaten_by(nats) == is_best
    assert Best().is_beaten_by(1e9) and not Best().is_beaten_by(math.nan)


@pytest.mark.parametrize(
    ("limits", "change", "reason"),
    [
        (lambda now: Limits(now), {}, None),
        (lambda now: Limits(now, max_steps=4), {}, None),
        (lambda now: Limits(now, max_steps=3), {}, "max steps"),
        (lambda now: Limits(now, max_steps=3), {"worse_in_a_row": 2}, "early stopping"),
        (lambda now: Limits(now, max_steps=3), {"step": 10, "worse_in_a_row": 2}, "finished"),
        (lambda now: Limits(now, max_seconds=60.0), {}, None),
        (lambda now: Limits(now - 59.5, max_seconds=60.0), {}, "max time"),
    ],
)
def test_reasons_to_stop(limits: Callable[[float], Limits], change: dict[str, int], reason: str | None) -> None:
    """If this fails, a run stops for a wrong reason, or begins a step for which there is no time. A step takes a second."""
    progress = _progress(3)
    for name, value in change.items():
        setattr(progress, name, value)
    conditions = StopConditions(limits(time.monotonic()), Plan(10, 5, 5, 5), patience=2)
    assert _reason(conditions, progress) == reason


def _reason(conditions: StopConditions, progress: TrainingProgress) -> str | None:
    """As the trainer of one process asks."""
    return conditions.reason_to_stop(progress, conditions.is_time_over(progress))


def test_a_pause_must_fit_into_the_time() -> None:
    """If this fails, samples and validation at the next step exceed a time limit."""
    conditions = StopConditions(Limits(time.monotonic(), max_seconds=60.0), Plan(10, 5, 5, 5), patience=None)
    conditions.paused(50.0, evaluated=True)
    assert _reason(conditions, _progress(3)) is None
    conditions.paused(59.5, evaluated=True)
    conditions.paused(1.0, evaluated=True)
    assert _reason(conditions, _progress(3)) == "max time", "the longest pause counts"
