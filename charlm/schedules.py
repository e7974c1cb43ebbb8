"""Learning-rate schedules: a function and a row of ``SCHEDULES`` each. Knows nothing of torch.

The learning rate is a function of the step alone. There is no scheduler object with state, so a resumed run computes the same
values. :func:`learning_rate` applies the warm-up; the schedules begin after it.

To add a schedule, write a function that returns learning rate ÷ peak, and its row in ``SCHEDULES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charlm.config import TrainSection


@dataclass(frozen=True)
class Moment:
    """A step of a run: the input of a schedule.

    Attributes:
        step: number of the step, from 0; warm-up steps are counted.
        warmup: number of warm-up steps.
        planned_steps: planned length of the run; ``None``: limited by time only.
        epoch_length: steps per epoch.
    """

    step: int
    warmup: int
    planned_steps: int | None
    epoch_length: int

    @property
    def done(self) -> float:
        """Progress from the end of the warm-up (0) to the planned end (1)."""
        assert self.planned_steps is not None, "needs_length is missing in the schedule's row"
        return min(1.0, (self.step - self.warmup) / max(1, self.planned_steps - self.warmup))


def constant(train: TrainSection, at: Moment) -> float:
    """Always the peak."""
    return 1.0


def cosine(train: TrainSection, at: Moment) -> float:
    """Half a cosine from the peak to ``lr_final`` × peak (Loshchilov & Hutter 2017, equation 5, without restarts)."""
    return train.lr_final + (1 - train.lr_final) * 0.5 * (1 + math.cos(math.pi * at.done))


def linear(train: TrainSection, at: Moment) -> float:
    """A straight line from the peak to ``lr_final`` × peak."""
    return 1 - (1 - train.lr_final) * at.done


def wsd(train: TrainSection, at: Moment) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the peak, then a decay to ``lr_final`` × peak over the last ``decay_ratio``.

    The decay has the form 1 − √x, which reaches lower losses than a straight line (Hägele et al. 2024).
    """
    decayed = max(0.0, (at.done - (1 - train.decay_ratio)) / train.decay_ratio)
    return train.lr_final + (1 - train.lr_final) * (1 - math.sqrt(decayed))


def step(train: TrainSection, at: Moment) -> float:
    """A factor ``gamma`` after every ``gamma_every`` epochs, in one step."""
    return float(train.gamma ** (at.step // max(1, round(train.gamma_every * at.epoch_length))))


def exponential(train: TrainSection, at: Moment) -> float:
    """A factor ``gamma`` per ``gamma_every`` epochs, spread evenly over the steps."""
    return float(train.gamma ** (at.step / (train.gamma_every * at.epoch_length)))


@dataclass(frozen=True)
class ScheduleEntry:
    """A row of ``SCHEDULES``.

    Attributes:
        factor: learning rate ÷ peak, after the warm-up.
        keys: the keys of ``train`` that it uses, besides ``lr`` and ``warmup``.
        needs_length: whether it depends on the planned length. If the recipe gives neither ``epochs`` nor ``total_steps``,
            charlm plans a length that fits ``time``. Without ``needs_length``, the run then lasts until the time is over.
    """

    factor: Callable[[TrainSection, Moment], float]
    keys: tuple[str, ...] = ()
    needs_length: bool = False


SCHEDULES: dict[str, ScheduleEntry] = {
    "constant": ScheduleEntry(constant),
    "cosine": ScheduleEntry(cosine, keys=("lr_final",), needs_length=True),
    "linear": ScheduleEntry(linear, keys=("lr_final",), needs_length=True),
    "wsd": ScheduleEntry(wsd, keys=("lr_final", "decay_ratio"), needs_length=True),
    "step": ScheduleEntry(step, keys=("gamma", "gamma_every")),
    "exponential": ScheduleEntry(exponential, keys=("gamma", "gamma_every")),
}
"""The values of ``train.schedule``."""


def learning_rate(train: TrainSection, step: int, planned_steps: int | None, epoch_length: int) -> float:
    """The learning rate of an optimizer step.

    Args:
        train: the section ``train`` of the recipe.
        step: number of the step, from 0.
        planned_steps: planned length of the run; ``None``: limited by time only.
        epoch_length: steps per epoch, the unit of ``gamma_every``.
    """
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    return train.lr * SCHEDULES[train.schedule].factor(train, Moment(step, train.warmup, planned_steps, epoch_length))
