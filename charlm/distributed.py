"""The processes of a run: who they are, and how they add and agree on numbers, with PyTorch's own distributed engine.

``torchrun`` starts the same command several times and tells each process its rank and their number in the environment. One
process alone is a :class:`World` too, in which nothing is sent, so that a training needs no special case for it.

Each collective call must be made by all processes in the same order. One whose peer has died or is cut off raises
:class:`PeerLostError` within the time limit.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from charlm.errors import CharlmError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

TIMEOUT = "CHARLM_PEER_TIMEOUT"
"""The environment variable with the time limit in seconds for a message during the training."""

_joins = itertools.count()
"""Numbers the runs of one program, so that a second one does not find the addresses of the first."""

_SECONDS = 60.0
_SECONDS_AT_START = 1800.0
"""Reading and encoding the text may take one process much longer than another."""


class PeerLostError(CharlmError):
    """Another process of the run has ended or cannot be reached."""


class PeerError(CharlmError):
    """Another process has failed, and the first one reports it.

    Args:
        exit_code: of the error.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def shares(count: int, parts: int) -> list[range]:
    """Cut ``count`` things into contiguous parts whose sizes differ by at most one: part i starts at ⌊i·count/parts⌋."""
    bounds = [part * count // parts for part in range(parts + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]


def is_first() -> bool:
    """Whether this process is the only or the first one of its run; known before :func:`join`."""
    return os.environ.get("RANK", "0") == "0" or not _is_launched()


def end_process(code: int) -> None:
    """End one of several processes at once, without the clean-up of Python; a process alone continues.

    Gloo's threads abort a process that is being cleaned up while its peers close their connections, and replace its exit code.
    """
    if _is_launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_launched() -> bool:
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


class World:
    """One process alone. :class:`Processes` has the same methods for several.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        local_rank: its number on this machine; ``None``: it is alone.
        threads: CPU threads for this process; ``None``: all cores are its own.
    """

    rank = 0
    size = 1
    local_rank: int | None = None
    threads: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The part of ``count`` things that belongs to this process."""
        return shares(count, self.size)[self.rank]

    def sum_(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes."""

    def sum(self, number: float) -> float:
        """The sum of a number over all processes, in fp64."""
        return number

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set in some process."""
        return flags

    def agree(self, value: T) -> T:
        """The first process's value, which JSON can hold."""
        return value

    def send(self, content: bytes) -> bytes:
        """The first process's bytes."""
        return content

    def together(self, work: Callable[[], T]) -> T:
        """Do work in all processes. If it fails in one, the first process raises its error, and the others a quiet one.

        It has its own, longer time limit.
        """
        return work()

    def same(self, values: dict[str, object]) -> None:
        """Make sure that all processes have the same values, which JSON can hold.

        Raises:
            UsageError: in the first process; names the values that differ.
        """

    def columns(self, own: Tensor, count: int) -> Tensor:
        """The columns (dimension 1) of all processes, ``count`` in all, of which this one has its share."""
        return own

    def close(self) -> None:
        """Leave the other processes."""


ALONE = World()


class Processes(World):
    """The processes that ``torchrun`` has started.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, as in :func:`charlm.runtime.resolve_device`; GPUs exchange tensors by NCCL.

    Raises:
        PeerLostError: they do not find each other.
    """

    def __init__(self, device: str) -> None:
        import torch.distributed
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        self._torch, self._engine = torch, torch.distributed
        environ = os.environ
        self.rank, self.size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        self.local_rank = int(environ.get("LOCAL_RANK", self.rank))
        local_size = int(environ.get("LOCAL_WORLD_SIZE", self.size))
        if environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1 where the user sets nothing
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self.threads = max(1, cores // local_size)
        else:
            self.threads = int(environ["OMP_NUM_THREADS"])
        self.seconds = float(environ.get(TIMEOUT, _SECONDS))
        on_gpu = device != "cpu" and torch.cuda.is_available() and self.local_rank < torch.cuda.device_count()
        self._device = torch.device("cuda", self.local_rank) if on_gpu else torch.device("cpu")
        if on_gpu:
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a timeout raises an error instead of ending the process
        self._seconds = self.seconds
        self._has_lost = False
        with self._guarded():
            limit = timedelta(seconds=self.seconds)
            store, _, _ = next(rendezvous("env://", timeout=limit))
            # torchrun keeps the store when it restarts the processes; old addresses must not be found in it.
            store = PrefixStore(f"charlm-{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{next(_joins)}", store)
            self._engine.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=self.rank, world_size=self.size, timeout=limit
            )
            self._start_group = self._engine.new_group(backend="gloo", timeout=timedelta(seconds=_SECONDS_AT_START))
        self._group: Any = None

    def sum_(self, *tensors: Tensor) -> None:
        """See :class:`World`."""
        with self._guarded():
            for work in [self._engine.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def sum(self, number: float) -> float:
        """See :class:`World`."""
        total = self._torch.tensor([number], dtype=self._torch.float64, device=self._device)
        self.sum_(total)
        return float(total)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """See :class:`World`."""
        counts = self._torch.tensor(flags, dtype=self._torch.float32, device=self._device)
        self.sum_(counts)
        return tuple(count > 0 for count in counts.tolist())

    def agree(self, value: T) -> T:
        """See :class:`World`."""
        agreed: T = json.loads(self.send(json.dumps(value).encode() if self.is_first else b""))
        return agreed

    def send(self, content: bytes) -> bytes:
        """See :class:`World`."""
        with self._guarded():
            length = self._torch.tensor([len(content)])
            self._engine.broadcast(length, 0, group=self._group)
            message = self._torch.empty(int(length), dtype=self._torch.uint8)
            if content:
                message = self._torch.frombuffer(bytearray(content), dtype=self._torch.uint8)
            if int(length):
                self._engine.broadcast(message, 0, group=self._group)
        return message.numpy().tobytes()

    def together(self, work: Callable[[], T]) -> T:
        """See :class:`World`."""
        result, error = None, None
        self._group, self._seconds = self._start_group, _SECONDS_AT_START
        try:
            result = work()
        except (PeerLostError, PeerError):
            raise
        except Exception as raised:
            error = raised
        entry = None if error is None else [str(error), getattr(error, "exit_code", 1)]
        entries = self._gather(entry)
        self._group, self._seconds = None, self.seconds
        failed = [number for number, one in enumerate(entries) if one is not None]
        if not failed:
            return result  # type: ignore[return-value]
        message, exit_code = entries[failed[0]]
        if self.is_first and error is not None:
            raise error
        if self.is_first:
            failure = CharlmError(f"process {failed[0]} of {self.size} (counted from 0): {message}")
            failure.exit_code = exit_code
            raise failure
        raise PeerError(message, exit_code)

    def same(self, values: dict[str, object]) -> None:
        """See :class:`World`."""
        every = self._gather(values)
        if not self.is_first:
            return
        for number, other in enumerate(every):
            if wrong := [key for key in values if other[key] != every[0][key]]:
                lines = [f"  {key}: {every[0][key]} in process 0, {other[key]} in process {number}" for key in wrong]
                raise UsageError(
                    "\n".join(["the processes of a run must have the same recipe, text and choices:", *lines]),
                    advice={"start all of them with the same command": {}},
                )

    def columns(self, own: Tensor, count: int) -> Tensor:
        """See :class:`World`."""
        share = self.share(count)
        whole = own.new_zeros((own.shape[0], count, *own.shape[2:]))
        whole[:, share.start : share.stop] = own
        self.sum_(whole)
        return whole

    def close(self) -> None:
        """See :class:`World`."""
        if self._engine.is_initialized() and not self._has_lost:  # else it would wait
            self._engine.destroy_process_group()

    def _gather(self, value: object) -> list[Any]:
        """The values of all processes, which JSON can hold."""
        content = self._torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=self._torch.uint8)
        with self._guarded():
            lengths = [self._torch.empty(1, dtype=self._torch.int64) for _ in range(self.size)]
            self._engine.all_gather(lengths, self._torch.tensor([len(content)]), group=self._start_group)
            longest = max(map(int, lengths))
            padded = self._torch.zeros(longest, dtype=self._torch.uint8)
            padded[: len(content)] = content
            found = [self._torch.empty(longest, dtype=self._torch.uint8) for _ in range(self.size)]
            self._engine.all_gather(found, padded, group=self._start_group)
        return [json.loads(one[: int(length)].numpy().tobytes()) for one, length in zip(found, lengths, strict=True)]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn the engine's errors into sentences."""
        try:
            yield
        except RuntimeError as error:
            self._has_lost = True
            cause = str(error).partition("\n")[0].rpartition("] ")[2].partition(". ")[0]
            raise PeerLostError(
                f"process {self.rank} of {self.size} lost the others: one of them has ended, or did not answer for "
                f"{self._seconds:g} seconds ({cause.rstrip('.')}). The run's last checkpoint is intact; resume it with "
                f"--resume auto. {TIMEOUT} changes the time limit"
            ) from None


def join(device: str) -> World:
    """The processes that this one was started with; without ``torchrun``, or with one process, :data:`ALONE`.

    Args:
        device: see :class:`Processes`.
    """
    if not _is_launched() or os.environ["WORLD_SIZE"] == "1":
        return ALONE
    return Processes(device)
