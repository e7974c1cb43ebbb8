"""The events of a training: all that is recorded, drawn or logged about it comes from them.

A trainer yields them and waits while observers (:mod:`charlm.training.observers`) handle them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlm.training.plan import Limits


@dataclass(frozen=True)
class RunStarted:
    """The first event of every run.

    Attributes:
        resumed_from: the step of the checkpoint that the run was resumed from; ``None``: it is new.
        total_steps: the planned length; ``None``: until the time is over.
        limits: that stop it earlier.
        characters_per_step: at most; the last batches of an epoch can have fewer.
    """

    resumed_from: int | None
    total_steps: int | None
    limits: Limits
    characters_per_step: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step.

    Attributes:
        step: counted from 1, earlier attempts included.
        epoch: epochs done, with the part of the current one.
        nats: mean over the step's scored characters, before the update.
        gradient_norm: before clipping.
        characters: scored by all steps so far.
        seconds: that all steps so far took.
        characters_per_second: over the latest steps.
    """

    step: int
    epoch: float
    nats: float
    learning_rate: float
    gradient_norm: float
    characters: int
    seconds: float
    characters_per_second: float


@dataclass(frozen=True)
class ThreadsChanged:
    """From the next step on another number of CPU threads is faster: other programs began or ceased to use the cores."""

    step: int
    threads: int


@dataclass(frozen=True)
class Evaluated:
    """A validation.

    Attributes:
        nats: of the weights, or of their average if that is better.
        weights_nats: of the weights; ``None`` where the recipe averages none.
        average_nats: of their average; ``None`` likewise.
        train_nats: mean over the last epoch or the last 100 steps, whichever is shorter; NaN before the first step.
        is_best: whether these weights are now the run's best.
        regular: whether the recipe asks for it at this step; otherwise it was made because the run stops.
        characters: how many were scored.
        of: how many the validation text has to score.
        seconds_since_start: of the process.
    """

    step: int
    epoch: float
    nats: float
    weights_nats: float | None
    average_nats: float | None
    train_nats: float
    is_best: bool
    regular: bool
    characters: int
    of: int
    seconds_since_start: float


@dataclass(frozen=True)
class Sampled:
    """A text that the model wrote.

    Attributes:
        text: without the prompt.
        best_step: where the best weights wrote it, the step of these weights; ``None``: the weights of this step wrote it.
        closing: whether it was written because the run ends; :class:`Finished` has it too.
    """

    step: int
    epoch: float
    prompt: str
    text: str
    best_step: int | None = None
    closing: bool = False

    @property
    def heading(self) -> str:
        """What the sample is, in one line."""
        best = "" if self.best_step is None else f", best weights (step {self.best_step})"
        return f"step {self.step}, epoch {self.epoch:.2f}{best}, prompt {self.prompt!r}"


@dataclass(frozen=True)
class Saved:
    """``last`` is on disk."""

    step: int


@dataclass(frozen=True)
class Finished:
    """The last event: the run's final record (the keys of ``--json``), and a sample for each of the recipe's prompts."""

    record: dict[str, Any]
    samples: list[Sampled]


Event = RunStarted | StepDone | ThreadsChanged | Evaluated | Sampled | Saved | Finished
