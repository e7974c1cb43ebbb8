"""Recipes, cells and settings side by side: which runs a comparison has, and what their figures say.

A candidate is a recipe with overrides, trained as ``charlm train`` would train it, once per seed. Each run has a folder of
its own, and what a comparison knows of a run it reads there, so a comparison can be stopped and repeated at any moment.

What is held equal, so that a difference means something:

    characters   each recipe as it is: cells and settings of one recipe then read the same text equally often
    parameters   hidden widths are adapted until all candidates have as many parameters as the first
    time         lengths are planned so that all candidates train equally long, schedule included

Seconds are those of training: evaluations, samples and saves are left out.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from charlm import checkpoint
from charlm.config import LoadedRecipe, ModelSection, check_key, load_recipe, reconcile, validate_recipe
from charlm.errors import CheckpointError, RecipeError, UsageError
from charlm.evaluation.perplexity import perplexity
from charlm.model.language_model import count_parameters
from charlm.training.plan import Limits
from charlm.training.run_folder import BEST, LAST, METRICS
from charlm.training.start import Options, portable, start
from charlm.yaml_text import parse_yaml

CELL = "model.cell"
_OF_ONE_CELL = {"rnn": "model.nonlinearity=tanh", "gru": "model.reset_after=true"}
"""Cell → its own option at its default: what the other cells get instead of what the recipe says for that cell."""

_MULTIPLE, _TOLERANCE = 8, 0.01
"""A hidden width is a multiple of 8 where the number of parameters is then within 1 % of the wanted one."""

_NEVER = 10**9  # updates
_WARM_UP = 5  # updates, which are not timed
_TIMED = 20  # updates at least
_POINTS = 200  # of a training curve, at most


# -- candidates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One row of a comparison: ``charlm train SOURCE --set …`` trains it.

    Attributes:
        name: of its row and, with the seed, of its runs' folders.
        source: a recipe's name or path.
        overrides: ``section.key=value``.
    """

    name: str
    source: str
    overrides: tuple[str, ...] = ()

    def load(self, *more: str) -> LoadedRecipe:
        """The recipe, with further overrides."""
        return load_recipe(self.source, (*self.overrides, *more))


def candidates(
    recipes: Sequence[str], cells: Sequence[str] = (), vary: Sequence[str] = (), overrides: Sequence[str] = ()
) -> list[Candidate]:
    """Every recipe with every cell and every varied value, in this order; the first is what others are held against.

    Args:
        recipes: names or paths.
        cells: ``rnn``, ``gru``, ``lstm``; none: each recipe's own.
        vary: ``KEY=V1,V2,…``; each multiplies the candidates.
        overrides: ``KEY=VALUE``, of all candidates.

    Raises:
        RecipeError: a recipe, cell, key or value that cannot be.
        UsageError: two candidates that could not be told apart.
    """
    choices = [[f"{CELL}={cell}" for cell in cells]] if cells else []
    choices += [variations(text) for text in vary]
    keys = [choice[0].partition("=")[0] for choice in choices]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"{key} is varied twice; give all its values at once, with commas between")
    found = [_candidate(source, chosen, overrides) for source in recipes for chosen in itertools.product(*choices)]
    names = [candidate.name for candidate in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two candidates are called {name}: give each recipe and value once, and files different names")
    return found


def variations(text: str) -> list[str]:
    """``model.hidden=64,256`` → the overrides ``model.hidden=64`` and ``model.hidden=256``. Values are YAML.

    Raises:
        RecipeError: no values, or a key that no recipe has.
    """
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not values.strip():
        raise RecipeError(f"--vary {text}: expected KEY=VALUE,VALUE,… such as model.hidden=64,256,512")
    check_key(key, f"--vary {text}")
    found = parse_yaml(f"[{values}]", f"--vary {text}")
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for value in found]


def _candidate(source: str, chosen: Sequence[str], overrides: Sequence[str]) -> Candidate:
    cell = next((override.partition("=")[2].strip('"') for override in chosen if override.startswith(f"{CELL}=")), None)
    foreign = [default for owner, default in _OF_ONE_CELL.items() if cell not in (None, owner)]
    candidate = Candidate("", source, (*overrides, *foreign, *chosen))
    name = "-".join([candidate.load().name, *map(_label, chosen)])
    return Candidate(name, source, candidate.overrides)


def _label(override: str) -> str:
    """What a choice adds to a candidate's name, which is also a folder's: ``gru``, ``hidden=256``."""
    key, _, value = override.partition("=")
    value = re.sub(r"[^\w.+-]+", "-", value.strip('"'))
    return value if key == CELL else f"{key.rpartition('.')[2]}={value}"


# -- what is held equal ----------------------------------------------------------------------------------------------


def closest_width(model: ModelSection, symbols: int, parameters: int) -> int:
    """The hidden width H with which a model has about so many parameters.

    Args:
        model: the network; its own width does not matter.
        symbols: V.
        parameters: how many are wanted.

    Returns:
        The multiple of 8 that comes closest, if its number of parameters is within 1 %; otherwise the closest integer.
    """

    def missed_by(hidden: int) -> int:
        return count_parameters(_with_width(model, hidden), symbols) - parameters

    below, above = 1, 2
    while missed_by(above) < 0:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if missed_by(middle) < 0 else (below, middle)
    exact = min(below, above, key=lambda hidden: abs(missed_by(hidden)))
    down = exact // _MULTIPLE * _MULTIPLE
    even = min(max(down, _MULTIPLE), down + _MULTIPLE, key=lambda hidden: abs(missed_by(hidden)))
    return even if abs(missed_by(even)) <= _TOLERANCE * parameters else exact


