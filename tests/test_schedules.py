"""Every schedule follows its formula, and says whether it needs the run's length."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from charlm.config import LoadedRecipe, TrainSection, validate_recipe
from charlm.schedules import SCHEDULES, learning_rate
from charlm.training import defaults
from charlm.training.plan import Limits
from charlm.training.start import Options, start


def _rates(steps: int, epoch: int = 10, **section: Any) -> list[float]:
    made = TrainSection(lr=0.5, **section)
    return [learning_rate(made, step, steps, epoch) for step in range(steps)]


def test_the_constant_schedule() -> None:
    """If this fails, a constant learning rate moves. Warm-up is linear and reaches the peak at its last step."""
    assert _rates(4, schedule="constant") == [0.5] * 4
    assert _rates(6, schedule="constant", warmup=4) == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_the_cosine_schedule() -> None:
    """If this fails, the learning rate does not follow half a cosine from the peak to lr_final × peak."""
    rates = _rates(100, schedule="cosine", lr_final=0.1)
    for step, rate in enumerate(rates):
        assert rate == pytest.approx(0.5 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 100))))
    assert learning_rate(TrainSection(lr=0.5, lr_final=0.1), 100, 100, 10) == pytest.approx(0.05)
    assert learning_rate(TrainSection(lr=0.5, lr_final=0.1), 150, 100, 10) == pytest.approx(0.05), "it rises again"
    warmed = _rates(100, schedule="cosine", warmup=20)
    assert warmed[19] == warmed[20] == 0.5
    assert warmed[60] == pytest.approx(0.5 * (0.01 + 0.99 * 0.5))


def test_the_linear_schedule() -> None:
    """If this fails, the learning rate does not follow a straight line from the peak to lr_final × peak."""
    rates = _rates(100, schedule="linear", lr_final=0.2)
    assert rates == pytest.approx([0.5 * (1 - 0.8 * step / 100) for step in range(100)])
    section = TrainSection(lr=0.5, schedule="linear", lr_final=0.2)
    assert [learning_rate(section, step, 100, 10) for step in (100, 150)] == pytest.approx([0.1, 0.1])
    warmed = _rates(100, schedule="linear", warmup=20, lr_final=0.2)
    assert (warmed[20], warmed[60]) == (0.5, pytest.approx(0.5 * 0.6))


def test_the_wsd_schedule() -> None:
    """If this fails, wsd does not keep the peak, or does not decay by 1 − √x to lr_final × peak over the last decay_ratio."""
    rates = _rates(100, schedule="wsd", lr_final=0.2, decay_ratio=0.25)
    assert rates[:76] == [0.5] * 76
    assert rates[76:] == pytest.approx([0.5 * (0.2 + 0.8 * (1 - math.sqrt((step - 75) / 25))) for step in range(76, 100)])
    section = TrainSection(lr=0.5, schedule="wsd", lr_final=0.2)
    assert [learning_rate(section, step, 100, 10) for step in (100, 150)] == pytest.approx([0.1, 0.1])
    warmed = _rates(100, schedule="wsd", warmup=20, decay_ratio=0.5, lr_final=0.0)
    assert warmed[20:61] == [0.5] * 41, "the decay is a share of the steps after the warm-up"
    assert warmed[70] == pytest.approx(0.5 * (1 - math.sqrt(10 / 40)))
    assert _rates(100, schedule="wsd", decay_ratio=1.0, lr_final=0.0)[25] == pytest.approx(0.25)


def test_the_step_and_exponential_schedules() -> None:
    """If this fails, the factor gamma per gamma_every epochs is not applied, at once or smoothly."""
    stepped = _rates(60, schedule="step", gamma=0.5, gamma_every=2)
    assert stepped == [0.5] * 20 + [0.25] * 20 + [0.125] * 20
    smooth = _rates(60, schedule="exponential", gamma=0.5, gamma_every=2)
    assert smooth == pytest.approx([0.5 * 0.5 ** (step / 20) for step in range(60)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_the_same_for_every_schedule(schedule: str) -> None:
    """If this fails, a warm-up is not linear, or a schedule does not begin at the peak when it is over."""
    rates = _rates(30, epoch=10**6, schedule=schedule, warmup=4)
    assert rates[:3] == [0.125, 0.25, 0.375]
    assert rates[3:5] == pytest.approx([0.5, 0.5], rel=1e-6)
    assert all(later <= earlier for earlier, later in pairwise(rates[3:]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_only_a_schedule_that_needs_a_length_asks_for_it(schedule: str) -> None:
    """If this fails, a run that only `time` limits ends in a traceback, or a length is planned although none is needed."""
    section = TrainSection(lr=0.5, schedule=schedule)
    if SCHEDULES[schedule].needs_length:
        with pytest.raises(AssertionError):
            learning_rate(section, 3, None, 10)
    else:
        assert learning_rate(section, 3, None, 10) == learning_rate(section, 3, 7, 10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_time_plans_the_length_that_a_schedule_needs(schedule: str, tmp_path: Path, english_file: Path) -> None:
    """If this fails, `train.time` plans no end for a schedule that needs one: it stops before the learning rate has decayed."""
    train = {"time": 20.0, "schedule": schedule, "batch": 8, "seq_length": 10}
    recipe = validate_recipe({"corpus": str(english_file), "model": {"hidden": 16}, "train": train}, "a test")
    assert defaults.needs_plan(recipe) == SCHEDULES[schedule].needs_length
    trainer = start(LoadedRecipe("r", recipe, tmp_path), Options(tmp_path / "r", Limits(time.monotonic()))).trainer
    trainer.folder.close()
    assert (trainer.plan.total_steps is not None) == SCHEDULES[schedule].needs_length
