"""The number of CPU threads, for the native kernels and for PyTorch, and a tuner that adapts it to a busy machine.

The threads of a step wait for each other. If another program takes a core, all wait at every step for the thread that lost it,
and two threads can be ten times slower than one. So the number is chosen while the program runs: each piece of work (a training
step, a chunk of an evaluation) is timed, and sometimes another number is tried.

This module knows nothing about models and engines.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

_state: dict[str, int | None] = {"kernels": None, "fixed": None, "most": None}


def limit(threads: int | None) -> int:
    """Set the number of threads that this process may use, and use all of them.

    Args:
        threads: a fixed number; ``None``: at most PyTorch's default (one per core, or ``OMP_NUM_THREADS``), and fewer while
            the machine is busy.

    Returns:
        The number.
    """
    if _state["most"] is None:
        _state["most"] = torch.get_num_threads()
    _state["fixed"] = threads
    use(most())
    return most()


def most() -> int:
    """The number of threads that this process may use."""
    return _state["fixed"] or _state["most"] or torch.get_num_threads()


def is_fixed() -> bool:
    """Whether the user has fixed the number."""
    return _state["fixed"] is not None


def use(threads: int, *, torch_threads: int | None = None) -> None:
    """Set the number of threads.

    Args:
        threads: for the native kernels.
        torch_threads: for PyTorch's operations; ``None``: the same.
    """
    _state["kernels"] = threads
    wanted = threads if torch_threads is None else torch_threads
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def kernel_threads() -> int:
    """The number of threads of the native kernels."""
    return _state["kernels"] or torch.get_num_threads()


# --------------------------------------------------------------------------------------------------------------------
# Other programs
# --------------------------------------------------------------------------------------------------------------------


class Load:
    """How many cores other programs use; known on Linux only."""

    def __init__(self) -> None:
        self._before = self._measure()
        self._others: float | None = None

    def others(self, seconds: float = 0.1) -> float | None:
        """The number of cores that other programs used recently; ``None``: unknown.

        Args:
            seconds: shortest interval to measure. After a shorter one, the previous result is returned.
        """
        if self._before is None or time.monotonic() - self._before[0] < seconds:
            return self._others
        now = self._measure()
        if now is None:
            return self._others
        passed, busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        self._before, self._others = now, max(0.0, busy - own) / passed
        return self._others

    @staticmethod
    def _measure() -> tuple[float, float, float] | None:
        """Seconds of wall time, and of CPU time: of all programs on our cores, and of this process and its children."""
        try:
            cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            tick = os.sysconf("SC_CLK_TCK")
            busy = 0
            for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
                name, *counts = line.split()
                if name in cores:
                    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
                    busy += user + nice + system + irq + softirq + steal
        except (AttributeError, OSError, ValueError):
            return None
        own = os.times()
        return time.monotonic(), busy / tick, own.user + own.system + own.children_user + own.children_system


# --------------------------------------------------------------------------------------------------------------------
# The tuner
# --------------------------------------------------------------------------------------------------------------------

_WINDOW = 0.15
"""Seconds for measuring a rate; at least one piece."""

_GAIN = 1.08
"""Another number of threads is chosen if it is faster by this factor."""

_FELL = 0.7
"""A rate below this fraction of the best one starts a trial at once."""

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 30.0
"""Seconds between two trials; doubled after each trial without a change."""

_chosen: dict[str, int] = {}
"""Kind of work → the number that the last tuner of this kind chose."""

_load = Load()


@dataclass
class Tuner:
    """Chooses the number of threads for the next piece of work.

    If results do not depend on the number of threads (``invariant``), it can change at any piece. The tuner measures the rate
    over a window, tries half or twice as many threads for a window, and keeps the faster number. Trials without a change become
    rarer. A falling rate starts one at once. More threads are not tried while other programs use the cores.

    Otherwise the number changes only in :meth:`choose`, to the number of cores that other programs leave free.

    Args:
        kind: the kind of work, such as ``training``; the next tuner of this kind starts with the number that this one chose.
        invariant: results do not depend on the number of threads. PyTorch's operations then get one thread.
        threads: the initial number; 0: see :meth:`choose`.
        changed: is called with each new number, except those of trials.
        most: the maximum.
        clock: returns seconds.
    """

    kind: str
    invariant: bool
    threads: int = 0
    changed: Callable[[int], None] | None = None
    most: int = field(default_factory=most)
    clock: Callable[[], float] = time.perf_counter
    load: Load = _load
    _work: float = 0.0
    _seconds: float = 0.0
    _trial: int | None = None
    _rate: float = 0.0  # last measured with `threads`
    _best: float = 0.0  # since `threads` was chosen
    _pause: float = 0.0
    _waited: float = 0.0

    def __post_init__(self) -> None:
        self._is_fixed = is_fixed() or self.most == 1
        if self._is_fixed:
            self.threads = self.most
        elif not self.threads:
            self.threads = min(_chosen.get(self.kind, self.most), self.most)
            self.choose()
        self.threads = min(self.threads, self.most)

    def choose(self) -> None:
        """Choose the number of cores that other programs leave free, if it is known."""
        others = None if self._is_fixed else self.load.others()
        if others is not None:
            self._take(min(self.most, max(1, math.floor(self.most - others + 0.5))))

    @property
    def next(self) -> int:
        """The number of threads for the next piece, trials included."""
        return self._trial or self.threads

    @contextmanager
    def piece(self, work: float) -> Iterator[None]:
        """Run a piece of work with the chosen number of threads, and time it.

        Args:
            work: its amount, such as a number of characters.
        """
        use(self.next, torch_threads=1 if self.invariant else None)
        self.load.others(1.0)  # keeps the measured interval short
        began = self.clock()
        yield
        if self.invariant and not self._is_fixed:
            self.observe(work, self.clock() - began)

    def observe(self, work: float, seconds: float) -> None:
        """Record the time of a piece of work, and decide about the next."""
        self._work, self._seconds, self._waited = self._work + work, self._seconds + seconds, self._waited + seconds
        if self._trial is not None and self._seconds > 3 * self._work / self._rate:
            self._end_trial(0.0)  # too slow: no need to measure further
        elif self._seconds >= _WINDOW:
            rate, self._work, self._seconds = self._work / self._seconds, 0.0, 0.0
            if self._trial is not None:
                self._end_trial(rate)
            else:
                self._rate, self._best = rate, max(self._best, rate)
                if rate < _FELL * self._best or self._waited >= self._pause:
                    self._begin_trial()

    def _begin_trial(self) -> None:
        is_first, fell = self._pause == 0, self._rate < _FELL * self._best
        others = self.load.others()
        # If the load is unknown, the growing pauses limit the cost of trials.
        has_room = others is None or self.most - others >= self.threads + 0.5
        is_crowded = others is None or self.most - others < self.threads - 0.25
        if self.threads < self.most and has_room:
            self._trial = min(self.most, 2 * self.threads)
        elif self.threads > 1 and (is_first or fell or is_crowded):
            self._trial = self.threads // 2
        self._best, self._waited, self._pause = self._rate, 0.0, self._pause or _FIRST_PAUSE

    def _end_trial(self, rate: float) -> None:
        assert self._trial is not None
        tried, self._trial = self._trial, None
        self._work = self._seconds = self._waited = 0.0
        if rate > _GAIN * self._rate:
            self._rate, self._best, self._pause = rate, rate, _FIRST_PAUSE
            self._take(tried)
        else:
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)

    def _take(self, threads: int) -> None:
        is_new = threads != self.threads
        self.threads = _chosen[self.kind] = threads
        if is_new and self.changed is not None:
            self.changed(threads)
