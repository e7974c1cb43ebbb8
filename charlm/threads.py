"""How many CPU threads compute: a number for our own kernels, one for PyTorch, and a tuner that adapts them to a busy machine.

Threads that work on one step wait for each other. Where another program takes a core, the others wait for the thread that lost
it, step after step, and two threads can be ten times slower than one. So the number is chosen while the program runs: the work
comes in pieces (a training step, a chunk of an evaluation), each piece is timed, and now and then another number is tried.

This module knows nothing of models and engines.
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
        threads: exactly so many, always; ``None``: what PyTorch took at its start (one per core, or ``OMP_NUM_THREADS``), and
            fewer of them where the machine is busy.

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
    """Whether the user has set the number."""
    return _state["fixed"] is not None


def use(threads: int, *, torch_threads: int | None = None) -> None:
    """Compute with so many threads from now on.

    Args:
        threads: of our own kernels.
        torch_threads: of PyTorch's operations; ``None``: the same.
    """
    _state["kernels"] = threads
    wanted = threads if torch_threads is None else torch_threads
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def kernel_threads() -> int:
    """The number of threads that our own kernels use."""
    return _state["kernels"] or torch.get_num_threads()


# --------------------------------------------------------------------------------------------------------------------
# Other programs
# --------------------------------------------------------------------------------------------------------------------


class Load:
    """How many cores other programs use. Linux tells; elsewhere nothing is known."""

    def __init__(self) -> None:
        self._before = self._look()
        self._others: float | None = None

    def others(self, seconds: float = 0.1) -> float | None:
        """Cores that other programs used lately; ``None``: not known.

        Args:
            seconds: a shorter time than this is not looked at: the answer is then the one before.
        """
        if self._before is None or time.monotonic() - self._before[0] < seconds:
            return self._others
        now = self._look()
        if now is None:
            return self._others
        passed, busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        self._before, self._others = now, max(0.0, busy - own) / passed
        return self._others

    @staticmethod
    def _look() -> tuple[float, float, float] | None:
        """Seconds of wall time, of all programs on our cores, and of this process and its children."""
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
"""Seconds that a rate is measured over; one piece at least."""

_GAIN = 1.08
"""Another number of threads must be so much faster to be taken."""

_FELL = 0.7
"""A rate that falls to this share of the best asks for a trial at once."""

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 30.0
"""Seconds from one trial to the next: doubled each time that a trial changes nothing."""

_chosen: dict[str, int] = {}
"""What the tuners of this process chose last, by the kind of work."""

_load = Load()


@dataclass
class Tuner:
    """Chooses how many threads the next piece of work gets.

    Where the results have the same bits for any number of threads (``invariant``), the number is chosen during the work: the
    tuner measures the rate over a window, tries half or twice as many threads for a window, and keeps the faster. Trials become
    rare while they change nothing; a rate that falls causes one at once. More threads are not tried where the system says that
    other programs use the cores.

    Elsewhere the number changes in :meth:`choose` only, by what the system says: as many threads as other programs leave cores.

    Args:
        kind: of work, such as ``training``: the next tuner of that kind begins with what this one chose.
        invariant: our own kernels do all that depends on threads. PyTorch's operations then get one thread.
        threads: the number to begin with; 0: see :meth:`choose`.
        changed: is told a new number that stays (trials are not told).
        most: threads to choose from.
        clock: seconds.
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
    _rate: float = 0.0  # of `threads`, when it was last measured
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
        """Take as many threads as other programs leave cores, where the system says how many that is."""
        others = None if self._is_fixed else self.load.others()
        if others is not None:
            self._take(min(self.most, max(1, math.floor(self.most - others + 0.5))))

    @property
    def next(self) -> int:
        """How many threads the next piece gets, trials included."""
        return self._trial or self.threads

    @contextmanager
    def piece(self, work: float) -> Iterator[None]:
        """Run a piece of work with the chosen number of threads, and time it.

        Args:
            work: how much it is, such as characters.
        """
        use(self.next, torch_threads=1 if self.invariant else None)
        self.load.others(1.0)  # so that an answer is never of long ago
        began = self.clock()
        yield
        if self.invariant and not self._is_fixed:
            self.observe(work, self.clock() - began)

    def observe(self, work: float, seconds: float) -> None:
        """Take note of a piece of work, and decide about the next."""
        self._work, self._seconds, self._waited = self._work + work, self._seconds + seconds, self._waited + seconds
        if self._trial is not None and self._seconds > 3 * self._work / self._rate:
            self._end_trial(0.0)  # so slow that nothing more need be known
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
        # Where nothing is known of others, the growing pauses bound what trials cost.
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
