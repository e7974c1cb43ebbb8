"""When a run evaluates, saves, samples and stops."""

from __future__ import annotations

from dataclasses import dataclass

from charlm.config import Recipe
from charlm.data.streams import Batches
from charlm.evaluation import perplexity

EXACT_CHARACTERS = 1_000_000
"""The exact evaluation at the end covers at most this many characters, from the start of the validation text."""


@dataclass(frozen=True)
class Limits:
    """Limits that stop a run without changing its schedule.

    Attributes:
        max_steps: steps of the whole run, earlier attempts included.
        started_at: start of the process, on the clock of ``time.monotonic``.
        max_seconds: from ``started_at``, including the last evaluation and save.
    """

    started_at: float
    max_steps: int | None = None
    max_seconds: float | None = None

    @classmethod
    def of(cls, recipe: Recipe, started_at: float, max_steps: int | None = None, max_seconds: float | None = None) -> Limits:
        """The limits of a run; its time is the shorter of the recipe's `train.time` and ``max_seconds``."""
        times = [seconds for seconds in (recipe.train.time, max_seconds) if seconds is not None]
        return cls(started_at, max_steps, min(times, default=None))


def characters_of_evaluation(recipe: Recipe, length: int) -> int:
    """How many characters a quick evaluation reads; twice as many if the average of the weights is validated too.

    Args:
        length: of the validation text.
    """
    section, models = recipe.evaluate, 2 if recipe.train.average else 1
    return models * perplexity.read_by_segments(
        length, pieces=section.segments, warm=section.warm, characters=section.characters
    )


@dataclass(frozen=True)
class Plan:
    """The steps of evaluations, checkpoints and samples. It depends only on the recipe and the text.

    Attributes:
        total_steps: the planned length in optimizer steps; ``None``: the run ends when its time is over.
    """

    total_steps: int | None
    evaluate_every: int
    checkpoint_every: int
    sample_every: int

    @classmethod
    def of(cls, recipe: Recipe, batches: Batches) -> Plan:
        """The plan of a completed recipe (:mod:`charlm.training.defaults`)."""
        train, epoch = recipe.train, batches.epoch_length(0)
        steps: int | None = None
        if train.total_steps is not None:
            steps = train.total_steps
        elif train.epochs is not None:
            whole, rest = divmod(train.epochs, 1)
            steps = batches.steps_in(int(whole)) + round(rest * epoch)
        if steps is not None:
            steps = max(1, steps)
        every = recipe.evaluate.every or max(1, -(-steps // 10) if steps is not None else 200)
        return cls(steps, every, recipe.checkpoint.every or every, recipe.sample.every or every)
