"""How many characters a run can read in a given time, measured on this machine, and the defaults that follow."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.data.dataset import Dataset
from charlm.data.streams import Batches, batches_of
from charlm.distributed import ALONE, World
from charlm.evaluation import perplexity
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.threads import Tuner
from charlm.training import cuda_graph, defaults
from charlm.training.cuda_graph import GraphUpdater, Job
from charlm.training.plan import EXACT_CHARACTERS, Limits, characters_of_evaluation
from charlm.training.resolve import Resolved
from charlm.training.update import Updater
from charlm.training.weight_average import WeightAverage

_EVALUATIONS = 10
_WARM_UP = 3
"""Steps; on a GPU, queues of steps."""
_TIMED_SECONDS = 2.0
_RATE = 1e-4
"""The learning rate of the timed steps, whose weights are thrown away."""


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
    batches = batches_of(dataset.text("train"), planned.train, 0.0)
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
    tuner = Tuner("training", model.is_thread_invariant)
    by_graph = cuda_graph.why_not(recipe.train, resolved.device, world) is None
    work = (_queued_steps if by_graph else _single_steps)(recipe, model, batches, resolved, world)
    done, read, started = 0, 0, time.perf_counter()
    while world.agree(done < 2 * _WARM_UP or time.perf_counter() - started < seconds):
        if done == _WARM_UP:
            read, started = 0, time.perf_counter()
        with tuner.piece(batches.shape.batch * batches.shape.seq_length):
            read += next(work)
        done += 1
    return (time.perf_counter() - started) / read


def _single_steps(recipe: Recipe, model: LanguageModel, batches: Batches, resolved: Resolved, world: World) -> Iterator[int]:
    """Train without end; yields the number of characters of each step."""
    update, average = Updater(model, recipe.train, resolved.precision, world), WeightAverage(model, 0.5)
    B, own = batches.shape.batch, world.share(batches.shape.batch)
    state = model.zero_state(len(own))
    for step in itertools.count():
        batch = batches.batch(0, step % batches.epoch_length(0), own)
        inputs, targets = batch.inputs.to(resolved.device), batch.targets.to(resolved.device)
        state = update(inputs, targets, batch.scored, state, _RATE, Dropout(recipe.model, 0, step), own.start, B).state
        average.update(step + 1)
        yield batch.scored


def _queued_steps(recipe: Recipe, model: LanguageModel, batches: Batches, resolved: Resolved, world: World) -> Iterator[int]:
    """The same as CUDA graphs, several steps at a time."""
    model.flatten_for_cudnn()
    update, average = GraphUpdater(model, recipe.train, resolved.precision, batches), WeightAverage(model, 0.5)
    state = model.zero_state(batches.shape.batch)
    for first in itertools.count(0, WeightAverage.EVERY):
        jobs = []
        for step in range(first, first + WeightAverage.EVERY):
            index = step % batches.epoch_length(0)
            jobs.append(Job(batches.span(0, index), 0, index, _RATE, Dropout(recipe.model, 0, step)))
        state = update.train(jobs, state)[-1].state
        average.update(first + WeightAverage.EVERY)
        yield sum(job.span.scored for job in jobs)
