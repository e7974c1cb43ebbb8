"""Displays a training: the table of validations, samples, the progress line and its time left. Also Ctrl-C."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charlm.cli.console import duration
from charlm.cli.live import Live, LiveRuns

if TYPE_CHECKING:
    from charlm.training.events import Evaluated, Event, RunStarted, Sampled, StepDone
    from charlm.training.run import CanStop


def stop_on_signals(trainer: CanStop, live: Live | LiveRuns, *, announces: bool = True) -> AbstractContextManager[None]:
    """Ctrl-C, SIGTERM and SIGHUP request a stop; a second one stops at once, and the checkpoint on disk is whole.

    SIGHUP, which a closed terminal sends, stays ignored under ``nohup``. One of several processes announces the stop.
    """
    from charlm.training import run

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)

    def on_stop() -> None:
        if announces:
            live.say("finishing this step and saving; once more to stop at once")

    return run.stop_on_signals(trainer, signals, on_stop)


class Watch:
    """An observer that draws events: a table with a row per validation, samples, and the line with the progress bar.

    Args:
        brief: only the progress line, without the table and samples.
    """

    def __init__(self, live: Live, brief: bool = False) -> None:
        self._live, self._brief = live, brief
        self._started: RunStarted | None = None
        self._step: StepDone | None = None  # the latest
        self._pauses = Pauses()
        self._said_at = time.monotonic()
        self._threads_told = False
        self._sample_shown = self._exact_began = 0.0
        self._lines_since_header: int | None = None
        self._scored = (0, 0)  # characters of a validation, and of the whole validation text

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        from charlm.training.events import Evaluated, RunStarted, Sampled, StepDone, ThreadsChanged

        live, brief = self._live, self._brief
        self._pauses.note(event, time.monotonic())
        match event:
            case RunStarted():
                self._started = event
            case StepDone():
                self._step = event
                self._draw_step(event)
            case Evaluated() if not brief:
                self._draw_row(event)
            case Sampled(closing=False) if live.is_drawn and not brief and time.monotonic() - self._sample_shown > 15:
                self._sample_shown = time.monotonic()
                self._say(sample_label(event), style="bold")
                self._say(f"{event.prompt}{event.text}", style="dim")
            case ThreadsChanged() if not self._threads_told:
                self._threads_told = True
                self._say(
                    f"other programs use this machine's cores: {event.threads} thread{'s' * (event.threads > 1)} from here on, "
                    "adapted while training; train.threads sets a fixed number"
                )
            case _:
                pass

    def _draw_step(self, event: StepDone) -> None:
        assert self._started is not None, "RunStarted is the first event"
        live, started = self._live, self._started
        end = time_left(event, started, self._pauses)
        left = f"{duration(end.seconds)} left{' (limit)' * end.is_limit}" if end else ""
        status = status_line(event, started, live.is_wide)
        if end is not None and end.is_limit and started.limits.max_seconds is not None:
            live.update(started.limits.max_seconds - end.seconds, status, left, started.limits.max_seconds)
        else:
            live.update(event.step, status, left, last_step(started))
        if not live.is_drawn and time.monotonic() - self._said_at > 10:
            self._said_at = time.monotonic()
            live.say(f"{status}  {left}")
        if event.step - (started.resumed_from or 0) == 20 and left and not live.is_drawn and not self._brief:
            live.say(f"estimated time: {left.replace(' left', '')}")

    def _draw_row(self, event: Evaluated) -> None:
        """A row of the table; its header first, and again when it has left the screen."""
        if (event.characters, event.of) != self._scored:
            self._scored = (event.characters, event.of)
            read = f"all {event.of:,}" if event.characters == event.of else f"{event.characters:,} of {event.of:,}"
            self._say(f"validation on {read} characters, in nats per character; * best so far")
            self._lines_since_header = None
        if self._lines_since_header is None or (self._live.is_drawn and self._lines_since_header > self._live.height - 4):
            self._say(_cells([name for name, _ in TABLE]), style="bold")
            self._lines_since_header = 0
        self._say(table_row(event, self._step), style="bold green" if event.is_best else "")

    def _say(self, text: str, style: str = "") -> None:
        lines = self._live.say(text, style)
        if self._lines_since_header is not None:
            self._lines_since_header += lines

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


TABLE = (
    ("step", 9), ("epoch", 6), ("training", 8), ("validation", 10), ("bits", 6), ("perplexity", 10), ("char/s", 9),
    ("elapsed", 7),
)  # fmt: skip
"""The columns of the table and their widths: 79 characters with the two spaces between them."""


def table_row(event: Evaluated, step: StepDone | None) -> str:
    """The row of a validation; ``step`` is the latest step of this process, if there was one."""
    training, speed = ("–", "–") if step is None else (f"{event.train_nats:.4f}", f"{step.characters_per_second:,.0f}")
    row = _cells([
        f"{event.step:,}", f"{event.epoch:.2f}", training, f"{event.nats:.4f}", f"{_bits(event.nats):.3f}",
        f"{_perplexity(event.nats):.3f}", speed, _clock(event.seconds_since_start),
    ])  # fmt: skip
    after = sum(width + 2 for _, width in TABLE[:4]) - 2
    return f"{row[:after]}*{row[after + 1 :]}" if event.is_best else row


def _cells(values: Sequence[str]) -> str:
    return "  ".join(value.rjust(width) for value, (_, width) in zip(values, TABLE, strict=True))


def _clock(seconds: float) -> str:
    """``3:20``, ``2:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def sample_label(event: Sampled) -> str:
    """The line above a sample."""
    weights = "" if event.best_step is None else f", best weights (step {event.best_step:,})"
    prompt = f", prompt {event.prompt!r}" if event.prompt else ""
    return f"sample at step {event.step:,}{weights}{prompt}:"


