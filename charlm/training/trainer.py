"""The training loop. It yields events and prints nothing: the console draws them, the run's folder records them.

One step: read B·T characters from where the last step stopped, backpropagate through these T steps alone (truncated
backpropagation through time: the state goes on, its gradient does not), clip, update. In between, at steps that follow
from the recipe, the trainer evaluates, samples and saves.

Resuming is exact because a step is a function of what a checkpoint holds: weights, moments, carried state, the position in
the text and counters. Stopping early, for whatever reason, changes none of these.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charlm import checkpoint, sampling
from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.data.dataset import Dataset, Text
from charlm.data.streams import Batches
from charlm.errors import CheckpointError, DivergedError
from charlm.evaluation import perplexity
from charlm.model.cells import State
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.run_files import BEST, LAST
from charlm.schedules import learning_rate
from charlm.threads import Tuner
from charlm.training.events import Evaluated, Event, Finished, Sampled, Saved, StepDone, ThreadsChanged
from charlm.training.loss_scale import LossScale
from charlm.training.optimizer import optimizer_tensors, restore_optimizer
from charlm.training.plan import EXACT_CHARACTERS, Limits, Plan, characters_of_evaluation
from charlm.training.resolve import Resolved
from charlm.training.run_folder import RunFolder
from charlm.training.update import Updater
from charlm.training.weight_average import WeightAverage

RECENT_STEPS = 100
"""``train_nats`` is the mean over the last epoch or so many steps, whichever is shorter."""


_CLOSING_SECONDS = 1.0
"""What remains for writing the record when a time limit ends the last evaluation."""


class _StopAskedError(Exception):
    """Ends an evaluation or a sample because a stop was requested."""


class _TimeOverError(Exception):
    """Ends an evaluation because the time limit is reached; what it has read so far counts."""


class Trainer:
    """Trains one model. Iterate over :meth:`run`; :meth:`request_stop` may be called from a signal handler.

    Args:
        recipe: what to do.
        stored_recipe: the same as a checkpoint may hold it (no absolute paths).
        dataset: the text.
        model: on its device, with initial or stored weights.
        resolved: device, engine, precision.
        folder: where to write; locked by this process.
        limits: when to stop.
        resume: the checkpoint that ``model``'s weights come from, to go on from.
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
    ) -> None:
        self.recipe, self.dataset, self.model, self.resolved = recipe, dataset, model, resolved
        self.folder, self.limits = folder, limits
        self._stored_recipe = stored_recipe
        self.batches = Batches(dataset.text("train"), recipe.train, recipe.data.unknown_rate)
        self.plan = Plan.of(recipe, self.batches)
        self.validation = self._validation_text()
        self._update = Updater(model, recipe.train, resolved.precision)
        self.resumed_from: int | None = None
        # Where the number of threads decides about last bits, a resumed run begins with the number that the run had.
        threads = resolved.threads if resume is not None and not model.is_thread_invariant else 0
        self._tuner = Tuner("training", model.is_thread_invariant, threads)
        self._threads = self._tuner.threads  # as last told

        self.step = 0
        self.epoch = 0
        self._index = 0  # of the next batch in its epoch
        self._state: State = model.zero_state(self.batches.shape.batch)
        self._recent: deque[tuple[float, int]] = deque(maxlen=min(RECENT_STEPS, self.batches.epoch_length(0)))
        self._speeds: deque[tuple[int, float]] = deque(maxlen=50)
        self._average = WeightAverage(model, recipe.train.average) if recipe.train.average else None
        self._candidate = model  # to become best: the weights, or their average if that was better when last validated
        self._best: dict[str, Any] = {"nats": None, "step": None}  # of the schedule's own evaluations
        self._stopped_best: dict[str, Any] | None = None  # likewise of a stop's evaluation, where that beats it
        self._worse_in_a_row = 0
        self._validation_nats: float | None = None
        self._trained = {"characters": 0, "seconds": 0.0}
        self._trained_here = {"characters": 0, "seconds": 0.0}
        self._stop: str | None = None
        self._is_pausing = False  # between two steps; the validation of a stop is not interrupted
        self._owed: dict[str, int] | None = None
        """Sizes of the logs after the step, if a stop interrupted the samples or the validation that follow it."""
        self._last_saved: int | None = None
        self._closing_seconds = 0.0
        self._longest_pause = 0.0  # between two steps: samples, validation, save
        self._expected_pause = 0.0  # until one has been timed
        self._evaluated_at: int | None = None
        self._exact_limit = EXACT_CHARACTERS
        if resume is not None:
            self._restore(resume)

    def request_stop(self, reason: str) -> None:
        """Stop after the current step: save, evaluate, and finish."""
        self._stop = reason

    def run(self, exact_progress: Progress | None = None) -> Iterator[Event]:
        """Train to the end, or until something stops the run.

        Args:
            exact_progress: is told how far the exact evaluation at the end is; :meth:`request_stop` ends it early.

        Raises:
            DivergedError: loss or gradient stopped being finite; the state before that step has been saved.
        """
        if self.limits.max_seconds is not None:
            self._closing_seconds = self._estimate_closing_seconds()
        if self._owed is not None:
            yield from self._pause()
        while (reason := self._reason_to_stop()) is None:
            yield self._train_step()
            yield from self._told_threads()
            yield from self._pause()
        yield from self._finish(reason, exact_progress)

    # -- one step --

    def _train_step(self) -> StepDone:
        began = time.perf_counter()
        train, device = self.recipe.train, self.resolved.device
        batch = self.batches.batch(self.epoch, self._index)
        state = self.model.zero_state(batch.inputs.shape[1]) if batch.fresh else self._state
        inputs, targets = batch.inputs.to(device), batch.targets.to(device)
        dropout = Dropout(self.recipe.model, train.seed, self.step)
        rate = learning_rate(train, self.step, self.plan.total_steps, self.batches.epoch_length(0))
        with self._tuner.piece(batch.scored):
            outcome = self._update(inputs, targets, batch.scored, state, rate, dropout)
        nats, norm = outcome.nats, outcome.norm
        if outcome.diverged:
            self._diverged(nats, norm)
        self._state = outcome.state

        epoch = self.epoch + (self._index + 1) / self.batches.epoch_length(self.epoch)
        self._recent.append((nats * batch.scored, batch.scored))
        self.step += 1
        self._index += 1
        if self._average is not None:
            self._average.update(self.step)
        if self._index == self.batches.epoch_length(self.epoch):
            self.epoch, self._index = self.epoch + 1, 0
        seconds = time.perf_counter() - began
        for counters in (self._trained, self._trained_here):
            counters["characters"] += batch.scored
            counters["seconds"] += seconds
        self._speeds.append((batch.scored, seconds))
        speed = sum(n for n, _ in self._speeds) / sum(s for _, s in self._speeds)
        self.folder.record(
            {"kind": "step", "step": self.step, "epoch": round(epoch, 4), "nats": nats, "learning_rate": rate,
             "gradient_norm": norm, "characters": self._trained["characters"], "seconds": round(self._trained["seconds"], 3)}
        )  # fmt: skip
        return StepDone(self.step, epoch, nats, rate, norm, speed)

    def _diverged(self, nats: float, norm: float) -> None:
        """Keep the last good state and give up: the bad gradient never reaches the optimizer."""
        if self._last_saved != self.step:
            self._save()
        what = f"the loss became {nats}" if not math.isfinite(nats) else f"the gradient's norm became {norm}"
        lower = self.recipe.train.lr / 3
        raise DivergedError(
            f"{what} at step {self.step + 1}; the update was not applied, and {self.folder.path / LAST} holds step "
            f"{self.step}. Usual cures: a lower learning rate (--set train.lr={lower:.2g} --resume auto), a warm-up "
            "(train.warmup), stronger clipping (train.clip), a lower train.weight_decay"
        )

    def _told_threads(self) -> Iterator[ThreadsChanged]:
        if self._tuner.threads != self._threads:
            self._threads = self._tuner.threads
            self.folder.record({"kind": "threads", "step": self.step, "threads": self._threads})
            yield ThreadsChanged(self.step, self._threads)

    # -- between steps --

    def _pause(self) -> Iterator[Event]:
        """What is to be done between two steps, unless a stop interrupts it: then a resumed run does all of it."""
        began = time.perf_counter()
        self._owed, logs = None, self.folder.log_sizes() if self._pauses_long() else None
        self._is_pausing = True
        try:
            yield from self._between_steps()
        except _StopAskedError:
            self._owed = logs
        finally:
            self._is_pausing = False
        self._longest_pause = max(self._longest_pause, time.perf_counter() - began)

    def _pauses_long(self) -> bool:
        return self.step % self.plan.sample_every == 0 or self._is_regular()

    def _check_stop(self, done: int = 0, total: int | None = None) -> None:
        """Progress of a sample or an evaluation: end it if a stop was requested and it is not done."""
        if self._stop is not None and (total is None or done < total):
            raise _StopAskedError

    def _between_steps(self) -> Iterator[Event]:
        # In this order, so that a checkpoint's log sizes cover the samples and the evaluation of its own step.
        if self.step % self.plan.sample_every == 0:
            for prompt in self.recipe.sample.prompts:
                yield self._sample(self.model, prompt)
        if self._is_regular():
            yield self._evaluate(regular=True)
            if not self.model.is_thread_invariant:
                self._tuner.choose()
        if (self.step % self.plan.checkpoint_every == 0 or self._is_kept()) and self._last_saved != self.step:
            self._save()
        if self._last_saved == self.step:
            yield Saved(self.step)

    def _is_kept(self) -> bool:
        keep = self.recipe.checkpoint.keep_every
        return keep is not None and self.step > 0 and self.step % keep == 0

    def _is_regular(self) -> bool:
        return self.validation is not None and (self.step % self.plan.evaluate_every == 0 or self.step == self.plan.total_steps)

    def _evaluate(self, regular: bool) -> Evaluated:
        """The cheap validation.

        Only a regular one can change the schedule's best and early stopping. Where that of a stop is better, the weights of the
        stop become ``best`` on disk and are reported, and the schedule's own best is kept beside them for a resumed run.
        """
        score, candidate = self._validate(self.model), self.model  # a stop that interrupts it must change nothing
        figures = {}
        if self._average is not None:
            averaged = self._validate(self._average.model)
            figures = {"weights_nats": score.nats_per_character, "average_nats": averaged.nats_per_character}
            if averaged.nats_per_character < score.nats_per_character:
                candidate, score = self._average.model, averaged
        self._candidate = candidate
        nats = score.nats_per_character
        self._validation_nats = nats
        self._evaluated_at, self._expected_pause = self.step, 0.0
        is_best = math.isfinite(nats) and (self._best["nats"] is None or nats < self._best["nats"])
        entry = {
            "kind": "evaluation",
            "step": self.step,
            "epoch": self._epochs_done(),
            "nats": nats,
            **figures,
            "regular": regular,
            "wall": round(time.monotonic() - self.limits.started_at, 2),
        }
        self.folder.record(entry | {"characters": score.characters})
        if regular:
            self._worse_in_a_row = 0 if is_best else self._worse_in_a_row + 1
            if is_best:
                self._best = {"nats": nats, "step": self.step, "averaged": self._candidate is not self.model}
                self._save()  # `last` first, so that `best` never comes from a future that a resumed run does not have
        elif is_best:
            if self._best["step"] is not None:
                self.folder.keep_schedule_best()
            self._stopped_best = {"nats": nats, "step": self.step, "averaged": self._candidate is not self.model}
        if is_best:
            self._save_best()
        return Evaluated(self.step, nats, is_best, regular, score.characters, self.validation_length)

    def _validate(self, model: LanguageModel) -> perplexity.Score:
        assert self.validation is not None
        options = self.recipe.evaluate
        try:
            return perplexity.segments(
                model, self.validation, pieces=options.segments, warm=options.warm, characters=options.characters,
                progress=self._check_stop if self._is_pausing else None,
            )  # fmt: skip
        except DivergedError:
            raise self._nonfinite_error("the model's scores became NaN or infinite") from None

    def _sample(self, model: LanguageModel, prompt: str, record: bool = True) -> Sampled:
        options = self.recipe.sample
        params = sampling.SamplingParams(temperature=options.temperature)
        vocabulary, seed = self.dataset.vocabulary, self.recipe.train.seed
        try:
            text = sampling.sample(
                model, vocabulary, prompt, options.length, params, seed, self.step, progress=self._check_stop
            )
        except DivergedError:
            raise self._nonfinite_error("the model's scores became NaN or infinite") from None
        if record:
            best = "" if model is self.model else f", best weights (step {self._reported_best['step']})"
            heading = f"step {self.step}, epoch {self._epochs_done():.2f}{best}, prompt {prompt!r}"
            self.folder.record_sample(heading, prompt + text)
        return Sampled(self.step, prompt, text)

    def _epochs_done(self) -> float:
        return round(self.epoch + self._index / self.batches.epoch_length(self.epoch), 4)

    # -- stopping --

    def _reason_to_stop(self) -> str | None:
        if self._stop is not None:
            return self._stop
        if self.plan.total_steps is not None and self.step >= self.plan.total_steps:
            return "finished"
        patience = self.recipe.evaluate.patience
        if patience is not None and self._worse_in_a_row >= patience:
            return "early stopping"
        if self.limits.max_steps is not None and self.step >= self.limits.max_steps:
            return "max steps"
        if self.limits.max_seconds is not None:
            a_step = max((seconds for _, seconds in self._speeds), default=0.0)
            elapsed = time.monotonic() - self.limits.started_at
            pause = max(self._longest_pause, self._expected_pause)
            if elapsed + a_step + pause + self._closing_seconds > self.limits.max_seconds:
                return "max time"
        return None

    def _estimate_closing_seconds(self) -> float:
        """How long the end will take (exact evaluation, samples, save), from a short trial; and a pause for the cheap one."""
        began = time.perf_counter()
        sampling.sample(self.model, self.dataset.vocabulary, "", 32, sampling.SamplingParams(), 0)
        per_sampled = (time.perf_counter() - began) / 32
        samples = 1.2 * per_sampled * self.recipe.sample.length * len(self.recipe.sample.prompts)
        if self.validation is None:
            return _CLOSING_SECONDS + samples
        per_character = perplexity.seconds_per_character(self.model, self.validation)
        limit = self.limits.max_seconds or math.inf
        read = characters_of_evaluation(self.recipe, len(self.validation))
        self._expected_pause = min(0.2 * limit, read * per_character / 3)  # the pieces are read side by side
        # A fifth of the time at most: of a longer text the exact figure covers the first part, and says how much.
        affordable = max(256, int(0.2 * limit / per_character))
        self._exact_limit = min(len(self.validation) - 1, self._exact_limit, affordable)
        return _CLOSING_SECONDS + 1.4 * per_character * self._exact_limit + samples

    def _finish(self, reason: str, exact_progress: Progress | None) -> Iterator[Event]:
        if self._last_saved != self.step:
            self._save()
            yield Saved(self.step)
        if self.validation is not None and self._evaluated_at != self.step:
            yield self._evaluate(regular=self._is_regular() and self.step > 0 and self._owed is None)
        best = self._best_model()
        samples = self._closing_samples(best)
        score, same = self._exact_score(best, exact_progress)
        yield Finished(self._record(self._stop or reason, score, same), samples)

    @property
    def _reported_best(self) -> dict[str, Any]:
        return self._stopped_best or self._best

    def _closing_samples(self, best: LanguageModel) -> list[Sampled]:
        # The schedule has written these already, if they are the last step's and a sample was due there.
        written = best is self.model and self.step > 0 and self.step % self.plan.sample_every == 0
        samples: list[Sampled] = []
        with suppress(_StopAskedError):
            for prompt in self.recipe.sample.prompts:
                self._check_stop()
                samples.append(self._sample(best, prompt, record=not written))
        return samples

    def _best_model(self) -> LanguageModel:
        """The model that the run reports: ``best``, which without validation is ``last``."""
        if self.validation is None or self._reported_best["step"] in (None, self.step):
            return self._candidate
        stored = checkpoint.load(self.folder.path / BEST)
        return stored.model(self.resolved.device, self.resolved.engine)

    def _exact_score(self, best: LanguageModel, progress: Progress | None) -> tuple[perplexity.Score | None, float | None]:
        """The exact result of the model that is reported; ``None`` without validation, or if a stop was requested.

        It covers the beginning of the text alone where there is no time for all of it.

        Returns:
            The score, and the exact nats per character of those characters alone that the quick validation scores.
        """
        if self.validation is None:
            return None, None

        scored = 0
        deadline = self.limits.started_at + (self.limits.max_seconds or math.inf) - _CLOSING_SECONDS

        def check(done: int, total: int | None) -> None:
            nonlocal scored
            scored = done
            if self._stop is not None:
                raise _StopAskedError
            if time.monotonic() > deadline and 0 < done < len(each):
                raise _TimeOverError
            if progress is not None:
                progress(done, total)

        text, unknown_id = self.validation[slice(0, self._exact_limit + 1)], self.dataset.vocabulary.unknown_id
        each = np.empty(len(text) - 1)
        try:
            check(0, len(each))
            score = perplexity.carried(best, text, unknown_id=unknown_id, progress=check, each=each)
        except _StopAskedError:
            return None, None
        except _TimeOverError:
            unknown = int((text.ids(1, scored + 1) == unknown_id).sum()) if unknown_id is not None else 0
            score = perplexity.Score(float(each[:scored].sum()), scored, unknown)
        options = self.recipe.evaluate
        starts, lengths = perplexity.spread(
            len(self.validation), pieces=options.segments, warm=options.warm, characters=options.characters
        )
        if starts[-1] + lengths[-1] > scored:
            return score, None
        same = [each[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        return score, float(np.concatenate(same).mean())

    @property
    def validation_length(self) -> int:
        """How many characters of the validation text can be scored: all but the first."""
        return len(self.validation) - 1 if self.validation is not None else 0

    def _quick_characters(self) -> int:
        """How many of them the cheap validation scores."""
        return min(self.validation_length, self.recipe.evaluate.characters or self.validation_length)

    def _record(self, reason: str, score: perplexity.Score | None, same: float | None) -> dict[str, Any]:
        train_nats, best = self.train_nats(), self._reported_best
        if score is not None:
            nats, characters = score.nats_per_character, score.characters
        elif best["nats"] is not None:
            nats, characters = best["nats"], self._quick_characters()
        elif self._validation_nats is not None:
            nats, characters = self._validation_nats, self._quick_characters()
        else:
            nats, characters = train_nats, sum(n for _, n in self._recent)
        speed = self._trained_here if self._trained_here["seconds"] else self._trained
        record = {
            "perplexity": perplexity.perplexity(nats),
            "nats_per_character": nats,
            "bits_per_character": nats / math.log(2),
            "measured_on": "training" if self.validation is None else "validation",
            "context": "carried" if score is not None else "training" if self.validation is None else "segments",
            "characters": characters,
            "unknown_characters": score.unknown_characters if score is not None else None,
            "characters_per_second": speed["characters"] / speed["seconds"] if speed["seconds"] else 0.0,
            "step": self.step,
            "epoch": self._epochs_done(),
            "train_nats": train_nats,
            "train_perplexity": perplexity.perplexity(train_nats),
            "validation_nats": self._validation_nats,
            "best_validation_nats": self._validation_nats if best["nats"] is None else best["nats"],
            "best_step": best["step"],
            "best_averaged": bool(best.get("averaged")),
            "schedule_best_step": self._best["step"],
            "validation_characters": self._quick_characters(),
            "validation_length": self.validation_length,
            "exact_nats_of_validation_characters": same,
            "training_characters": self._trained["characters"],
            "training_seconds": self._trained["seconds"],
            "seconds": time.monotonic() - self.limits.started_at,
            "resumed_from": self.resumed_from,
            "device": str(self.resolved.device),
            "engine": self.resolved.engine,
            "precision": self.resolved.precision,
            "threads": self.resolved.threads,
            "seed": self.recipe.train.seed,
            "parameters": self.model.parameter_count(),
            "corpus": self.dataset.fingerprint(),
            "checkpoint": str(self.folder.path / (BEST if (self.folder.path / BEST).exists() else LAST)),
            "stopped_because": reason,
        }
        self.folder.record({"kind": "finished", **record})
        return record

    def train_nats(self) -> float:
        """Mean over the last epoch or the last 100 steps, whichever is shorter; Σ nats / Σ scored."""
        scored = sum(n for _, n in self._recent)
        return sum(nats for nats, _ in self._recent) / scored if scored else math.nan

    def _validation_text(self) -> Text | None:
        start, stop = self.dataset.splits["validation"]
        return self.dataset.text("validation") if stop - start >= 2 else None

    # -- saving and going on --

    def _checkpoint(self, model: LanguageModel, whole: bool) -> Checkpoint:
        weights = _weights(model)
        progress: dict[str, Any] = {
            "step": self.step,
            "epoch": self._epochs_done(),
            "characters": self._trained["characters"],
            "train_nats": self.train_nats() if self._recent else None,
            "validation_nats": self._validation_nats,
            "evaluated_at": self._evaluated_at,
            "best": self._best if whole else self._reported_best,
        }
        slim = Checkpoint(
            recipe=self._stored_recipe,
            vocabulary=self.dataset.vocabulary,
            corpus=self.dataset.fingerprint(),
            resolved={
                "engine": self.resolved.engine, "precision": self.resolved.precision,
                "threads": self.resolved.threads if self.model.is_thread_invariant else self._tuner.threads,
                "device": self.resolved.device.type,
            },
            progress=progress,
            weights=weights,
        )  # fmt: skip
        if not whole:
            return slim
        going_on = {
            "position": [self.epoch, self._index],
            "recent": [list(entry) for entry in self._recent],
            "worse_in_a_row": self._worse_in_a_row,
            "seconds": self._trained["seconds"],
            "loss_scale": [self._update.scale.scale, self._update.scale.good_steps],
            "logs": self._owed or self.folder.log_sizes(),
            "owed": self._owed is not None,
        }
        return replace(
            slim,
            progress=progress | going_on,
            optimizer=optimizer_tensors(self._update.optimizer, self.model),
            state=self._state,
            average=_weights(self._average.model) if self._average is not None else {},
        )

    def _save(self) -> None:
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise self._nonfinite_error("the weights became NaN or infinite")
        self.folder.save(self._checkpoint(self.model, whole=True), keep_step=self._is_kept())
        self._last_saved = self.step
        if self.validation is None:
            self._save_best()

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
            f"Usual causes: {causes}. Set a lower value and resume with --resume auto"
        )

    def _save_best(self) -> None:
        self.folder.save_best(self._checkpoint(self._candidate, whole=False))

    def _restore(self, stored: Checkpoint) -> None:
        progress = stored.progress
        _check_position(stored, self._state, self.batches)
        restore_optimizer(self._update.optimizer, self.model, self.recipe.train, stored.optimizer)
        if self._average is not None and stored.average:  # else it begins with the weights of now
            checkpoint.copy_weights(self._average.model, stored.average)
            self._candidate = self._average.model if progress["best"].get("averaged") else self.model
        self._state = tuple(part.to(self.resolved.device, copy=True) for part in stored.state)
        self.step = self.resumed_from = progress["step"]
        self.epoch, self._index = progress["position"]
        self._recent.extend((nats, scored) for nats, scored in progress["recent"])
        self._best = dict(progress["best"])
        self._worse_in_a_row = progress["worse_in_a_row"]
        self._validation_nats, self._evaluated_at = progress["validation_nats"], progress.get("evaluated_at")
        self._trained = {"characters": progress["characters"], "seconds": progress["seconds"]}
        self._update.scale = LossScale(self._update.scale.enabled, *progress["loss_scale"])
        self.folder.truncate_logs(progress["logs"])
        self._owed = progress["logs"] if progress.get("owed") else None
        self._last_saved = self.step if self._owed is None else None
        if not self.folder.restore_schedule_best(self._best["step"]) and self._best["step"] is not None:
            if self._best["step"] == self.step:  # the process ended between `last` and `best`
                self._save_best()
            else:  # lost, or from a future that this run does not have: the next evaluation fills it
                self._best = {"nats": None, "step": None}
                self._validation_nats, self._evaluated_at, self._candidate = None, None, self.model


def _check_position(stored: Checkpoint, state: State, batches: Batches) -> None:
    """Refuse a checkpoint whose position or carried state is not one of this text and batch size."""
    epoch, index = stored.progress["position"]
    if not index < batches.epoch_length(epoch):
        raise CheckpointError(f"the checkpoint's position, batch {index:,} of epoch {epoch:,}, is beyond the end of the epoch")
    if [part.shape for part in stored.state] != [part.shape for part in state]:
        raise CheckpointError(
            f"the checkpoint carries the state of {stored.state[0].shape[1]:,} streams, but the run reads {state[0].shape[1]:,}"
        )


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}
