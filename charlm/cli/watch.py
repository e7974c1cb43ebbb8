"""A training as it is watched: its status line, its evaluations, and Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from charlm.cli.console import Live, duration

if TYPE_CHECKING:
    from charlm.training.events import Evaluated, Event, Finished, StepDone
    from charlm.training.trainer import Trainer


@contextmanager
def stop_on_signals(trainer: Trainer, live: Live) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP request a stop; a second one stops at once, and the checkpoint on disk is whole.

    SIGHUP, which a closed terminal sends, stays ignored under ``nohup``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGHUP:  # the system and the shell both send one when a terminal closes
            return
        if asked:
            raise KeyboardInterrupt
        asked = True
        trainer.request_stop("interrupted")
        live.say("finishing this step and saving; once more to stop at once")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(events: Iterator[Event], trainer: Trainer, live: Live, brief: bool = False) -> Finished:
    """Draw events as they come; returns the last one.

    Args:
        brief: the status line alone, without a line for each evaluation and the samples.
    """
    from charlm.training.events import Evaluated, Finished, Sampled, StepDone, ThreadsChanged

    said_at = time.monotonic()
    last: StepDone | None = None
    sample_shown, threads_told = 0.0, False
    for event in events:
        match event:
            case StepDone():
                last = event
                status, left = status_line(event, trainer, live.is_wide)
                live.update(event.step, status, left)
                if not live.is_drawn and time.monotonic() - said_at > 10:
                    said_at = time.monotonic()
                    live.say(f"{status}  {left}")
                if event.step - (trainer.resumed_from or 0) == 20 and left and not live.is_drawn and not brief:
                    live.say(f"time foreseen: {left.removesuffix(' left')}")
            case Evaluated() if not brief:
                live.say(evaluation_line(event, trainer.train_nats() if last else None, live.is_wide))
            case Sampled() if live.is_drawn and not brief and time.monotonic() - sample_shown > 15:
                sample_shown = time.monotonic()
                live.say(f"{event.prompt}{event.text}", style="dim")
            case ThreadsChanged() if not threads_told:
                threads_told = True
                live.say(
                    f"other programs use this machine's cores: {event.threads} thread{'s' * (event.threads > 1)} from here on, "
                    "adapted while training; train.threads sets a fixed number"
                )
            case Finished():
                return event
            case _:
                pass
    raise AssertionError("a run ends with Finished")


def evaluation_line(event: Evaluated, train_nats: float | None, wide: bool) -> str:
    """One line about a validation; the narrow form fits 80 columns."""
    training = f"training {train_nats:.4f}, " if train_nats is not None else ""
    bits = f", {_bits(event.nats):.3f} bits per character" if wide else ""
    mark = ", best so far" if event.is_best and wide else ", best" if event.is_best else ""
    return (
        f"step {event.step:,}: {training}validation {event.nats:.4f} nats{bits}, perplexity {_perplexity(event.nats):.3f}{mark}"
    )


def status_line(event: StepDone, trainer: Trainer, wide: bool) -> tuple[str, str]:
    """Where the run is, and how long it still takes; the narrow form fits 80 columns."""
    of = f"/{trainer.plan.steps:,}" if trainer.plan.steps is not None else ""
    perplexity, bits, speed = _perplexity(event.nats), _bits(event.nats), event.characters_per_second
    if wide:
        status = (
            f"step {event.step:,}{of}  epoch {event.epoch:.2f}  loss {event.nats:.4f}  perplexity {perplexity:.2f}  "
            f"{bits:.2f} bits/char  {speed:,.0f} char/s"
        )
    else:
        status = f"{event.step:,}{of}  loss {event.nats:.3f}  ppl {perplexity:.2f}  bits {bits:.2f}  {speed:,.0f} char/s"
    if trainer.plan.steps is None:
        return status, ""
    per_step = trainer.batches.shape.batch * trainer.batches.shape.steps
    left = (trainer.plan.steps - event.step) * per_step / event.characters_per_second
    return status, f"{duration(left)} left"


def _perplexity(nats: float) -> float:
    from charlm.evaluation.perplexity import perplexity

    return perplexity(nats)


def _bits(nats: float) -> float:
    return nats / math.log(2)
