"""The number of threads follows what the machine can give, and neither wavers nor waits too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from charlm import threads
from charlm.threads import Load, Tuner, limit, most, use


@pytest.fixture(autouse=True)
def _threads_as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_state", {**threads._state, "fixed": None})
    monkeypatch.setattr(threads, "_chosen", {})
    yield
    torch.set_num_threads(before)


class Machine:
    """A machine of ``cores`` with ``busy`` other programs: threads that work together wait for the one that lost its core."""

    def __init__(self, cores: int, busy: float = 0, *, tells: bool = True) -> None:
        self.cores, self.busy, self.tells = cores, busy, tells
        self.used: dict[int, float] = {}

    def others(self, seconds: float = 0.1) -> float | None:
        return self.busy if self.tells else None

    def rate(self, count: int) -> float:
        if count == 1:
            return 0.9 * min(1.0, self.cores / (1 + self.busy))
        return 0.9**count * count * (1.0 if count + self.busy <= self.cores else 0.05)

    def run(self, tuner: Tuner, seconds: float) -> float:
        """Work for a while; returns the work per second."""
        began, now, done = 0.0, 0.0, 0.0
        while now - began < seconds:
            taken = 0.01 / self.rate(tuner.next)
            self.used[tuner.next] = self.used.get(tuner.next, 0.0) + taken
            tuner.observe(0.01, taken)
            now, done = now + taken, done + 0.01
        return done / now


@pytest.fixture
def tuner_on() -> Callable[..., Tuner]:
    """``tuner_on(machine)``: with all its cores to choose from."""

    def make(machine: Machine, **options: Any) -> Tuner:
        return Tuner("test", True, load=machine, most=machine.cores, **options)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("tells", [True, False], ids=["load known", "load unknown"])
@pytest.mark.parametrize("cores", [2, 4, 16])
def test_alone_nearly_nothing_is_lost(tuner_on: Callable[..., Tuner], cores: int, tells: bool) -> None:
    """If this fails, trials of fewer threads slow every run down, though nothing else runs (3 % of a minute at most)."""
    machine = Machine(cores, tells=tells)
    tuner = tuner_on(machine)
    best = max(machine.rate(count) for count in (1, 2, 4, 8, 16) if count <= cores)
    assert machine.run(tuner, 60) > 0.97 * best
    assert machine.rate(tuner.threads) == pytest.approx(best)


@pytest.mark.parametrize("tells", [True, False], ids=["load known", "load unknown"])
@pytest.mark.parametrize("busy", [1, 2])
def test_beside_busy_programs_fewer_threads_are_taken_at_once(tuner_on: Callable[..., Tuner], busy: int, tells: bool) -> None:
    """If this fails, one busy program makes a training ten times slower for long, or again and again."""
    machine = Machine(2, busy, tells=tells)
    tuner = tuner_on(machine, threads=2)
    assert machine.run(tuner, 60) > 0.9 * machine.rate(1)
    assert tuner.threads == 1


@pytest.mark.parametrize("tells", [True, False], ids=["load known", "load unknown"])
def test_it_follows_programs_that_come_and_go(tuner_on: Callable[..., Tuner], tells: bool) -> None:
    """If this fails, a run stays slow when a neighbour starts, or stays at one thread when it has gone."""
    told: list[int] = []
    machine = Machine(2, tells=tells)
    tuner = tuner_on(machine, changed=told.append)
    machine.run(tuner, 20)
    machine.busy = 1
    machine.run(tuner, 10)
    assert (tuner.threads, told) == (1, [1])
    machine.busy = 0
    machine.run(tuner, 5 if tells else 65)
    assert (tuner.threads, told) == (2, [1, 2])


def test_the_next_tuner_of_a_kind_begins_where_the_last_one_ended(tuner_on: Callable[..., Tuner]) -> None:
    """If this fails, each of many short evaluations finds out anew that the machine is busy."""
    machine = Machine(2, 1, tells=False)
    machine.run(tuner_on(machine, threads=2), 5)
    assert tuner_on(machine).threads == 1


def test_where_last_bits_depend_on_it_the_number_changes_only_when_asked() -> None:
    """If this fails, an undisturbed run of the engine torch does not repeat itself, or a disturbed one stays slow."""
    machine = Machine(2, 0)
    tuner = Tuner("test", False, load=machine, most=2)  # type: ignore[arg-type]
    machine.busy = 1
    for _ in range(5):
        with tuner.piece(1.0):
            assert torch.get_num_threads() == 2
    tuner.choose()
    with tuner.piece(1.0):
        assert torch.get_num_threads() == 1
    machine.busy = 0.2
    tuner.choose()
    assert tuner.threads == 2


def test_a_number_that_the_user_sets_is_kept(tuner_on: Callable[..., Tuner]) -> None:
    """If this fails, ``train.threads`` is a suggestion."""
    limit(2)
    machine = Machine(2, 2)
    tuner = Tuner("test", True, load=machine)  # type: ignore[arg-type]
    for _ in range(100):
        with tuner.piece(1e-9):
            assert threads.kernel_threads() == 2
    limit(None)
    assert not threads.is_fixed() and most() == threads._state["most"]


def test_pytorch_gets_one_thread_where_our_kernels_do_the_work() -> None:
    """If this fails, PyTorch's operations divide their sums, and last bits depend on the number of threads."""
    machine = Machine(2)
    with Tuner("test", True, load=machine, most=2).piece(1.0):  # type: ignore[arg-type]
        assert (threads.kernel_threads(), torch.get_num_threads()) == (2, 1)
    use(2)
    assert (threads.kernel_threads(), torch.get_num_threads()) == (2, 2)


def test_the_system_tells_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, our own threads count as other programs, and a quiet machine looks busy."""
    looks = iter([(0.0, 10.0, 1.0), (2.0, 14.0, 2.0), None])
    monkeypatch.setattr(Load, "_measure", staticmethod(lambda: next(looks)))
    load = Load()
    assert load.others() == pytest.approx(1.5)
    assert load.others() == pytest.approx(1.5)  # what is not known stays as it was


def test_a_system_that_tells_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, charlm does not start on macOS."""
    monkeypatch.delattr("os.sched_getaffinity")
    assert Load().others() is None
