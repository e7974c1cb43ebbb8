"""What a trainer tells while it runs. The console draws these; the run's folder records them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepDone:
    """One optimizer step."""

    step: int
    epoch: float
    nats: float
    learning_rate: float
    gradient_norm: float
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
        is_best: whether these weights are now the run's best.
        regular: whether the recipe asks for it at this step; otherwise it was made because the run stops.
        characters: how many were scored.
        of: how many the validation text has to score.
    """

    step: int
    nats: float
    is_best: bool
    regular: bool
    characters: int
    of: int


@dataclass(frozen=True)
class Sampled:
    """A text written on the way."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """``last`` is on disk."""

    step: int


@dataclass(frozen=True)
class Finished:
    """The run's final record (the keys of ``--json``), the learning curve, and a sample for each of the recipe's prompts."""

    record: dict[str, Any]
    samples: list[Sampled]


Event = StepDone | ThreadsChanged | Evaluated | Sampled | Saved | Finished
