"""Runs a comparison: plans the runs, trains those that are not finished, and collects the results. It prints nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from charlm.checkpoint import RUNS
from charlm.comparison.candidates import Candidate, candidates, varied_key
from charlm.comparison.equal import EqualTime, equal_parameters, remove_plans, with_chosen_width
from charlm.comparison.jobs import Job, Jobs, Reporter
from charlm.comparison.results import Comparison, Run, collect
from charlm.config import recipe_name, time_limit
from charlm.data.dataset import open_dataset
from charlm.errors import DivergedError, UsageError
from charlm.training.start import Resume

Equal = Literal["characters", "parameters", "time"]
"""The quantity that is equal for all candidates."""


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
    jobs: int = 1,
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
        jobs: number of runs side by side, each in a process of its own. They share the cores, so their seconds are longer.
        reporter: receives the progress; ``None``: :class:`SilentReporter`.

    Raises:
        UsageError: a value that is impossible, or no run has a result.
        RecipeError: a wrong recipe, key or value, or a folder that holds a run with other values.
        KeyboardInterrupt: a run was interrupted, and saved; the same call resumes the comparison.
    """
    seconds = _check(vary, seeds, equal, max_time, to)
    planned = candidates(recipes, cells, vary, overrides)
    folder = Path(out) if out is not None else default_folder(recipes, equal)
    training = Jobs(jobs, resume, overwrite, device, reporter)
    runner = _Runner(folder, training, overwrite, device)
    if equal == "parameters":
        planned = runner.with_equal_parameters(planned)
    results = runner.run_all(planned, seeds, equal, seconds)
    return collect(results, folder, training.left_out, to)


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
    """Plans the runs of a comparison, and lets :class:`Jobs` train them."""

    def __init__(self, folder: Path, jobs: Jobs, overwrite: bool, device: str) -> None:
        self._folder, self._jobs, self._overwrite, self._device = folder, jobs, overwrite, device

    def with_equal_parameters(self, planned: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with adapted hidden widths."""
        planned = [with_chosen_width(candidate, self._device) for candidate in planned]
        adapted, sentences = equal_parameters(planned, [self._symbols(candidate) for candidate in planned])
        for text in sentences:
            self._jobs.reporter.notice(text)
        return adapted

    def _symbols(self, candidate: Candidate) -> int:
        """V, which depends on the text."""
        with self._jobs.reporter.reading() as (fetching, encoding):
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
        runs = [(candidate, number) for number in range(seeds) for candidate in planned]
        plans = self._plans(seconds) if seconds is not None else None
        sets_time = planned[0] if equal == "time" and seconds is None else None
        if sets_time is not None:  # alone, since the others are planned from its time
            candidate, number = runs.pop(0)
            self._train(results, [(candidate, self._job(candidate, number))], len(runs) + 1)
            if not results[candidate]:
                raise DivergedError(self._jobs.left_out[0])
            plans = self._plans(results[candidate][0].record["training_seconds"], from_first_run=True)
        jobs = self._planned(runs, plans, sets_time)
        first = 1 if sets_time is None else 2
        self._train(results, jobs, len(runs) + first - 1, first)
        if not any(results.values()):
            raise UsageError("no run has a result:\n" + "\n".join(self._jobs.left_out))
        return {candidate: runs for candidate, runs in results.items() if runs}

    def _train(
        self, results: dict[Candidate, list[Run]], jobs: Iterable[tuple[Candidate, Job]], total: int, first: int = 1
    ) -> None:
        owners: dict[Job, Candidate] = {}

        def each() -> Iterator[Job]:
            for candidate, job in jobs:
                owners[job] = candidate
                yield job

        for job, record in self._jobs.train(each(), total, first).items():
            results[owners[job]].append(Run(job.folder, record))

    def _planned(
        self, runs: Sequence[tuple[Candidate, int]], plans: EqualTime | None, sets_time: Candidate | None
    ) -> Iterator[tuple[Candidate, Job]]:
        """The runs with their lengths; those without a length are left out."""
        for candidate, number in runs:
            try:
                length = [] if plans is None or candidate is sets_time else plans.overrides(candidate)
            except DivergedError as error:
                self._jobs.left_out.append(f"{self._job(candidate, number).name} is left out: {error}")
                continue
            yield candidate, self._job(candidate, number, length)

    def _job(self, candidate: Candidate, number: int, length: Sequence[str] = ()) -> Job:
        seed = candidate.load().recipe.train.seed + number
        name = f"{candidate.name}-seed{seed}"
        return Job(name, candidate.but(*length, f"train.seed={seed}"), self._folder / name)

    def _plans(self, seconds: float, *, from_first_run: bool = False) -> EqualTime:
        path = self._folder / "equal-time.json"
        if self._overwrite:
            remove_plans(path)
        return EqualTime(path, seconds, self._device, from_first_run=from_first_run)
