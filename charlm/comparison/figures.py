"""What finished runs say, read from their folders, and side by side."""

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
from charlm.errors import CheckpointError, RecipeError
from charlm.evaluation.perplexity import perplexity
from charlm.run_files import BEST, LAST, METRICS
from charlm.training import defaults
from charlm.training.recipe_paths import portable

_POINTS = 200  # of a training curve, at most


# -- one run --


def final_record(folder: Path, loaded: LoadedRecipe) -> dict[str, Any] | None:
    """What a run reached that has come to its end; ``None`` if there is none in the folder, or it has not yet.

    Raises:
        RecipeError: the run was made with another recipe. (Half of one schedule and half of another compare with nothing.)
    """
    try:
        described = checkpoint.describe(folder / LAST)
    except CheckpointError:  # absent, or damaged: there may be an older one to go on from
        return None
    stored = validate_recipe(described["recipe"], str(folder))
    if defaults.needs_plan(loaded.recipe):
        start, stop = described["corpus"]["splits"]["train"]
        loaded = replace(loaded, recipe=defaults.as_planned(loaded.recipe, stored, max(1, stop - start)))
    try:
        changed = reconcile(stored, portable(loaded.recipe))
    except RecipeError as error:
        raise RecipeError(f"{folder}: {error}") from None
    changed = [change for change in changed if not change.startswith(("sample.", "checkpoint."))]
    if changed:
        raise RecipeError(
            f"{folder} holds a run with other values:\n" + "\n".join(f"  {change}" for change in changed) + "\n"
            "Give the old values back, start anew with --overwrite, or go elsewhere with --out."
        )
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").rstrip("\n").split("\n")
        last: dict[str, Any] = json.loads(lines[-1])
    except (OSError, ValueError):  # the process was killed before or within a line
        return None
    return last if last["kind"] == "finished" and last["stopped_because"] not in ("interrupted", "max steps") else None


def records(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's log; none where nothing was recorded yet."""
    path = folder / METRICS
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as lines:  # names may hold what else ends a line
        return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Point:
    """Nats per character at a moment of training: after so many steps, characters and seconds of training."""

    step: int
    characters: int
    seconds: float
    nats: float


def learning_curve(lines: Sequence[dict[str, Any]], kind: Literal["training", "validation"]) -> list[Point]:
    """A run's validations, or its training averaged into at most 200 points.

    Args:
        lines: of its log; see :func:`records`.
    """
    steps = {line["step"]: line for line in lines if line["kind"] == "step"}

    def point(step: int, nats: float) -> Point:
        return Point(step, steps[step]["characters"], steps[step]["seconds"], nats)

    if kind == "validation":
        return [
            point(line["step"], line["nats"])
            for line in lines
            if line["kind"] == "evaluation" and line["nats"] is not None and line["step"] in steps
        ]
    finite = [line for line in steps.values() if line["nats"] is not None]
    size = max(1, -(-len(finite) // _POINTS))
    groups = [finite[first : first + size] for first in range(0, len(finite), size)]
    return [point(group[-1]["step"], statistics.fmean(line["nats"] for line in group)) for group in groups]


def seconds_to(curve: Sequence[Point], nats: float) -> float | None:
    """Seconds of training until a curve has come down to ``nats``; linear in nats between two points.

    At the first point already: that point's seconds, which is late rather than early. ``None``: never.
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
    """A candidate's figures: means over its seeds.

    Attributes:
        validation_nats: exact, state carried, of the best weights; ``None`` where training is compared.
        train_nats: of the last epoch or 100 steps.
        perplexity, bits_per_character: of validation, or of training where that is compared.
        seconds_to: seconds of training to the comparison's perplexity; ``None`` unless every seed reached it.
        seconds: of training.
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
    """What came out.

    Attributes:
        measured_on: ``validation``, or ``training`` if a recipe holds nothing out.
        to_perplexity: what ``seconds_to`` is about, on a run's own quick validations.
        notices: what has to be known before two rows are compared.
        curves: candidate → the learning curve of each of its runs.
    """

    rows: list[Row]
    measured_on: Literal["training", "validation"]
    to_perplexity: float
    notices: list[str]
    curves: dict[str, list[list[Point]]] = field(repr=False)


def compare(results: Mapping[Candidate, Sequence[Run]], to_perplexity: float | None = None) -> Comparison:
    """Put runs side by side.

    Args:
        results: each candidate's finished runs, one or more.
        to_perplexity: to measure the time to; ``None``: the worst of all runs' best, so that all reach it.
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
    return Comparison(rows, measured_on, perplexity(nats), _notices(results, held_out), curves)


def _row(candidate: Candidate, runs: Sequence[Run], curves: Sequence[Sequence[Point]], nats: float, held_out: bool) -> Row:
    recipe = checkpoint.describe(runs[0].folder / BEST)["recipe"]  # as it was run, with all that was chosen for it
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
    """What keeps figures from being compared."""
    notices = []
    part = "validation" if held_out else "train"

    def differing(of: Callable[[Run], object]) -> str | None:
        """Which candidates differ: ``a; b, c`` for two kinds."""
        kinds: dict[str, dict[str, None]] = {}
        for candidate, runs in results.items():
            for run in runs:
                kinds.setdefault(json.dumps(of(run), sort_keys=True), {})[candidate.name] = None
        return "; ".join(", ".join(names) for names in kinds.values()) if len(kinds) > 1 else None

    def text(run: Run) -> object:
        corpus = run.record["corpus"]
        return [corpus["sha256"], corpus["normalise"], corpus["splits"][part], run.record["characters"] if held_out else None]

    if found := differing(text):
        notices.append(f"not comparable in nats, since they were measured on different texts: {found}")
    if found := differing(lambda run: checkpoint.describe(run.folder / BEST)["vocabulary"]):
        notices.append(f"not comparable in nats, since their vocabularies differ: {found}")
    machine = ("device", "engine", "precision", "threads")
    if found := differing(lambda run: [run.record[key] for key in machine]):
        notices.append(f"not comparable in seconds, since device, engine, precision or threads differ: {found}")
    for run in (run for runs in results.values() for run in runs):
        if run.record["stopped_because"] != "finished":
            notices.append(f"{run.folder.name} ended before its schedule: {run.record['stopped_because']}")
    if not held_out:
        notices.append("measured on the training text, since a recipe holds nothing out: this is how well it is remembered")
    return notices
