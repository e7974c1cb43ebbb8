"""How many characters a run can read in a given time, measured on this machine, and the defaults that follow."""

from __future__ import annotations

import time

from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.data.dataset import Dataset
from charlm.data.streams import Batches
from charlm.distributed import ALONE, World
from charlm.evaluation import perplexity
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.threads import Tuner
from charlm.training import defaults
from charlm.training.plan import EXACT_CHARACTERS, Limits, characters_of_evaluation
from charlm.training.resolve import Resolved
from charlm.training.update import Updater
from charlm.training.weight_average import WeightAverage

_EVALUATIONS = 10
_WARM_UP = 3
"""Steps."""
_TIMED_SECONDS = 2.0


def default_values(
    recipe: Recipe, dataset: Dataset, resolved: Resolved, limits: Limits, world: World = ALONE
) -> defaults.Values:
    """The defaults for a text, within the time that the recipe or the caller gives."""
    start, stop = dataset.splits["train"]
    budget: float = defaults.CHARACTERS
    times = [seconds for seconds in (recipe.train.time, limits.max_seconds) if seconds is not None]
    if times:
        budget = characters_in(min(times), recipe, dataset, resolved, limits.started_at, world)
    return defaults.rule(max(1, stop - start), budget, recipe.model.cell)


def extend(
    recipe: Recipe, earlier: Checkpoint, dataset: Dataset, resolved: Resolved, limits: Limits, world: World = ALONE
) -> Recipe:
    """The recipe of a run that is resumed with another `time`: its epochs so far, and as many more as the new time allows."""
    assert recipe.train.time is not None
    start, stop = dataset.splits["train"]
    more = characters_in(recipe.train.time, recipe, dataset, resolved, limits.started_at, world)
    epochs = earlier.progress["epoch"] + more / max(1, stop - start)
    length = {"total_steps": None, "epochs": float(f"{epochs:.4g}")}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=length)})


def characters_in(
    seconds: float, recipe: Recipe, dataset: Dataset, resolved: Resolved, started_at: float, world: World = ALONE
) -> float:
    """How many characters training can read in a time. A few steps of the network that the defaults choose are timed.

    The time for the start and the evaluations is subtracted, and 15 % for samples, saving and slower moments.

    Args:
        seconds: for the whole run.
        started_at: start of the run, on the clock of :func:`time.monotonic`.
    """
    characters = len(dataset.text("train"))
    planned = defaults.with_defaults(recipe, defaults.rule(max(1, characters), cell=recipe.model.cell))
    model = LanguageModel(planned.model, len(dataset.vocabulary), resolved.engine)
    model.initialise(0)
    model.to(resolved.device)
    batches = Batches(dataset.text("train"), planned.train, 0.0)
    per_character = _seconds_per_character(planned, model, batches, resolved, min(_TIMED_SECONDS, seconds / 20), world)
    start, stop = dataset.splits["validation"]
    exact_seconds = 0.0
    if stop - start > 1:
        exact = perplexity.seconds_per_character(model, dataset.text("validation"))
        exact_seconds = min(seconds / 5, 1 + 1.4 * exact * min(stop - start, EXACT_CHARACTERS))
    left = 0.85 * (seconds - (time.monotonic() - started_at) - exact_seconds) / per_character
    planned = defaults.with_defaults(recipe, defaults.rule(max(1, characters), max(1.0, left), recipe.model.cell))
    evaluated = (_EVALUATIONS + 1) * characters_of_evaluation(planned, max(1, stop - start))
    # An evaluation has no backward pass, which takes two thirds of a training step. Training gets at least half the time.
    return world.agree(max(1.0, left / 2, left - evaluated / 3))


def _seconds_per_character(
    recipe: Recipe, model: LanguageModel, batches: Batches, resolved: Resolved, seconds: float, world: World
) -> float:
    """The time of a training step for each of its characters, measured for some seconds on the text itself."""
    update, average = Updater(model, recipe.train, resolved.precision, world), WeightAverage(model, 0.5)
    B, own = batches.shape.batch, world.share(batches.shape.batch)
    tuner = Tuner("training", model.is_thread_invariant)
    state, done, read, started = model.zero_state(len(own)), 0, 0, time.perf_counter()
    while world.agree(done < 2 * _WARM_UP or time.perf_counter() - started < seconds):
        if done == _WARM_UP:
            read, started = 0, time.perf_counter()
        batch = batches.batch(0, done % batches.epoch_length(0), own)
        inputs, targets = batch.inputs.to(resolved.device), batch.targets.to(resolved.device)
        with tuner.piece(batch.scored):
            dropout = Dropout(recipe.model, 0, done)
            state = update(inputs, targets, batch.scored, state, 1e-4, dropout, own.start, B).state
        done, read = done + 1, read + batch.scored
        average.update(done)
    return (time.perf_counter() - started) / read