def _with_width(model: ModelSection, hidden: int) -> ModelSection:
    embedding = hidden if model.tied and model.embedding else model.embedding
    return ModelSection.model_validate(model.model_dump() | {"hidden": hidden, "embedding": embedding})


def equal_parameters(planned: Sequence[Candidate], symbols: Sequence[int]) -> tuple[list[Candidate], list[str]]:
    """Adapt the hidden widths so that every candidate has about as many parameters as the first.

    Args:
        symbols: V of each candidate.

    Returns:
        The candidates, and a sentence for each that says which width it got.
    """
    models = [candidate.load().recipe.model for candidate in planned]
    wanted = count_parameters(models[0], symbols[0])
    adapted, sentences = [planned[0]], [f"{planned[0].name}: hidden {models[0].hidden}, {wanted:,} parameters"]
    for candidate, model, V in zip(planned[1:], models[1:], symbols[1:], strict=True):
        new = _with_width(model, closest_width(model, V, wanted))
        overrides = [f"model.hidden={new.hidden}"]
        if new.embedding != model.embedding:
            overrides.append(f"model.embedding={new.embedding}")
        adapted.append(Candidate(candidate.name, candidate.source, (*candidate.overrides, *overrides)))
        count = count_parameters(new, V)
        sentences.append(
            f"{candidate.name}: hidden {model.hidden} becomes {new.hidden}, {count:,} parameters ({count / wanted - 1:+.2%})"
        )
    return adapted, sentences


class EqualTime:
    """Plans lengths so that every candidate trains for the same time, from its speed over a few updates.

    A plan is remembered in a file, so that a repeated comparison goes on with the same lengths.

    Args:
        path: of the file.
        seconds: of training, for each run.
        device: where the speed is measured.

    Raises:
        UsageError: the file was made for another time.
    """

    def __init__(self, path: Path, seconds: float, device: str = "auto") -> None:
        self._path, self._seconds, self._device = path, seconds, device
        self._updates: dict[str, int] = {}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["seconds"] != seconds:
                raise UsageError(
                    f"{path.parent} holds runs planned for {stored['seconds']:.1f} s of training, and now {seconds:.1f} s are "
                    "asked for; --overwrite starts them anew, --out DIR goes elsewhere"
                )
            self._updates = stored["updates"]

    def overrides(self, candidate: Candidate) -> list[str]:
        """What gives a candidate its length."""
        if candidate.name not in self._updates:
            per_update = seconds_per_update(candidate, self._device, self._seconds)
            self._updates[candidate.name] = max(1, round(self._seconds / per_update))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"seconds": self._seconds, "updates": self._updates}), encoding="utf-8")
        return [f"train.updates={self._updates[candidate.name]}", "train.time=null"]


def seconds_per_update(candidate: Candidate, device: str, seconds: float) -> float:
    """Train a candidate for a moment, in a folder that is thrown away.

    Args:
        seconds: how long a run is to take; a twentieth of it is timed, 5 s at most, but at least 20 updates.
    """
    never = [f"{section}.every={_NEVER}" for section in ("evaluate", "checkpoint", "sample")]
    loaded = candidate.load(f"train.updates={_NEVER}", "train.time=null", *never)
    with tempfile.TemporaryDirectory(prefix="charlm-") as folder:
        options = Options(Path(folder), Limits(time.monotonic()), device=device)
        trainer = start(loaded, options).trainer
        try:
            updates = trainer.run()
            for _ in range(_WARM_UP):
                next(updates)
            began, done = time.perf_counter(), 0
            while done < _TIMED or time.perf_counter() - began < min(5.0, seconds / 20):
                next(updates)
                done += 1
            return (time.perf_counter() - began) / done
        finally:
            trainer.folder.close()


# -- runs ------------------------------------------------------------------------------------------------------------


def final_record(folder: Path, loaded: LoadedRecipe) -> dict[str, Any] | None:
    """What a run reached that has come to its end; ``None`` if there is none in the folder, or it has not yet.

    Raises:
        RecipeError: the run was made with another recipe. (Half of one schedule and half of another compare with nothing.)
    """
    try:
        stored = validate_recipe(checkpoint.describe(folder / LAST)["recipe"], str(folder))
    except CheckpointError:  # absent, or damaged: there may be an older one to go on from
        return None
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
        last: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, IndexError, ValueError):  # the process was killed before or within a line
        return None
    return last if last["kind"] == "finished" and last["stopped_because"] not in ("interrupted", "max steps") else None


@dataclass(frozen=True)
class Point:
    """Nats per character at a moment of training: after so many characters and seconds of training."""

    characters: int
    seconds: float
    nats: float


def learning_curve(folder: Path, kind: Literal["training", "validation"]) -> list[Point]:
    """A run's validations, or its training averaged into at most 200 points."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    steps = {line["step"]: line for line in lines if line["kind"] == "step"}

    def point(step: int, nats: float) -> Point:
        return Point(steps[step]["characters"], steps[step]["seconds"], nats)

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


# -- the comparison --------------------------------------------------------------------------------------------------


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
        candidate.name: [learning_curve(run.folder, measured_on) for run in several] for candidate, several in results.items()
    }
    best = [min(point.nats for point in curve) for several in curves.values() for curve in several if curve]
    nats = math.log(to_perplexity) if to_perplexity is not None else max(best)
    rows = [_row(candidate, several, curves[candidate.name], nats, held_out) for candidate, several in results.items()]
    return Comparison(rows, measured_on, perplexity(nats), _notices(results, held_out), curves)


def _row(candidate: Candidate, runs: Sequence[Run], curves: Sequence[Sequence[Point]], nats: float, held_out: bool) -> Row:
    loaded = candidate.load()
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
        recipe=loaded.name,
        cell=loaded.recipe.model.cell,
        hidden=loaded.recipe.model.hidden,
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
