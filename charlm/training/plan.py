"""What a run will do, settled before it starts: where and how it computes, when it evaluates and saves, when it must stop."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from charlm.config import Recipe
from charlm.data.streams import Batches, BatchShape
from charlm.evaluation import perplexity
from charlm.model.language_model import activation_bytes, count_parameters
from charlm.optimizers import OPTIMIZERS

EXACT_CHARACTERS = 1_000_000
"""The exact figure at the end covers at most the first so many characters of the validation text."""


@dataclass(frozen=True)
class Limits:
    """What only stops a run and never changes its schedule.

    Attributes:
        max_steps: of the run, earlier attempts included.
        started_at: the process's start, on ``time.monotonic``'s clock.
        max_seconds: from then, the last evaluation and save included.
    """

    started_at: float
    max_steps: int | None = None
    max_seconds: float | None = None

    @classmethod
    def of(cls, recipe: Recipe, started_at: float, max_steps: int | None = None, max_seconds: float | None = None) -> Limits:
        """The limits of a run: the recipe's `train.time` or ``max_seconds``, whichever is shorter."""
        times = [seconds for seconds in (recipe.train.time, max_seconds) if seconds is not None]
        return cls(started_at, max_steps, min(times, default=None))


def read_by_an_evaluation(recipe: Recipe, length: int) -> int:
    """How many characters a cheap evaluation reads of a validation text; twice where the weights' average is validated too."""
    section, models = recipe.evaluate, 2 if recipe.train.average else 1
    return models * perplexity.read_by_segments(
        length, pieces=section.segments, warm=section.warm, characters=section.characters
    )


@dataclass(frozen=True)
class Resolved:
    """What ``auto`` became, and why.

    Attributes:
        threads: that the run began with.
    """

    device: torch.device
    engine: str
    engine_reason: str
    precision: str
    precision_reason: str
    threads: int


def training_bytes(recipe: Recipe, vocabulary_size: int, shape: BatchShape, precision: str, engine: str) -> int:
    """About how much memory training takes: weights, gradients, moments, and what a step keeps for its backward pass."""
    train = recipe.train
    moments = len(OPTIMIZERS[train.optimizer].kept(train.momentum))
    activations = activation_bytes(recipe.model, vocabulary_size, shape.batch, shape.seq_length, precision, engine)
    return 4 * count_parameters(recipe.model, vocabulary_size) * (2 + moments) + activations


@dataclass(frozen=True)
class Plan:
    """At which steps things happen; a function of the recipe and the text alone.

    Attributes:
        total_steps: the planned length in optimizer steps; ``None``: until the time is over.
    """

    total_steps: int | None
    evaluate_every: int
    checkpoint_every: int
    sample_every: int

    @classmethod
    def of(cls, recipe: Recipe, batches: Batches) -> Plan:
        """When things happen. A recipe that gives no length has been given one (:mod:`charlm.training.defaults`), or runs until
        its time is over.
        """
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
