"""Learning-rate schedules: every one is a function of ``SCHEDULES``. Knows nothing of torch.

A learning rate is a function of the step alone. There is no scheduler object whose state could be lost: a resumed run
asks the same function. :func:`learning_rate` applies the warm-up before it asks a schedule.

To add one: a function that gives the learning rate as a share of the peak, and its row in ``SCHEDULES``.
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
    """A step of a run, as a schedule sees it.

    Attributes:
        step: from 0, those of the warm-up included.
        warmup: steps of the warm-up.
        planned_steps: the run's planned length; ``None``: until the time is over.
        epoch_length: steps in an epoch.
    """

    step: int
    warmup: int
    planned_steps: int | None
    epoch_length: int

    @property
    def done(self) -> float:
        """The share of the steps between the warm-up and the planned end that is done, 0 to 1."""
        assert self.planned_steps is not None, "its schedule is not marked needs_length"
        return min(1.0, (self.step - self.warmup) / max(1, self.planned_steps - self.warmup))


def constant(train: TrainSection, at: Moment) -> float:
    """The peak."""
    return 1.0


def cosine(train: TrainSection, at: Moment) -> float:
    """Half a cosine from the peak to ``lr_final`` of it (Loshchilov & Hutter 2017, equation 5, without restarts)."""
    return train.lr_final + (1 - train.lr_final) * 0.5 * (1 + math.cos(math.pi * at.done))


def linear(train: TrainSection, at: Moment) -> float:
    """A straight line from the peak to ``lr_final`` of it."""
    return 1 - (1 - train.lr_final) * at.done


def wsd(train: TrainSection, at: Moment) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the peak, then from it to ``lr_final`` of it over the last ``decay_ratio``.

    The decay has the form 1 − √x, which reaches lower losses than a straight line (Hägele et al. 2024).
    """
    decayed = max(0.0, (at.done - (1 - train.decay_ratio)) / train.decay_ratio)
    return train.lr_final + (1 - train.lr_final) * (1 - math.sqrt(decayed))


def step(train: TrainSection, at: Moment) -> float:
    """Times ``gamma``, in a jump, once per ``gamma_every`` epochs."""
    return float(train.gamma ** (at.step // max(1, round(train.gamma_every * at.epoch_length))))


def exponential(train: TrainSection, at: Moment) -> float:
    """Times ``gamma`` per ``gamma_every`` epochs, a little at each step."""
    return float(train.gamma ** (at.step / (train.gamma_every * at.epoch_length)))


@dataclass(frozen=True)
class ScheduleEntry:
    """A schedule, and what charlm must know of it.

    Attributes:
        factor: the learning rate as a share of the peak, after the warm-up.
        keys: of the recipe's section ``train``, beside ``lr`` and ``warmup``.
        needs_length: it ends at the planned length. Where the recipe gives neither ``epochs`` nor ``total_steps``, charlm plans
            a length that fits ``time``. A schedule that needs no length then runs until the time is over.
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
        step: its number, from 0.
        planned_steps: the run's planned length; ``None``: until the time is over.
        epoch_length: steps in an epoch, the unit of ``gamma_every``.
    """
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    return train.lr * SCHEDULES[train.schedule].factor(train, Moment(step, train.warmup, planned_steps, epoch_length))
