"""Displays a training: status line, evaluations, samples. Also Ctrl-C."""

from __future__ import annotations

import math
import signal
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from charlm.cli.console import Live, duration

if TYPE_CHECKING:
    from charlm.training.events import Evaluated, Event, RunStarted, StepDone
    from charlm.training.trainer import Trainer


def stop_on_signals(trainer: Trainer, live: Live) -> AbstractContextManager[None]:
    """Ctrl-C, SIGTERM and SIGHUP request a stop; a second one stops at once, and the checkpoint on disk is whole.

    SIGHUP, which a closed terminal sends, stays ignored under ``nohup``.
    """
    from charlm.training import run

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return run.stop_on_signals(trainer, signals, lambda: live.say("finishing this step and saving; once more to stop at once"))


class Watch:
    """An observer that draws events.

    Args:
        brief: only the status line, without evaluations and samples.
    """

    def __init__(self, live: Live, brief: bool = False) -> None:
        self._live, self._brief = live, brief
        self._started: RunStarted | None = None
        self._said_at = time.monotonic()
        self._has_stepped = self._threads_told = False
        self._sample_shown = self._exact_began = 0.0

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        from charlm.training.events import Evaluated, RunStarted, Sampled, StepDone, ThreadsChanged

        live, brief = self._live, self._brief
        match event:
            case RunStarted():
                self._started = event
            case StepDone():
                assert self._started is not None, "RunStarted is the first event"
                self._has_stepped = True
                status, left = status_line(event, self._started, live.is_wide)
                live.update(event.step, status, left)
                if not live.is_drawn and time.monotonic() - self._said_at > 10:
                    self._said_at = time.monotonic()
                    live.say(f"{status}  {left}")
                if event.step - (self._started.resumed_from or 0) == 20 and left and not live.is_drawn and not brief:
                    live.say(f"estimated time: {left.replace(' left', '')}")
            case Evaluated() if not brief:
                live.say(evaluation_line(event, event.train_nats if self._has_stepped else None, live.is_wide))
            case Sampled(closing=False) if live.is_drawn and not brief and time.monotonic() - self._sample_shown > 15:
                self._sample_shown = time.monotonic()
                live.say(f"{event.prompt}{event.text}", style="dim")
            case ThreadsChanged() if not self._threads_told:
                self._threads_told = True
                live.say(
                    f"other programs use this machine's cores: {event.threads} thread{'s' * (event.threads > 1)} from here on, "
                    "adapted while training; train.threads sets a fixed number"
                )
            case _:
                pass

    def exact_evaluation(self, done: int, total: int | None) -> None:
        """Draw how far the exact evaluation at a run's end is, in characters."""
        now = time.monotonic()
        if done == 0:
            self._exact_began = self._said_at = now
        left = f"{duration((now - self._exact_began) * (total - done) / done)} left" if done and total else ""
        status = f"exact validation  {done:,}" + (f"/{total:,} characters" if total else " characters")
        if self._live.is_drawn:
            self._live.update(done, status, f"{left} (Ctrl-C skips)" if left else "", total)
        elif now - self._said_at > 10:
            self._said_at = now
            self._live.say(f"{status}  {left}")


def evaluation_line(event: Evaluated, train_nats: float | None, wide: bool) -> str:
    """One line about a validation, with how much of the validation text was read; the narrow form fits 80 columns."""
    training = f"training {train_nats:.4f}, " if train_nats is not None else ""
    perplexity = _perplexity(event.nats)
    if not wide:
        read = "" if event.characters == event.of else f" ({_rounded(event.characters)} of {_rounded(event.of)})"
        mark = ", best" if event.is_best else ""
        return f"step {event.step:,}: {training}validation {event.nats:.4f}, ppl {perplexity:.3f}{read}{mark}"
    read = f"all {event.of:,}" if event.characters == event.of else f"{event.characters:,} of {event.of:,}"
    mark = ", best" if event.is_best else ""
    return (
        f"step {event.step:,}: {training}validation {event.nats:.4f} nats, {_bits(event.nats):.3f} bits, "
        f"perplexity {perplexity:.3f} on {read} chars{mark}"
    )


def _rounded(characters: int) -> str:
    """``599``, ``20k``, ``1.1M``."""
    if characters < 10_000:
        return str(characters)
    return f"{characters / 1e3:.0f}k" if characters < 999_500 else f"{characters / 1e6:.3g}M"


def status_line(event: StepDone, started: RunStarted, wide: bool) -> tuple[str, str]:
    """The step, its metrics, and how long the run still takes; the narrow form fits 80 columns."""
    of = f"/{started.total_steps:,}" if started.total_steps is not None else ""
    perplexity, bits, speed = _perplexity(event.nats), _bits(event.nats), event.characters_per_second
    if wide:
        status = (
            f"step {event.step:,}{of}  epoch {event.epoch:.2f}  loss {event.nats:.4f}  perplexity {perplexity:.2f}  "
            f"{bits:.2f} bits/char  {speed:,.0f} char/s"
        )
    else:
        status = f"{event.step:,}{of}  loss {event.nats:.3f}  ppl {perplexity:.2f}  bits {bits:.2f}  {speed:,.0f} char/s"
    return status, _time_left(event, started)


def _time_left(event: StepDone, started: RunStarted) -> str:
    """Until the schedule ends or a limit stops the run, whichever comes first; empty if nothing does."""
    limits, ends = started.limits, []
    for last in (started.total_steps, limits.max_steps):
        if last is not None:
            seconds = max(0, last - event.step) * started.characters_per_step / event.characters_per_second
            ends.append((seconds, ""))
    if limits.max_seconds is not None:
        ends.append((max(0.0, limits.max_seconds - (time.monotonic() - limits.started_at)), " (limit)"))
    if not ends:
        return ""
    seconds, why = min(ends)
    return f"{duration(seconds)} left{why}"


def _perplexity(nats: float) -> float:
    from charlm.evaluation.perplexity import perplexity

    return perplexity(nats)


def _bits(nats: float) -> float:
    return nats / math.log(2)
