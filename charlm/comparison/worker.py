"""A worker process of :mod:`charlm.comparison.jobs`: trains one run, and reports it as lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from charlm.config import load_recipe
from charlm.errors import CharlmError
from charlm.training.events import Event, RunStarted, StepDone
from charlm.training.plan import Limits
from charlm.training.run import run, stop_on_signals
from charlm.training.start import Options, start

_EVERY = 0.25
"""Seconds between two reports of a step."""


def main() -> None:
    """Train the run that the first line of standard input describes; stop and save when standard input ends.

    SIGTERM stops and saves too. Ctrl-C and the end of a terminal reach all processes of a terminal; the parent handles them.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # anything else that writes to stdout

    def say(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    try:
        loaded = load_recipe(request["source"], request["overrides"])
        options = Options(
            out=Path(request["out"]),
            limits=Limits.of(loaded.recipe, time.monotonic()),
            resume=request["resume"],
            overwrite=request["overwrite"],
            device=request["device"],
        )
        with start(loaded, options) as begun, stop_on_signals(begun.trainer, [signal.SIGTERM]):
            for text in begun.notices:
                say(notice=text)
            say(stopped_because=run(begun.trainer, [_Steps(say)]).record["stopped_because"])
    except CharlmError as error:
        say(error=type(error).__name__, message=f"{error.parameter} {error.message}".strip(), advice=error.advice)
    except KeyboardInterrupt:
        say(stopped_because="interrupted")


def _stop_at_end_of_input() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock this thread would still hold when the process exits
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Steps:
    """An observer that reports steps."""

    def __init__(self, say: Any) -> None:
        self._say, self._said_at = say, 0.0
        self._total: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._total = event.total_steps
        elif isinstance(event, StepDone) and time.monotonic() - self._said_at > _EVERY:
            self._said_at = time.monotonic()
            self._say(step=event.step, total=self._total, nats=event.nats)
