"""The training loop. It yields events and writes nothing but checkpoints; observers record, draw and log the events.

One step: read B·T characters from where the last step stopped, backpropagate through these T steps alone (truncated
backpropagation through time: the state is carried on, its gradient is not), clip, update. In between, at steps that follow
from the recipe, the trainer evaluates, samples and saves.

Resuming is exact because a step is a function of what a checkpoint holds: weights, moments, carried state, the position in
the text and counters. Stopping early, for whatever reason, changes none of these.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from charlm import checkpoint, sampling
from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.data.dataset import Dataset, Text
from charlm.data.streams import batches_of
from charlm.distributed import ALONE, World, shares
from charlm.errors import CheckpointError, DivergedError
from charlm.evaluation import perplexity
from charlm.model.cells import State
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.run_files import BEST, LAST
from charlm.schedules import learning_rate
from charlm.threads import Tuner
from charlm.training import cuda_graph
from charlm.training.cuda_graph import GraphUpdater, Job, steps_at_once
from charlm.training.events import Evaluated, Event, Finished, RunStarted, Sampled, Saved, StepDone, ThreadsChanged
from charlm.training.loss_scale import LossScale
from charlm.training.optimizer import optimizer_tensors, restore_optimizer
from charlm.training.plan import Limits, Plan
from charlm.training.progress import Best, TrainingProgress
from charlm.training.resolve import Resolved
from charlm.training.result import Exact, exact_score, final_record
from charlm.training.run_folder import RunFolder
from charlm.training.stopping import StopConditions
from charlm.training.update import Outcome, Updater
from charlm.training.weight_average import WeightAverage


class _StopAskedError(Exception):
    """Ends an evaluation or a sample because a stop was requested."""


class Trainer:
    """Trains one model. :func:`charlm.training.run.run` runs it; :meth:`request_stop` may be called from a signal handler.

    Args:
        recipe: of the run.
        stored_recipe: the same without absolute paths, for checkpoints.
        dataset: training and validation text.
        model: on its device, with initial or stored weights.
        resolved: device, engine, precision.
        folder: where to save; locked by this process.
        limits: when to stop.
        resume: the checkpoint to resume from, which has ``model``'s weights.
        world: the processes that train together: each has some of the streams, and all make the same updates. Only the first
            writes and samples.
    """

    def __init__(
        self,
        recipe: Recipe,
        stored_recipe: Recipe,
        dataset: Dataset,
        model: LanguageModel,
        resolved: Resolved,
        folder: RunFolder,
        limits: Limits,
        resume: Checkpoint | None = None,
        world: World = ALONE,
    ) -> None:
        self.world = world
        self.recipe, self.dataset, self.model, self.resolved = recipe, dataset, model, resolved
        self.folder, self.limits = folder, limits
        self._stored_recipe = stored_recipe
        self.batches = batches_of(dataset.text("train"), recipe.train, recipe.data.unknown_rate)
        self.plan = Plan.of(recipe, self.batches)
        self.progress = TrainingProgress(self.batches.epoch_length)
        self._stopping = StopConditions(limits, self.plan, recipe.evaluate.patience)
        start, stop = dataset.splits["validation"]
        self._validation: Text | None = dataset.text("validation") if stop - start >= 2 else None
        self.graph_refusal = cuda_graph.why_not(recipe.train, resolved.device, world)
        """Why the steps do not run as CUDA graphs; ``None``: they do."""
        self._update = (
            Updater(model, recipe.train, resolved.precision, world)
            if self.graph_refusal is not None
            else GraphUpdater(model, recipe.train, resolved.precision, self.batches)
        )
        # Where results depend on the number of threads, a resumed run begins with the number that the run had.
        threads = resolved.threads if resume is not None and not model.is_thread_invariant else 0
        self._tuner = Tuner("training", model.is_thread_invariant, threads)
        self._streams = world.share(self.batches.shape.batch)
        self._state: State = model.zero_state(len(self._streams))  # of these streams
        self._average = WeightAverage(model, recipe.train.average) if recipe.train.average else None
        self._candidate = model  # to become best: the weights, or their average if that was better when last validated
        self._stop: str | None = None
        self._is_pausing = False  # between two steps; the validation of a stop is not interrupted
        self._owed: dict[str, int] | None = None
        """Sizes of the logs after the step, if a stop interrupted the samples or the validation that follow it."""
        self._last_saved: int | None = None
        if resume is not None:
            self._restore(resume)
        if isinstance(self._update, GraphUpdater):
            self.graph_refusal = self._update.record()

    @property
    def step(self) -> int:
        """Optimizer steps done, by earlier attempts too."""
        return self.progress.step

    @property
    def resumed_from(self) -> int | None:
        """The step of the checkpoint that the run was resumed from; ``None``: it is new."""
        return self.progress.resumed_from

    def request_stop(self, reason: str) -> None:
        """Stop after the current step: save, evaluate, and finish."""
        self._stop = reason

    def run(self, exact_progress: Progress | None = None) -> Iterator[Event]:
        """Train to the end, or until something stops the run. The training waits while an event is handled.

        Nothing is recorded: :func:`charlm.training.run.run` adds the log of the run's folder and other observers.

        Args:
            exact_progress: is told how far the exact evaluation at the end is; :meth:`request_stop` ends it early.

        Raises:
            DivergedError: loss or gradient stopped being finite; the state before that step has been saved.
        """
        shape = self.batches.shape
        yield RunStarted(self.resumed_from, self.plan.total_steps, self.limits, shape.batch * shape.seq_length)
        if self.world.is_first:  # it decides when the time is over
            self._stopping.reserve(self.recipe, self.model, self.dataset.vocabulary, self._validation)
        threads = self._tuner.threads  # as last told
        if self._owed is not None:
            yield from self._pause()
        while (reason := self._reason_to_stop()) is None:
            if isinstance(self._update, GraphUpdater):
                yield from self._train_queued(self._update)
            else:
                yield self._train_step()
            if self._tuner.threads != threads:
                threads = self._tuner.threads
                yield ThreadsChanged(self.step, threads)
            yield from self._pause()
        yield from self._finish(reason, exact_progress)

    def _reason_to_stop(self) -> str | None:
        """Why the run stops before its next step, on all processes."""
        is_time_over = self.world.is_first and self._stopping.is_time_over(self.progress)
        is_asked, is_time_over = self.world.any(self._stop is not None, is_time_over)
        if is_asked:
            self._stop = self._stop or "interrupted"
            return self._stop
        # A stop that was asked meanwhile waits for the next step, since the other processes do not know of it.
        return self._stopping.reason_to_stop(self.progress, is_time_over)

    # -- one step --

    def _train_step(self) -> StepDone:
        began = time.perf_counter()
        train, device, progress = self.recipe.train, self.resolved.device, self.progress
        batch = self.batches.batch(progress.epoch, progress.index, self._streams)
        state = self.model.zero_state(batch.inputs.shape[1]) if batch.fresh else self._state
        inputs, targets = batch.inputs.to(device), batch.targets.to(device)
        dropout = Dropout(self.recipe.model, train.seed, progress.step)
        rate = learning_rate(train, progress.step, self.plan.total_steps, self.batches.epoch_length(0))
        with self._tuner.piece(batch.scored):
            outcome = self._update(
                inputs, targets, batch.scored, state, rate, dropout, self._streams.start, self.batches.shape.batch
            )
        if outcome.diverged:
            self._diverged(outcome.nats, outcome.norm)
        self._state = outcome.state
        return self._count(outcome, batch.scored, rate, time.perf_counter() - began)

    def _train_queued(self, update: GraphUpdater) -> Iterator[StepDone]:
        """Several steps, as far as nothing comes between them; their events follow when all have run."""
        began = time.perf_counter()
        train, progress, plan = self.recipe.train, self.progress, self.plan
        count = steps_at_once(
            progress.step,
            every=[
                plan.sample_every, plan.evaluate_every, plan.checkpoint_every, self.recipe.checkpoint.keep_every,
                WeightAverage.EVERY if self._average is not None else None,
            ],
            ends=[plan.total_steps, self.limits.max_steps],
            seconds=progress.timed[-1][1] if progress.timed else 0.0,
        )  # fmt: skip
        jobs = [
            Job(
                self.batches.span(epoch, index), epoch, index,
                learning_rate(train, step, plan.total_steps, self.batches.epoch_length(0)),
                Dropout(self.recipe.model, train.seed, step),
            )
            for step, (epoch, index) in enumerate(progress.ahead(count), start=progress.step)
        ]  # fmt: skip
        with self._tuner.piece(sum(job.span.scored for job in jobs)):
            outcomes = update.train(jobs, self._state)
        seconds = (time.perf_counter() - began) / count
        for job, outcome in zip(jobs, outcomes, strict=False):  # a step that diverged is the last outcome
            self._state = outcome.state
            if outcome.diverged:
                self._diverged(outcome.nats, outcome.norm)
            yield self._count(outcome, job.span.scored, job.rate, seconds)

    def _count(self, outcome: Outcome, scored: int, rate: float, seconds: float) -> StepDone:
        """Update average and counters after a step."""
        progress = self.progress
        if self._average is not None:
            self._average.update(progress.step + 1)
        progress.advance(outcome.nats, scored, seconds)
        return StepDone(
            progress.step, progress.epochs, outcome.nats, rate, outcome.norm, progress.characters, progress.seconds,
            progress.current_speed,
        )  # fmt: skip

    def _diverged(self, nats: float, norm: float) -> None:
        """Keep the last good state and give up: the bad gradient never reaches the optimizer."""
        if self._last_saved != self.step:
            self._save()
        what = f"the loss became {nats}" if not math.isfinite(nats) else f"the gradient's norm became {norm}"
        lower = self.recipe.train.lr / 3
        raise DivergedError(
            f"{what} at step {self.step + 1}; the update was not applied, and {self.folder.path / LAST} holds step "
            f"{self.step}. Resume with a lower learning rate (train.lr={lower:.2g}), a warm-up (train.warmup), stronger "
            "clipping (train.clip) or a lower train.weight_decay"
        )

    # -- between steps --

    def _pause(self) -> Iterator[Event]:
        """Samples, validation and save, unless a stop interrupts them: then a resumed run repeats all of them."""
        began = time.perf_counter()
        self._owed, logs = None, self.folder.log_sizes() if self._pauses_long() else None
        self._is_pausing = True
        try:
            yield from self._between_steps()
        except _StopAskedError:
            self._owed = logs
        finally:
            self._is_pausing = False
        self._stopping.paused(time.perf_counter() - began, evaluated=self.progress.evaluated_at == self.step)

    def _pauses_long(self) -> bool:
        return self.step % self.plan.sample_every == 0 or self._is_regular()

    def _check_stop_of_any(self, done: int, total: int | None) -> None:
        """Progress of an evaluation that all processes make together."""
        if total is None or done < total:
            (is_asked,) = self.world.any(self._stop is not None)
            if is_asked:
                raise _StopAskedError

    def _check_stop(self, done: int = 0, total: int | None = None) -> None:
        """Progress of a sample or an evaluation: end it if a stop was requested and it is not done."""
        if self._stop is not None and (total is None or done < total):
            raise _StopAskedError

    def _between_steps(self) -> Iterator[Event]:
        # In this order, so that a checkpoint's log sizes cover the samples and the evaluation of its own step.
        if self.step % self.plan.sample_every == 0:
            yield from self._samples()
        if self._is_regular():
            yield from self._evaluate(regular=True)
            if not self.model.is_thread_invariant:
                self._tuner.choose()
        if (self.step % self.plan.checkpoint_every == 0 or self._is_kept()) and self._last_saved != self.step:
            self._save()
        if self._last_saved == self.step:
            yield Saved(self.step)

    def _samples(self) -> Iterator[Sampled]:
        is_interrupted = False
        try:
            for prompt in self.recipe.sample.prompts if self.world.is_first else []:
                yield self._sample(self.model, prompt)
        except _StopAskedError:
            is_interrupted = True
        (is_interrupted,) = self.world.any(is_interrupted)
        if is_interrupted:
            raise _StopAskedError

    def _is_kept(self) -> bool:
        keep = self.recipe.checkpoint.keep_every
        return keep is not None and self.step > 0 and self.step % keep == 0

    def _is_regular(self) -> bool:
        is_due = self.step % self.plan.evaluate_every == 0 or self.step == self.plan.total_steps
        return self._validation is not None and is_due

    def _evaluate(self, regular: bool) -> Iterator[Evaluated]:
        """The quick validation, and a save if it is a new best.

        Only a regular one can change the schedule's best and early stopping. Where that of a stop is better, the weights of the
        stop become ``best`` on disk and are reported, and the schedule's own best is kept beside them for a resumed run.
        """
        score, candidate = self._validate(self.model), self.model  # a stop that interrupts it must change nothing
        weights_nats = average_nats = None
        if self._average is not None:
            averaged = self._validate(self._average.model)
            weights_nats, average_nats = score.nats_per_character, averaged.nats_per_character
            if average_nats < weights_nats:
                candidate, score = self._average.model, averaged
        self._candidate = candidate
        progress, nats = self.progress, score.nats_per_character
        progress.validation_nats, progress.evaluated_at = nats, progress.step
        is_best = progress.best.is_beaten_by(nats)
        # Before the save, so that the checkpoint's log sizes cover it.
        yield Evaluated(
            step=progress.step, epoch=progress.epochs_done, nats=nats, weights_nats=weights_nats, average_nats=average_nats,
            train_nats=progress.train_nats, is_best=is_best, regular=regular, characters=score.characters,
            of=self._validation_length, seconds_since_start=time.monotonic() - self.limits.started_at,
        )  # fmt: skip
        if regular:
            progress.worse_in_a_row = 0 if is_best else progress.worse_in_a_row + 1
        if not is_best:
            return
        found = Best(nats, progress.step, candidate is not self.model)
        if regular:
            progress.best = found
            self._save()  # `last` first, so that `best` never comes from a future that a resumed run does not have
        else:
            if progress.best.step is not None:
                self.folder.keep_schedule_best()
            progress.stopped_best = found
        self._save_best()

    def _validate(self, model: LanguageModel) -> perplexity.Score:
        assert self._validation is not None
        options = self.recipe.evaluate
        try:
            return perplexity.segments(
                model, self._validation, pieces=options.segments, warm=options.warm, characters=options.characters,
                progress=self._check_stop_of_any if self._is_pausing else None, world=self.world,
            )  # fmt: skip
        except DivergedError:
            raise self._nonfinite_error("the model's scores became NaN or infinite") from None

    def _sample(self, model: LanguageModel, prompt: str, closing: bool = False) -> Sampled:
        options, progress = self.recipe.sample, self.progress
        params = sampling.SamplingParams(temperature=options.temperature)
        vocabulary, seed = self.dataset.vocabulary, self.recipe.train.seed
        try:
            text = sampling.sample(
                model, vocabulary, prompt, options.length, params, seed, progress.step, progress=self._check_stop
            )
        except DivergedError:
            raise self._nonfinite_error("the model's scores became NaN or infinite") from None
        best_step = None if model is self.model else progress.reported_best.step
        return Sampled(progress.step, progress.epochs_done, prompt, text, best_step, closing)

    # -- the end --

    def _finish(self, reason: str, exact_progress: Progress | None) -> Iterator[Event]:
        if self._last_saved != self.step:
            self._save()
            yield Saved(self.step)
        if self._validation is not None and self.progress.evaluated_at != self.step:
            yield from self._evaluate(regular=self._is_regular() and self.step > 0 and self._owed is None)
        samples: list[Sampled] = []
        exact = None
        if self.world.is_first:
            best = self._best_model()
            samples = yield from self._closing_samples(best)
            exact = self._exact(best, exact_progress)
        path = self.folder.path / BEST
        record = final_record(
            self._stop or reason, exact,
            progress=self.progress, recipe=self.recipe, dataset=self.dataset, validation_length=self._validation_length,
            resolved=self.resolved, parameters=self.model.parameter_count(), started_at=self.limits.started_at,
            checkpoint=str(path if path.exists() else self.folder.path / LAST),
            streams=shares(self.batches.shape.batch, self.world.size),
        )  # fmt: skip
        yield Finished(record, samples)

    def _closing_samples(self, best: LanguageModel) -> Generator[Event, None, list[Sampled]]:
        # The schedule has written these already, if they are the last step's and a sample was due there.
        written = best is self.model and self.step > 0 and self.step % self.plan.sample_every == 0
        samples: list[Sampled] = []
        with suppress(_StopAskedError):
            for prompt in self.recipe.sample.prompts:
                self._check_stop()
                samples.append(self._sample(best, prompt, closing=True))
                if not written:
                    yield samples[-1]
        return samples

    def _best_model(self) -> LanguageModel:
        """The model that the run reports: ``best``, which without validation is ``last``."""
        if self._validation is None or self.progress.reported_best.step in (None, self.step):
            return self._candidate
        stored = checkpoint.load(self.folder.path / BEST)
        return stored.model(self.resolved.device, self.resolved.engine)

    def _exact(self, best: LanguageModel, progress: Progress | None) -> Exact | None:
        """The exact evaluation of the model that is reported; ``None`` without validation, or if a stop was requested."""
        if self._validation is None:
            return None
        stopping, unknown_id = self._stopping, self.dataset.vocabulary.unknown_id
        with suppress(_StopAskedError):
            return exact_score(
                best, self._validation, self.recipe.evaluate, unknown_id, stopping.exact_characters, stopping.deadline,
                self._check_stop, progress,
            )  # fmt: skip
        return None

    @property
    def _validation_length(self) -> int:
        """How many characters of the validation text can be scored: all but the first."""
        return len(self._validation) - 1 if self._validation is not None else 0

    # -- saving and resuming --

    def _checkpoint(self) -> Checkpoint:
        """All that a resumed run needs."""
        loss_scale = self._update.scale
        return replace(
            self._weights_only(self.model),
            progress=self.progress.state_dict() | {
                "loss_scale": [loss_scale.scale, loss_scale.good_steps],
                "logs": self._owed or self.folder.log_sizes(),
                "owed": self._owed is not None,
            },
            optimizer=optimizer_tensors(self._update.optimizer, self.model),
            state=tuple(self.world.columns(part, self.batches.shape.batch) for part in self._state),
            average=_weights(self._average.model) if self._average is not None else {},
        )  # fmt: skip

    def _weights_only(self, model: LanguageModel) -> Checkpoint:
        threads = self.resolved.threads if self.model.is_thread_invariant else self._tuner.threads
        return Checkpoint(
            recipe=self._stored_recipe,
            vocabulary=self.dataset.vocabulary,
            corpus=self.dataset.fingerprint(),
            resolved={
                "engine": self.resolved.engine, "precision": self.resolved.precision, "threads": threads,
                "device": self.resolved.device.type,
            },
            progress=self.progress.summary(),
            weights=_weights(model),
        )  # fmt: skip

    def _save(self) -> None:
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise self._nonfinite_error("the weights became NaN or infinite")
        self.folder.save(self._checkpoint(), keep_step=self._is_kept())
        self._last_saved = self.step
        if self._validation is None:
            self._save_best()

    def _save_best(self) -> None:
        self.folder.save_best(self._weights_only(self._candidate))

    def _nonfinite_error(self, what: str) -> DivergedError:
        """What happened, what is on disk, and what to change: weights that are not finite are never saved."""
        train = self.recipe.train
        causes = f"a learning rate that is too high (train.lr is {train.lr:g}, try {train.lr / 3:.2g})"
        if train.weight_decay:
            causes += f" or a weight decay that is too high (train.weight_decay is {train.weight_decay:g})"
        if self._last_saved is None:
            return DivergedError(
                f"{what} by step {self.step}; nothing had been saved, so there is no checkpoint to resume from. Usual causes: "
                f"{causes}. Start again with a lower value"
            )
        return DivergedError(
            f"{what} by step {self.step}; {self.folder.path / LAST} holds step {self._last_saved}, the last good state. "
            f"Usual causes: {causes}. Resume with a lower value"
        )

    def _restore(self, stored: Checkpoint) -> None:
        progress, logs = self.progress, stored.progress["logs"]
        progress.load_state_dict(stored.progress)
        B, own = self.batches.shape.batch, slice(self._streams.start, self._streams.stop)
        if any(part.shape[1] != B for part in stored.state):
            raise CheckpointError(
                f"the checkpoint carries the state of {stored.state[0].shape[1]:,} streams, but the run reads {B:,}"
            )
        restore_optimizer(self._update.optimizer, self.model, self.recipe.train, stored.optimizer)
        if self._average is not None and stored.average:  # else it begins with the weights of now
            checkpoint.copy_weights(self._average.model, stored.average)
            self._candidate = self._average.model if progress.best.averaged else self.model
        self._state = tuple(part[:, own].to(self.resolved.device, copy=True).contiguous() for part in stored.state)
        self._update.scale = LossScale(self._update.scale.enabled, *stored.progress["loss_scale"])
        self.folder.truncate_logs(logs)
        self._owed = logs if stored.progress.get("owed") else None
        self._last_saved = self.step if self._owed is None else None
        best_step = progress.best.step
        is_restored = self.world.agree(self.folder.restore_schedule_best(best_step))
        if not is_restored and best_step is not None:
            if best_step == self.step:  # the process ended between `last` and `best`
                self._save_best()
            else:  # lost, or from a future that this run does not have: the next evaluation replaces it
                progress.forget_best()
                self._candidate = self.model


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}
