"""Results of finished runs, read from their folders and collected into rows."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from charlm import checkpoint
from charlm.comparison.candidates import Candidate
from charlm.config import LoadedRecipe, reconcile, validate_recipe
from charlm.errors import CheckpointError, RecipeError, RunFolderError
from charlm.evaluation.perplexity import perplexity
from charlm.run_files import BEST, LAST, METRICS
from charlm.training import defaults
from charlm.training.recipe_paths import portable

_POINTS = 200
"""Maximum number of points of a training curve."""


# -- one run --


def final_record(folder: Path, loaded: LoadedRecipe) -> dict[str, Any] | None:
    """The final record of a finished run; ``None``: the folder holds no run, or an unfinished one.

    Raises:
        RecipeError: the run was made with another recipe. (A run with two schedules is comparable with nothing.)
    """
    try:
        described = checkpoint.describe(folder / LAST)
    except CheckpointError:  # absent, or damaged: an older checkpoint may be left to resume from
        return None
    stored = validate_recipe(described["recipe"], str(folder))
    if defaults.needs_plan(loaded.recipe):
        start, stop = described["corpus"]["splits"]["train"]
        loaded = replace(loaded, recipe=defaults.as_planned(loaded.recipe, stored, max(1, stop - start)))
    try:
        changed = reconcile(stored, portable(loaded.recipe))
    except RecipeError as error:
        raise RecipeError(f"{folder}: {error.message}", advice=error.advice) from None
    changed = [change for change in changed if not change.startswith(("sample.", "checkpoint."))]
    if changed:
        raise RecipeError(
            f"{folder} holds a run with other values:\n" + "\n".join(f"  {change}" for change in changed),
            advice={"restore the old values": {}, "start again": {"overwrite": True}, "use another folder": {"out": "DIR"}},
        )
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").rstrip("\n").split("\n")
        last: dict[str, Any] = json.loads(lines[-1])
    except (OSError, ValueError):  # the process was killed while it wrote a line
        return None
    return last if last["kind"] == "finished" and last["stopped_because"] not in ("interrupted", "max steps") else None


_NEEDED = {"step": ("step", "characters", "seconds"), "evaluation": ("step",), "threads": ("step",), "finished": ("step",)}
"""Kind of a line of the log → its keys that always have a number."""

_NUMBERS = {
    "step", "characters", "seconds", "nats", "learning_rate", "gradient_norm", "nats_per_character", "bits_per_character",
    "perplexity", "train_nats", "parameters",
}  # fmt: skip
"""Keys with a number or null, where a line has them."""


def records(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's log; empty if nothing is recorded yet. A last line that is cut off (by a kill) is left out.

    Raises:
        RunFolderError: the file is not the log of a run.
        OSError: it cannot be read.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    if not path.is_file():
        raise RunFolderError(f"{path} is not a regular file; expected the log of a run")
    found = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:  # names may contain other line separators
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                if not line.endswith("\n"):
                    break
                record = None
            if not _is_record(record):
                raise RunFolderError(f"{path}, line {number}: not a line of a run's log; repair the file or move it away")
            found.append(record)
    return found


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str) or value["kind"] not in _NEEDED:
        return False
    numbers = {key: number for key, number in value.items() if key in _NUMBERS}
    return all(numbers.get(key) is not None for key in _NEEDED[value["kind"]]) and all(
        number is None or (isinstance(number, int | float) and abs(number) < 1e300) for number in numbers.values()
    )


@dataclass(frozen=True)
class Point:
    """Nats per character after a number of steps, characters and seconds of training."""

    step: int
    characters: int
    seconds: float
    nats: float


def learning_curve(lines: Sequence[dict[str, Any]], kind: Literal["training", "validation"]) -> list[Point]:
    """The validations of a run, or its training loss averaged into at most 200 points.

    Args:
        lines: its log; see :func:`records`.
    """
    steps = {line["step"]: line for line in lines if line["kind"] == "step"}

    def point(step: int, nats: float) -> Point:
        return Point(step, steps[step]["characters"], steps[step]["seconds"], nats)

    if kind == "validation":
        return [
            point(line["step"], line["nats"])
            for line in lines
            if line["kind"] == "evaluation" and line.get("nats") is not None and line["step"] in steps
        ]
    finite = [line for line in steps.values() if line.get("nats") is not None]
    size = max(1, -(-len(finite) // _POINTS))
    groups = [finite[first : first + size] for first in range(0, len(finite), size)]
    return [point(group[-1]["step"], statistics.fmean(line["nats"] for line in group)) for group in groups]


def seconds_to(curve: Sequence[Point], nats: float) -> float | None:
    """Seconds of training until a curve reaches ``nats``, interpolated linearly in nats between two points.

    If the first point is below already: its seconds, an upper bound. ``None``: never reached.
    """
    before: Point | None = None
    for point in curve:
        if point.nats <= nats:
            if before is None:
                return point.seconds
            share = (before.nats - nats) / (before.nats - point.nats)
            return before.seconds + share * (point.seconds - before.seconds)
        before = point
    return None


# -- all of them --


@dataclass(frozen=True)
class Run:
    """One finished training: its folder, and its final record."""

    folder: Path
    record: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """The results of a candidate: means over its seeds.

    Attributes:
        validation_nats: of the best weights, exact with carried state; ``None``: training is compared.
        train_nats: mean over the last epoch or 100 steps.
        perplexity, bits_per_character: from validation or, if training is compared, from training.
        seconds_to: seconds of training to the comparison's perplexity; ``None`` unless every seed reached it.
        seconds: seconds of training.
        runs: the final record of each seed, with its folder and its ``seconds_to``.
    """

    name: str
    recipe: str
    cell: str
    hidden: int
    parameters: int
    characters_per_second: float
    training_characters: float
    validation_nats: float | None
    validation_nats_by_seed: list[float]
    train_nats: float
    train_nats_by_seed: list[float]
    perplexity: float
    bits_per_character: float
    seconds_to: float | None
    seconds: float
    runs: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """The results of all candidates.

    Attributes:
        folder: the folder of the runs' folders.
        measured_on: ``validation``, or ``training`` if a recipe has no validation text.
        to_perplexity: the perplexity of ``seconds_to``, measured on the quick validations of a run.
        notices: reasons not to compare some rows, and runs that are left out.
        curves: candidate → the learning curve of each of its runs.
    """

    folder: Path
    rows: list[Row]
    measured_on: Literal["training", "validation"]
    to_perplexity: float
    notices: list[str]
    curves: dict[str, list[list[Point]]] = field(repr=False)


def collect(
    results: Mapping[Candidate, Sequence[Run]],
    folder: Path,
    left_out: Sequence[str] = (),
    to_perplexity: float | None = None,
) -> Comparison:
    """Collect runs into rows.

    Args:
        results: the finished runs of each candidate, one or more.
        folder: the folder of the runs' folders.
        left_out: a sentence for each run without a result.
        to_perplexity: target of ``seconds_to``; ``None``: the highest of the runs' lowest, so that all reach it.
    """
    runs = [run for several in results.values() for run in several]
    held_out = all(run.record["measured_on"] == "validation" for run in runs)
    measured_on: Literal["training", "validation"] = "validation" if held_out else "training"
    curves = {
        candidate.name: [learning_curve(records(run.folder), measured_on) for run in several]
        for candidate, several in results.items()
    }
    best = [min(point.nats for point in curve) for several in curves.values() for curve in several if curve]
    nats = math.log(to_perplexity) if to_perplexity is not None else max(best)
    rows = [_row(candidate, several, curves[candidate.name], nats, held_out) for candidate, several in results.items()]
    notices = [*_notices(results, held_out), *left_out]
    return Comparison(folder, rows, measured_on, perplexity(nats), notices, curves)


def _row(candidate: Candidate, runs: Sequence[Run], curves: Sequence[Sequence[Point]], nats: float, held_out: bool) -> Row:
    recipe = checkpoint.describe(runs[0].folder / BEST)["recipe"]  # complete, with the values that charlm chose
    records = [run.record for run in runs]
    times = [seconds_to(curve, nats) for curve in curves]
    reached = [found for found in times if found is not None]
    characters = statistics.fmean(record["training_characters"] for record in records)
    seconds = statistics.fmean(record["training_seconds"] for record in records)
    training = [record["train_nats"] for record in records]
    validation = [record["nats_per_character"] for record in records] if held_out else []
    mean = statistics.fmean(validation or training)
    return Row(
        name=candidate.name,
        recipe=candidate.load().name,
        cell=recipe["model"]["cell"],
        hidden=recipe["model"]["hidden"],
        parameters=records[0]["parameters"],
        characters_per_second=characters / seconds if seconds else 0.0,
        training_characters=characters,
        validation_nats=mean if held_out else None,
        validation_nats_by_seed=validation,
        train_nats=statistics.fmean(training),
        train_nats_by_seed=training,
        perplexity=perplexity(mean),
        bits_per_character=mean / math.log(2),
        seconds_to=statistics.fmean(reached) if len(reached) == len(times) else None,
        seconds=seconds,
        runs=[
            {"folder": str(run.folder), "seconds_to": found, **{k: v for k, v in run.record.items() if k != "kind"}}
            for run, found in zip(runs, times, strict=True)
        ],
    )


def _notices(results: Mapping[Candidate, Sequence[Run]], held_out: bool) -> list[str]:
    """Reasons not to compare some rows."""
    notices = []
    part = "validation" if held_out else "train"

    def differing(value: Callable[[Run], object]) -> str | None:
        """The candidates by value, ``a; b, c`` for two values; ``None``: all have the same."""
        groups: dict[str, dict[str, None]] = {}
        for candidate, runs in results.items():
            for run in runs:
                groups.setdefault(json.dumps(value(run), sort_keys=True), {})[candidate.name] = None
        return "; ".join(", ".join(names) for names in groups.values()) if len(groups) > 1 else None

    def text(run: Run) -> object:
        corpus = run.record["corpus"]
        return [corpus["sha256"], corpus["normalise"], corpus["splits"][part], run.record["characters"] if held_out else None]

    if found := differing(text):
        notices.append(f"nats not comparable, measured on different texts: {found}")
    if found := differing(lambda run: checkpoint.describe(run.folder / BEST)["vocabulary"]):
        notices.append(f"nats not comparable, vocabularies differ: {found}")
    machine = ("device", "engine", "precision", "threads")
    if found := differing(lambda run: [run.record[key] for key in machine]):
        notices.append(f"seconds not comparable, device, engine, precision or threads differ: {found}")
    for run in (run for runs in results.values() for run in runs):
        if run.record["stopped_because"] != "finished":
            notices.append(f"{run.folder.name} ended before its schedule: {run.record['stopped_because']}")
    if not held_out:
        notices.append("measured on the training text, since a recipe has no validation text: these results show memorisation")
    return notices
