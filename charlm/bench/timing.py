"""Times several cases in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from charlm.bench.record import Speed

_WARM_UP = 3  # calls


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock in seconds for work on a device. On a GPU, reading it waits until all started work is done."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def measure(
    runs: Sequence[Callable[[], float]],
    repetitions: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int, float | None], None] | None = None,
) -> list[Speed]:
    """Time cases in turns: each once, then each again, …, so that a drift of the machine's speed affects all alike.

    Args:
        runs: each does some work and returns the amount.
        repetitions: turns of each.
        seconds: minimum duration of a turn, which repeats its ``run``.
        progress: called between turns with turns done, all turns, and estimated seconds left. The warm-up counts as a turn.
    """
    done, total = 0, len(runs) * (1 + repetitions)
    lasting: list[float] = []  # seconds of a turn of each case
    for run in runs:
        one_call = warm_up(run, clock)
        lasting.append(max(seconds + one_call / 2, one_call))
        done += 1
        if progress is not None:
            progress(done, total, None)
    turns: list[list[float]] = [[] for _ in runs]
    for repetition in range(repetitions):
        for index, run in enumerate(runs):
            began = clock()
            turns[index].append(_turn(run, seconds, clock))
            lasting[index] = clock() - began
            done += 1
            if progress is not None:
                progress(done, total, sum(lasting[index + 1 :]) + sum(lasting) * (repetitions - repetition - 1))
    return [Speed(statistics.median(rates), min(rates), max(rates)) for rates in turns]


def warm_up(run: Callable[[], float], clock: Callable[[], float] = time.perf_counter) -> float:
    """Call a case a few times, since the first calls choose and compile kernels and allocate memory.

    Returns:
        Seconds of the last call.
    """
    began = 0.0
    for _ in range(_WARM_UP):
        began = clock()
        run()
    return clock() - began


def _turn(run: Callable[[], float], seconds: float, clock: Callable[[], float]) -> float:
    """Work per second."""
    began = clock()
    done = run()
    while (elapsed := clock() - began) < seconds:
        done += run()
    return done / elapsed
