"""Runs a comparison: plans the runs, trains those that are not finished, and collects the results. It prints nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from charlm.checkpoint import RUNS
from charlm.comparison.candidates import Candidate, candidates, varied_key
from charlm.comparison.equal import EqualTime, equal_parameters, remove_plans, with_chosen_width
from charlm.comparison.results import Comparison, Run, collect, final_record
from charlm.config import LoadedRecipe, recipe_name, time_limit
from charlm.data.dataset import open_dataset
from charlm.errors import DivergedError, UsageError
from charlm.progress import Progress
from charlm.training.observers import Observer
from charlm.training.plan import Limits
from charlm.training.run import run, stop_on_signals
from charlm.training.start import Options, Resume, start
from charlm.training.trainer import Trainer

Equal = Literal["characters", "parameters", "time"]
"""The quantity that is equal for all candidates."""


class Reporter(Protocol):
    """Receives the progress of a comparison."""

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
        handles_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with stop_on_signals(trainer, [signal.SIGINT] if handles_ctrl_c else []):
            yield [], None


def compare(
    recipes: Sequence[str],
    *,
    cells: Sequence[str] = (),
    vary: Sequence[str] = (),
    overrides: Sequence[str] = (),
    seeds: int = 1,
    equal: Equal = "characters",
    max_time: float | str | None = None,
    to: float | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: Resume = "auto",
    overwrite: bool = False,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Comparison:
    """Train every recipe with every cell and every varied value, once per seed, and compare the results.

    Finished runs in ``out`` are not trained again, and unfinished ones are resumed.

    Args:
        recipes: names of shipped recipes, or paths of YAML files or texts.
        cells: from :func:`charlm.cells.cell_names`; empty: each recipe's own.
        vary: ``KEY=V1,V2,…``; several are combined.
        overrides: ``KEY=VALUE``, for all candidates.
        seeds: runs of each candidate; the first has the recipe's seed.
        equal: the quantity that is equal for all candidates.
        max_time: training time of each run (seconds, or a duration such as ``5m``), with ``equal="time"`` only; ``None``:
            that of the first run.
        to: the perplexity of ``seconds_to``; ``None``: the worst run's best.
        out: folder of the runs' folders; ``None``: ``checkpoints/compare-<recipes>``.
        resume: ``auto``; ``never``: runs must not exist yet; ``must``: they must exist.
        overwrite: move earlier runs aside and start again.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        reporter: receives the progress; ``None``: :class:`SilentReporter`.

    Raises:
        UsageError: a value that is impossible, or no run has a result.
        RecipeError: a wrong recipe, key or value, or a folder that holds a run with other values.
        KeyboardInterrupt: a run was interrupted, and saved; the same call resumes the comparison.
    """
    seconds = _check(vary, seeds, equal, max_time, to)
    planned = candidates(recipes, cells, vary, overrides)
    folder = Path(out) if out is not None else default_folder(recipes, equal)
    runner = _Runner(folder, "never" if overwrite else resume, overwrite, device, reporter or SilentReporter())
    if equal == "parameters":
        planned = runner.with_equal_parameters(planned)
    results = runner.run_all(planned, seeds, equal, seconds)
    return collect(results, folder, runner.left_out, to)


def default_folder(recipes: Sequence[str], equal: Equal) -> Path:
    """``checkpoints/compare-<recipes>``, which also names what is equal unless it is characters."""
    suffix = [] if equal == "characters" else [f"equal-{equal}"]
    return RUNS / "-".join(["compare", *map(recipe_name, recipes), *suffix])


def _check(vary: Sequence[str], seeds: int, equal: Equal, max_time: float | str | None, to: float | None) -> float | None:
    """Refuse impossible values; returns ``max_time`` in seconds."""
    seconds = time_limit(max_time)
    if equal not in get_args(Equal):
        raise UsageError(f"{equal}: expected {', '.join(get_args(Equal))}", parameter="equal")
    if seeds < 1:
        raise UsageError(f"{seeds}: expected 1 or more", parameter="seeds")
    if to is not None and not to >= 1:
        raise UsageError(f"{to:g}: expected a perplexity of 1 or more", parameter="to")
    if seconds is not None and equal != "time":
        raise UsageError(
            f"{max_time}: only for equal time, not for equal {equal}; to limit each run, override train.time={max_time}",
            parameter="max_time",
        )
    if equal == "parameters" and any(varied_key(text) == "model.hidden" for text in vary):
        raise UsageError("parameters chooses model.hidden; it cannot be varied too", parameter="equal")
    return seconds


class _Runner:
    """Trains the runs of a comparison, one after the other.

    Attributes:
        left_out: a sentence for each run that has no result.
    """

    def __init__(self, folder: Path, resume: Resume, overwrite: bool, device: str, reporter: Reporter) -> None:
        self.left_out: list[str] = []
        self._folder, self._resume, self._overwrite, self._device = folder, resume, overwrite, device
        self._reporter = reporter

    def with_equal_parameters(self, planned: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with adapted hidden widths."""
        planned = [with_chosen_width(candidate, self._device) for candidate in planned]
        adapted, sentences = equal_parameters(planned, [self._symbols(candidate) for candidate in planned])
        for text in sentences:
            self._reporter.notice(text)
        return adapted

    def _symbols(self, candidate: Candidate) -> int:
        """V, which depends on the text."""
        with self._reporter.reading() as (fetching, encoding):
            return len(open_dataset(candidate.load(), fetch_progress=fetching, encode_progress=encoding).vocabulary)

    def run_all(
        self, planned: Sequence[Candidate], seeds: int, equal: Equal, seconds: float | None
    ) -> dict[Candidate, list[Run]]:
        """Train all unfinished runs: the first seed of every candidate, then the second, and so on.

        Args:
            seconds: training time of each run for equal time; ``None``: that of the first run.

        Raises:
            UsageError: no run has a result.
        """
        results: dict[Candidate, list[Run]] = {candidate: [] for candidate in planned}
        plans = self._plans(seconds) if seconds is not None else None
        total = len(planned) * seeds
        for number in range(seeds):
            for index, candidate in enumerate(planned):
                sets_time = equal == "time" and seconds is None and index == 0
                seed = candidate.load().recipe.train.seed + number
                name = f"{candidate.name}-seed{seed}"
                try:
                    length = [] if plans is None or sets_time else plans.overrides(candidate)
                    loaded = candidate.load(*length, f"train.seed={seed}")
                    record = self._record(name, loaded, number * len(planned) + index + 1, total)
                except DivergedError as error:
                    if sets_time and plans is None:
                        raise
                    self.left_out.append(f"{name} is left out: {error}")
                    continue
                results[candidate].append(Run(self._folder / name, record))
                if sets_time and plans is None:
                    plans = self._plans(record["training_seconds"], from_first_run=True)
        if not any(results.values()):
            raise UsageError("no run has a result:\n" + "\n".join(self.left_out))
        return {candidate: runs for candidate, runs in results.items() if runs}

    def _plans(self, seconds: float, *, from_first_run: bool = False) -> EqualTime:
        path = self._folder / "equal-time.json"
        if self._overwrite:
            remove_plans(path)
        return EqualTime(path, seconds, self._device, from_first_run=from_first_run)

    def _record(self, name: str, loaded: LoadedRecipe, number: int, total: int) -> dict[str, Any]:
        """The final record of a run, which is trained unless it is finished.

        Raises:
            DivergedError: the run has no result.
        """
        folder = self._folder / name
        finished = final_record(folder, loaded) if self._resume != "never" else None
        self._reporter.run_begins(name, number, total, finished is not None)
        record = finished or self._train(folder, loaded)
        if record["train_nats"] is None or record["nats_per_character"] is None:
            raise DivergedError("no training steps, or a result that is not finite")
        if finished is None:
            self._reporter.run_ended(name, record)
        return record

    def _train(self, folder: Path, loaded: LoadedRecipe) -> dict[str, Any]:
        with self._reporter.reading() as (fetching, encoding):
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
            self._reporter.notice(f"note: {text}")
        with begun, self._reporter.training(begun.trainer) as (observers, exact_progress):
            stopped_because = run(begun.trainer, observers, exact_progress).record["stopped_because"]
        if stopped_because == "interrupted":
            raise KeyboardInterrupt
        record = final_record(folder, loaded)
        assert record is not None
        return record