def status_line(event: StepDone, started: RunStarted, wide: bool) -> str:
    """The step and its metrics; the narrow form leaves room for the bar at 80 columns."""
    of = f"/{started.total_steps:,}" if started.total_steps is not None else ""
    if not wide:
        return f"{event.step:,}{of}  loss {event.nats:.3f}"
    return f"step {event.step:,}{of}  epoch {event.epoch:.2f}  loss {event.nats:.4f}  {event.characters_per_second:,.0f} char/s"


_SIDE_BY_SIDE = 3
"""A quick validation reads its pieces side by side, about this many times faster per character than the exact one."""


class Pauses:
    """The time that validations, samples and saving take, measured from the events; for the time left.

    Attributes:
        per_step: seconds of pauses per step, up to the latest validation.
        end: estimated seconds of the exact evaluation at the end.
    """

    def __init__(self) -> None:
        self.per_step = self.end = 0.0
        self._paused = self._noted_at = 0.0
        self._steps = self._steps_at_pause = 0

    def note(self, event: Event, now: float) -> None:
        """Take the time of an event; ``now`` is on the clock of ``time.monotonic``."""
        from charlm.training.events import Evaluated, Sampled, Saved, StepDone
        from charlm.training.plan import EXACT_CHARACTERS

        since, self._noted_at = now - self._noted_at, now
        match event:
            case StepDone():
                self._steps += 1
            case Evaluated() | Sampled() | Saved() if self._steps:
                self._paused += since
                if isinstance(event, Evaluated):
                    self._steps_at_pause = self._steps
                    self.end = _SIDE_BY_SIDE * since * min(event.of, EXACT_CHARACTERS) / event.characters
                self.per_step = self._paused / max(1, self._steps_at_pause)


@dataclass(frozen=True)
class End:
    """When a run ends: in ``seconds``, and whether a time limit ends it."""

    seconds: float
    is_limit: bool


def last_step(started: RunStarted) -> int | None:
    """The step at which the plan or a limit ends the run; ``None``: no step does."""
    return min((step for step in (started.total_steps, started.limits.max_steps) if step is not None), default=None)


def time_left(event: StepDone, started: RunStarted, pauses: Pauses) -> End | None:
    """Until the run ends: by its steps, with the validations in between and at the end, or by a time limit.

    ``None``: nothing ends it.
    """
    limits, ends = started.limits, []
    if (last := last_step(started)) is not None:
        a_step = started.characters_per_step / event.characters_per_second + pauses.per_step
        ends.append(End(max(0, last - event.step) * a_step + pauses.end, is_limit=False))
    if limits.max_seconds is not None:
        ends.append(End(max(0.0, limits.max_seconds - (time.monotonic() - limits.started_at)), is_limit=True))
    return min(ends, key=lambda end: end.seconds, default=None)


def _perplexity(nats: float) -> float:
    from charlm.evaluation.perplexity import perplexity

    return perplexity(nats)


def _bits(nats: float) -> float:
    return nats / math.log(2)
