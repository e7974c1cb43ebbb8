"""When a run stops: at the end of its plan, by early stopping, or at a limit of steps or time."""

from __future__ import annotations

import math
import time

from charlm import sampling
from charlm.config import Recipe
from charlm.data.dataset import Text
from charlm.data.vocabulary import Vocabulary
from charlm.evaluation import perplexity
from charlm.model.language_model import LanguageModel
from charlm.training.plan import EXACT_CHARACTERS, Limits, Plan, characters_of_evaluation
from charlm.training.progress import TrainingProgress

_RECORD_SECONDS = 1.0
"""Reserved for writing the record when a time limit ends the last evaluation."""


class StopConditions:
    """The reasons to stop, and the time that a limit reserves for the end of the run.

    Args:
        limits: of steps and time.
        plan: the length of the run.
        patience: evaluations in a row without a new best that end the run; ``None``: no early stopping.

    Attributes:
        exact_characters: how many characters the exact evaluation at the end covers at most.
    """

    def __init__(self, limits: Limits, plan: Plan, patience: int | None) -> None:
        self.exact_characters = EXACT_CHARACTERS
        self._limits, self._plan, self._patience = limits, plan, patience
        self._closing_seconds = 0.0
        self._longest_pause = 0.0  # between two steps: samples, validation, save
        self._expected_pause = 0.0  # until a pause with a validation has been timed

    @property
    def deadline(self) -> float:
        """When the exact evaluation must end, on ``time.monotonic``'s clock."""
        return self._limits.started_at + (self._limits.max_seconds or math.inf) - _RECORD_SECONDS

    def reason_to_stop(self, progress: TrainingProgress, is_time_over: bool) -> str | None:
        """Why the run stops before its next step; ``None``: it does not.

        Args:
            is_time_over: see :meth:`is_time_over`.
        """
        limits = self._limits
        if self._plan.total_steps is not None and progress.step >= self._plan.total_steps:
            return "finished"
        if self._patience is not None and progress.worse_in_a_row >= self._patience:
            return "early stopping"
        if limits.max_steps is not None and progress.step >= limits.max_steps:
            return "max steps"
        return "max time" if is_time_over else None

    def is_time_over(self, progress: TrainingProgress) -> bool:
        """Whether the time limit leaves no time for a step, a pause and the end of the run."""
        limits = self._limits
        if limits.max_seconds is None:
            return False
        a_step = max((seconds for _, seconds in progress.timed), default=0.0)
        elapsed = time.monotonic() - limits.started_at
        pause = max(self._longest_pause, self._expected_pause)
        return elapsed + a_step + pause + self._closing_seconds > limits.max_seconds

    def paused(self, seconds: float, evaluated: bool) -> None:
        """Note how long samples, validation and save between two steps took.

        Args:
            evaluated: whether there was a validation: then the estimate of its time is no longer needed.
        """
        self._longest_pause = max(self._longest_pause, seconds)
        if evaluated:
            self._expected_pause = 0.0

    def reserve(self, recipe: Recipe, model: LanguageModel, vocabulary: Vocabulary, validation: Text | None) -> None:
        """Estimate, from a short trial, how long the end of the run takes (exact evaluation, samples, save) and a validation.

        Without a time limit there is nothing to reserve.
        """
        limit = self._limits.max_seconds
        if limit is None:
            return
        began = time.perf_counter()
        # A record must not end before its 32nd character.
        banned = frozenset() if vocabulary.separator_id is None else frozenset({vocabulary.separator_id})
        sampling.sample(model, vocabulary, "", 32, sampling.SamplingParams(banned=banned), 0)
        per_sampled = (time.perf_counter() - began) / 32
        self._closing_seconds = _RECORD_SECONDS + 1.2 * per_sampled * recipe.sample.length * len(recipe.sample.prompts)
        if validation is None:
            return
        per_character = perplexity.seconds_per_character(model, validation)
        read = characters_of_evaluation(recipe, len(validation))
        self._expected_pause = min(0.2 * limit, read * per_character / 3)  # the pieces are read side by side
        # At most a fifth of the time: on a longer text the exact result covers the first part, and says how much.
        affordable = max(256, int(0.2 * limit / per_character))
        self.exact_characters = min(len(validation) - 1, self.exact_characters, affordable)
        self._closing_seconds += 1.4 * per_character * self.exact_characters
