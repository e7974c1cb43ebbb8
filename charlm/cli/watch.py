"""A training as it is watched: its status line, its evaluations, and Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
                    live.say(f"estimated time: {left.replace(' left', '')}")
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


def show_exact_evaluation(trainer: Trainer, live: Live) -> Callable[[int, int], None]:
    """A function that draws how far the exact evaluation at a run's end is: (characters done, in all)."""
    began = said_at = 0.0

    def show(done: int, total: int) -> None:
        nonlocal began, said_at
        now = time.monotonic()
        if done == 0:
            began = said_at = now
        left = f"{duration((now - began) * (total - done) / done)} left" if done else ""
        status = f"exact validation  {done:,}/{total:,} characters"
        if live.is_drawn:
            live.update(done, status, f"{left} (Ctrl-C skips)" if left else "", total)
        elif now - said_at > 10:
            said_at = now
            live.say(f"{status}  {left}")

    return show


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


def status_line(event: StepDone, trainer: Trainer, wide: bool) -> tuple[str, str]:
    """The step, its figures, and how long the run still takes; the narrow form fits 80 columns."""
    of = f"/{trainer.plan.total_steps:,}" if trainer.plan.total_steps is not None else ""
    perplexity, bits, speed = _perplexity(event.nats), _bits(event.nats), event.characters_per_second
    if wide:
        status = (
            f"step {event.step:,}{of}  epoch {event.epoch:.2f}  loss {event.nats:.4f}  perplexity {perplexity:.2f}  "
            f"{bits:.2f} bits/char  {speed:,.0f} char/s"
        )
    else:
        status = f"{event.step:,}{of}  loss {event.nats:.3f}  ppl {perplexity:.2f}  bits {bits:.2f}  {speed:,.0f} char/s"
    return status, _time_left(event, trainer)


def _time_left(event: StepDone, trainer: Trainer) -> str:
    """Until the schedule ends or a limit stops the run, whichever comes first; empty if nothing does."""
    limits, ends = trainer.limits, []
    per_step = trainer.batches.shape.batch * trainer.batches.shape.seq_length
    for last in (trainer.plan.total_steps, limits.max_steps):
        if last is not None:
            ends.append((max(0, last - event.step) * per_step / event.characters_per_second, ""))
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
