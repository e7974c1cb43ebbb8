"""Trains a list of runs: one after the other, or several side by side, each in a process of its own.

A worker process (:mod:`charlm.comparison.worker`) trains one run. It receives its task as a line of JSON on standard input,
and reports as lines of JSON on standard output. When its standard input ends, it saves and stops. So no worker outlives this
process for long, even if the system kills it. A worker that dies costs its own run only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from charlm import errors, threads
from charlm.comparison.candidates import Candidate
from charlm.comparison.results import final_record
from charlm.config import LoadedRecipe
from charlm.data.dataset import open_dataset
from charlm.errors import CharlmError, DivergedError, UsageError, WorkerError
from charlm.progress import Progress
from charlm.training.observers import Observer
from charlm.training.plan import Limits
from charlm.training.run import CanStop, run, stop_on_signals
from charlm.training.start import Options, Resume, start
from charlm.training.trainer import Trainer


@dataclass(frozen=True)
class Job:
    """A run to train.

    Attributes:
        name: for messages.
        candidate: its recipe, with all overrides.
        folder: the run's folder.
    """

    name: str
    candidate: Candidate
    folder: Path


@dataclass(frozen=True)
class JobProgress:
    """The latest step of a run; ``total``: planned steps, or ``None``; ``nats``: its loss per character."""

    step: int
    total: int | None
    nats: float


Board = Callable[[str, JobProgress | None], None]
"""Receives the name of a run and its progress; ``None``: the run has ended."""


class Reporter(Protocol):
    """Receives the progress of several runs."""

    def notice(self, text: str) -> None:
        """A sentence for the user."""

    def run_begins(self, name: str, number: int, total: int, is_finished: bool) -> None:
        """Run ``number`` of ``total`` is next; ``is_finished``: it was trained earlier."""

    def run_ended(self, name: str, record: dict[str, Any]) -> None:
        """A run was trained; ``record`` is its final record."""

    def reading(self) -> AbstractContextManager[tuple[Progress | None, Progress | None]]:
        """Around the reading of a text; yields functions that receive the progress of download and encoding."""

    def training(self, trainer: Trainer) -> AbstractContextManager[tuple[Sequence[Observer], Progress | None]]:
        """Around a training; yields its observers and a function that receives the progress of the exact evaluation.

        It also turns signals into requests to stop.
        """

    def side_by_side(self, workers: CanStop) -> AbstractContextManager[Board]:
        """Around several trainings in other processes; yields a function that receives their progress.

        It also turns signals into requests to stop.
        """


class SilentReporter:
    """Shows nothing. Ctrl-C finishes the step and saves, as in :func:`charlm.training.run.train`."""

    def notice(self, text: str) -> None:
        """See :class:`Reporter`."""

    def run_begins(self, name: str, number: int, total: int, is_finished: bool) -> None:
        """See :class:`Reporter`."""

    def run_ended(self, name: str, record: dict[str, Any]) -> None:
        """See :class:`Reporter`."""

    @contextmanager
    def reading(self) -> Iterator[tuple[None, None]]:
        """See :class:`Reporter`."""
        yield None, None

    @contextmanager
    def training(self, trainer: Trainer) -> Iterator[tuple[Sequence[Observer], None]]:
        """See :class:`Reporter`."""
        with stop_on_signals(trainer, _ctrl_c()):
            yield [], None

    @contextmanager
    def side_by_side(self, workers: CanStop) -> Iterator[Board]:
        """See :class:`Reporter`."""
        with stop_on_signals(workers, _ctrl_c()):
            yield lambda name, progress: None


def _ctrl_c() -> list[signal.Signals]:
    """SIGINT, unless the caller's program handles it."""
    return [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []


class Jobs:
    """Trains runs that are not finished.

    Args:
        at_once: number of runs side by side.
        resume: ``auto``; ``never``: runs must not exist yet; ``must``: they must exist.
        overwrite: move earlier runs aside and start again.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        reporter: receives the progress; ``None``: :class:`SilentReporter`.

    Attributes:
        left_out: a sentence for each run that diverged.

    Raises:
        UsageError: ``at_once`` is below 1.
    """

    def __init__(
        self,
        at_once: int = 1,
        resume: Resume = "auto",
        overwrite: bool = False,
        device: str = "auto",
        reporter: Reporter | None = None,
    ) -> None:
        if at_once < 1:
            raise UsageError(f"{at_once}: expected 1 or more", parameter="jobs")
        self.left_out: list[str] = []
        self.reporter = reporter or SilentReporter()
        self._at_once, self._device = at_once, device
        self._resume: Resume = "never" if overwrite else resume
        self._overwrite = overwrite

    def train(self, planned: Iterable[Job], total: int, first: int = 1) -> dict[Job, dict[str, Any]]:
        """Train the runs that are not finished.

        Args:
            planned: the runs. One after the other, each is taken from the iterator when the one before it has ended.
            total: number of runs, for messages.
            first: the number of the first, for messages.

        Returns:
            The final record of each run that has a result, in the order of ``planned``.

        Raises:
            CharlmError: a run failed. Side by side, the others are trained first.
            KeyboardInterrupt: runs were interrupted, and saved.
        """
        train = self._in_turn if self._at_once == 1 else self._side_by_side
        return train(planned, total, first)

    def _finished(self, job: Job, loaded: LoadedRecipe) -> dict[str, Any] | None:
        return final_record(job.folder, loaded) if self._resume != "never" else None

    def _add(self, results: dict[Job, dict[str, Any]], job: Job, record: dict[str, Any]) -> None:
        if not _has_result(record):
            self._leave_out(job, DivergedError("no training steps, or a result that is not finite"))
        else:
            results[job] = record

    def _leave_out(self, job: Job, error: DivergedError) -> None:
        self.left_out.append(f"{job.name} is left out: {error}")

    # -- one after the other --

    def _in_turn(self, planned: Iterable[Job], total: int, first: int) -> dict[Job, dict[str, Any]]:
        results: dict[Job, dict[str, Any]] = {}
        for number, job in enumerate(planned, first):
            loaded = job.candidate.load()
            record = self._finished(job, loaded)
            self.reporter.run_begins(job.name, number, total, record is not None)
            if record is not None:
                self._add(results, job, record)
                continue
            try:
                self._add(results, job, self._trained(job.folder, loaded))
            except DivergedError as error:
                self._leave_out(job, error)
            if job in results:
                self.reporter.run_ended(job.name, results[job])
        return results

    def _trained(self, folder: Path, loaded: LoadedRecipe) -> dict[str, Any]:
        with self.reporter.reading() as (fetching, encoding):
            options = Options(
                out=folder,
                limits=Limits.of(loaded.recipe, time.monotonic()),
                resume=self._resume,
                overwrite=self._overwrite,
                device=self._device,
                fetch_progress=fetching,
                encode_progress=encoding,
            )
            begun = start(loaded, options)
        for text in begun.notices:
            self.reporter.notice(f"note: {text}")
        with begun, self.reporter.training(begun.trainer) as (observers, exact_progress):
            stopped_because = run(begun.trainer, observers, exact_progress).record["stopped_because"]
        if stopped_because == "interrupted":
            raise KeyboardInterrupt
        record = final_record(folder, loaded)
        assert record is not None
        return record

    # -- side by side --

    def _side_by_side(self, planned: Iterable[Job], total: int, first: int) -> dict[Job, dict[str, Any]]:
        jobs = list(planned)
        loaded = {job: job.candidate.load() for job in jobs}
        done = {job: self._finished(job, loaded[job]) for job in jobs}
        waiting = deque((number, job) for number, job in enumerate(jobs, first) if done[job] is None)
        for number, job in enumerate(jobs, first):
            if done[job] is not None:
                self.reporter.run_begins(job.name, number, total, True)
        self._encode([loaded[job] for _, job in waiting])
        workers = _Workers(max(1, threads.limit(None) // self._at_once))
        failures: list[CharlmError] = []
        with self.reporter.side_by_side(workers) as board, workers:
            while (waiting and not workers.is_stopping) or workers.running:
                while waiting and not workers.is_stopping and len(workers.running) < self._at_once:
                    number, job = waiting.popleft()
                    self.reporter.run_begins(job.name, number, total, False)
                    workers.launch(job, self._request(job))
                for job, message in workers.messages():
                    if isinstance(message, JobProgress):
                        board(job.name, message)
                    elif isinstance(message, str):
                        self.reporter.notice(f"note: {message}")
                    else:
                        board(job.name, None)
                        if isinstance(message, DivergedError):
                            self._leave_out(job, message)
                        elif message is not None:
                            failures.append(message)
                        else:
                            record = final_record(job.folder, loaded[job])
                            assert record is not None
                            done[job] = record
                            if _has_result(record):
                                self.reporter.run_ended(job.name, record)
        if workers.is_stopping:
            raise KeyboardInterrupt
        if failures:
            raise failures[0] if len(failures) == 1 else type(failures[0])("\n".join(map(str, failures)))
        results: dict[Job, dict[str, Any]] = {}
        for job in jobs:
            if (ended := done[job]) is not None:
                self._add(results, job, ended)
        return results

    def _encode(self, recipes: Sequence[LoadedRecipe]) -> None:
        """Encode every text once. Otherwise each worker would do it at the same time."""
        texts = {(str(each.folder), each.recipe.corpus, each.recipe.data.model_dump_json()): each for each in recipes}
        for loaded in texts.values():
            with self.reporter.reading() as (fetching, encoding):
                open_dataset(loaded, fetch_progress=fetching, encode_progress=encoding)

    def _request(self, job: Job) -> dict[str, Any]:
        return {
            "source": job.candidate.source,
            "overrides": job.candidate.overrides,
            "out": str(job.folder),
            "resume": self._resume,
            "overwrite": self._overwrite,
            "device": self._device,
        }


def _has_result(record: dict[str, Any]) -> bool:
    return record["train_nats"] is not None and record["nats_per_character"] is not None


_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from charlm.comparison.worker import main; main()"
"""The program of a worker: it finds the same modules as this process."""

Message = JobProgress | str | CharlmError | None
"""Progress, a notice, or the end: an error, or ``None``."""


class _Workers:
    """The running worker processes. As a context manager, it kills those that still run at the end, and waits for them.

    Args:
        threads: CPU threads of each, unless its recipe says another number.
    """

    def __init__(self, threads: int) -> None:
        self.running: dict[Job, _Worker] = {}
        self.is_stopping = False
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._lines: SimpleQueue[tuple[Job, dict[str, Any] | None] | None] = SimpleQueue()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running.values():
            worker.end(kill=True)

    def request_stop(self, reason: str) -> None:
        """Ask all workers to save and stop; a signal handler may call it."""
        self.is_stopping = True
        self._lines.put(None)  # SimpleQueue.put may be called from a signal handler

    def launch(self, job: Job, request: dict[str, Any]) -> None:
        """Start a worker."""
        self.running[job] = _Worker(job, request, self._environment, self._lines)

    def messages(self) -> Iterator[tuple[Job, Message]]:
        """Wait for the next message. Yields nothing if it was a request to stop."""
        line = self._lines.get()
        if self.is_stopping:
            for worker in self.running.values():
                worker.stop()
        if line is None:
            return
        job, content = line
        if content is None:
            yield job, self.running.pop(job).end()
        elif "step" in content:
            yield job, JobProgress(**content)
        elif "notice" in content:
            yield job, content["notice"]
        else:
            self.running[job].said = content


class _Worker:
    """A process that trains one run.

    Attributes:
        said: its last word: how it ended.
    """

    def __init__(self, job: Job, request: dict[str, Any], environment: dict[str, str], lines: SimpleQueue[Any]) -> None:
        self.said: dict[str, Any] = {}
        self._job, self._lines = job, lines
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), job.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        with suppress(BrokenPipeError):  # it is dead already, and `end` says so
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):  # the last line of a killed process may be cut
                self._lines.put((self._job, json.loads(line)))
        self._lines.put((self._job, None))

    def stop(self) -> None:
        """Ask it to save and stop."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self, kill: bool = False) -> CharlmError | None:
        """Wait for its end. Returns the error that ended it; ``None``: the run is finished."""
        if kill:
            self._process.kill()
        self.stop()
        status = self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        self._errors.close()
        if "error" in self.said:
            kind, message, advice = self.said["error"], self.said["message"], self.said["advice"]
            named = message if kind == DivergedError.__name__ else f"{self._job.name}: {message}"
            error: CharlmError = getattr(errors, kind)(named, advice=advice)
            return error
        if self.said.get("stopped_because") not in (None, "interrupted"):
            return None
        if status < 0:
            cause = f"was ended by {signal.Signals(-status).name}"
        elif "stopped_because" in self.said:
            cause = "was asked to stop, and saved its run"
        else:
            cause = f"ended with status {status}: {next((line for line in reversed(lines) if line.strip()), 'no message')}"
        return WorkerError(
            f"{self._job.name}: its process {cause}; the other runs are kept; repeat the command to resume this one"
        )
