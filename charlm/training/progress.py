"""How far a training is and what it has measured: the counters that a checkpoint stores, and those of this attempt."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from charlm.errors import CheckpointError

RECENT_STEPS = 100
"""``train_nats`` is the mean over the last epoch or this number of steps, whichever is shorter."""

_TIMED_STEPS = 50
"""The current speed is a mean over this number of steps."""


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        nats: per character; ``None`` before the first evaluation.
        step: at which these weights were validated.
        averaged: whether they are the moving average of the weights.
    """

    nats: float | None = None
    step: int | None = None
    averaged: bool = False

    def state_dict(self) -> dict[str, Any]:
        """The entry ``best`` of a checkpoint."""
        entry = {"nats": self.nats, "step": self.step}
        return entry if self.step is None else entry | {"averaged": self.averaged}

    def is_beaten_by(self, nats: float) -> bool:
        """Whether a validation is a new best."""
        return math.isfinite(nats) and (self.nats is None or nats < self.nats)


@dataclass
class TrainingProgress:
    """The counters of a training.

    Attributes:
        epoch_length: epoch → number of batches in it.
        step: optimizer steps done, by earlier attempts too.
        epoch: whole epochs done.
        index: of the next batch in its epoch.
        characters: scored by all steps.
        seconds: that all steps took.
        recent: (Σ nats, scored characters) of each step that ``train_nats`` covers.
        best: of the schedule's own evaluations.
        stopped_best: of the evaluation at a stop, if it beats ``best``.
        worse_in_a_row: regular evaluations since ``best``.
        validation_nats: of the latest evaluation.
        evaluated_at: the step of the latest evaluation.
        resumed_from: the step of the checkpoint that the run was resumed from.
        characters_here: scored by the steps of this attempt.
        seconds_here: that they took.
        timed: (scored characters, seconds) of the latest steps of this attempt.
    """

    epoch_length: Callable[[int], int]
    step: int = 0
    epoch: int = 0
    index: int = 0
    characters: int = 0
    seconds: float = 0.0
    recent: deque[tuple[float, int]] = field(init=False)
    best: Best = Best()
    stopped_best: Best | None = None
    worse_in_a_row: int = 0
    validation_nats: float | None = None
    evaluated_at: int | None = None
    resumed_from: int | None = None
    characters_here: int = 0
    seconds_here: float = 0.0
    timed: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_TIMED_STEPS))

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=min(RECENT_STEPS, self.epoch_length(0)))

    def advance(self, nats: float, scored: int, seconds: float) -> None:
        """Count one step.

        Args:
            nats: mean over its scored characters.
            scored: their number.
            seconds: that it took.
        """
        self.step += 1
        self.index += 1
        if self.index == self.epoch_length(self.epoch):
            self.epoch, self.index = self.epoch + 1, 0
        self.recent.append((nats * scored, scored))
        self.timed.append((scored, seconds))
        self.characters += scored
        self.characters_here += scored
        self.seconds += seconds
        self.seconds_here += seconds

    def ahead(self, steps: int) -> list[tuple[int, int]]:
        """(epoch, index) of the next batches."""
        places, epoch, index = [], self.epoch, self.index
        for _ in range(steps):
            places.append((epoch, index))
            index += 1
            if index == self.epoch_length(epoch):
                epoch, index = epoch + 1, 0
        return places

    @property
    def epochs(self) -> float:
        """Epochs done, with the part of the current one."""
        return self.epoch + self.index / self.epoch_length(self.epoch)

    @property
    def epochs_done(self) -> float:
        """The same, rounded as logs and checkpoints have it."""
        return round(self.epochs, 4)

    @property
    def train_nats(self) -> float:
        """Σ nats / Σ scored characters over ``recent``; NaN before the first step."""
        scored = self.recent_characters
        return sum(nats for nats, _ in self.recent) / scored if scored else math.nan

    @property
    def recent_characters(self) -> int:
        """Scored characters that ``train_nats`` covers."""
        return sum(scored for _, scored in self.recent)

    @property
    def current_speed(self) -> float:
        """Characters per second over the latest steps."""
        return sum(n for n, _ in self.timed) / sum(seconds for _, seconds in self.timed)

    @property
    def mean_speed(self) -> float:
        """Characters per second over the steps of this attempt; over all of them if it has none."""
        characters, seconds = self.characters_here, self.seconds_here
        if not seconds:
            characters, seconds = self.characters, self.seconds
        return characters / seconds if seconds else 0.0

    @property
    def reported_best(self) -> Best:
        """The best validation, that of a stop included."""
        return self.stopped_best or self.best

    def summary(self) -> dict[str, Any]:
        """What a checkpoint of weights only stores."""
        return {
            "step": self.step,
            "epoch": self.epochs_done,
            "characters": self.characters,
            "train_nats": self.train_nats if self.recent else None,
            "validation_nats": self.validation_nats,
            "evaluated_at": self.evaluated_at,
            "best": self.reported_best.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumable checkpoint stores. Its ``best`` is that of the schedule."""
        return self.summary() | {
            "best": self.best.state_dict(),
            "position": [self.epoch, self.index],
            "recent": [list(entry) for entry in self.recent],
            "worse_in_a_row": self.worse_in_a_row,
            "seconds": self.seconds,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Continue from the counters of a checkpoint.

        Raises:
            CheckpointError: its position is not one of this text.
        """
        epoch, index = stored["position"]
        if not index < self.epoch_length(epoch):
            raise CheckpointError(
                f"the checkpoint's position, batch {index:,} of epoch {epoch:,}, is beyond the end of the epoch"
            )
        self.step = self.resumed_from = stored["step"]
        self.epoch, self.index = epoch, index
        self.characters, self.seconds = stored["characters"], stored["seconds"]
        self.recent.extend((nats, scored) for nats, scored in stored["recent"])
        best = stored["best"]
        self.best = Best(best["nats"], best["step"], best.get("averaged", False))
        self.worse_in_a_row = stored["worse_in_a_row"]
        self.validation_nats, self.evaluated_at = stored["validation_nats"], stored.get("evaluated_at")

    def forget_best(self) -> None:
        """Drop the stored validation: its weights are lost, and the next evaluation is a new best."""
        self.best, self.validation_nats, self.evaluated_at = Best(), None, None
