"""Successive halving: draws candidates, trains them, keeps the better half, and records all of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from charlm.checkpoint import RUNS
from charlm.comparison.candidates import Candidate, candidate
from charlm.comparison.equal import EqualTime
from charlm.comparison.jobs import Job, Jobs, Reporter
from charlm.config import LoadedRecipe, load_recipe, recipe_name, time_limit
from charlm.data.dataset import open_dataset
from charlm.errors import DivergedError, RecipeError, UsageError
from charlm.evaluation.perplexity import perplexity
from charlm.files import is_free, whole_file
from charlm.training.recipe_paths import anchored
from charlm.training.run import override_texts
from charlm.tuning.space import Dimension, Settings, as_overrides, default_space, dimension, draw
from charlm.yaml_text import dump_yaml

RESULTS = "tune.json"
"""The file of a search: its settings, its candidates, their results."""

SECONDS = 60.0
"""Training time of a candidate whose recipe gives no length."""

_MARK = "# Written by charlm tune."


@dataclass(frozen=True)
class Trial:
    """A candidate and its result.

    Attributes:
        number: 0 is the recipe as it is.
        settings: key → value; empty for the recipe as it is.
        rung: the last rung in which it was trained, from 1.
        steps: of that training; ``None``: it diverged.
        validation_nats: of its best weights, exact with carried state; ``None``: it diverged.
        perplexity: of the same.
        change: ``validation_nats`` minus that of the recipe as it is, in the same rung; ``None``: one of them diverged.
        folder: the folder of that run.
    """

    number: int
    settings: Settings
    rung: int
    steps: int | None
    validation_nats: float | None
    perplexity: float | None
    change: float | None
    folder: str


@dataclass(frozen=True)
class Tuned:
    """The results of a search.

    Attributes:
        folder: the folder of the runs' folders, and of ``tune.json``.
        trials: all candidates, the best first.
        best: the lowest validation loss in the last rung.
        overrides: ``KEY=VALUE``: the recipe of ``best`` in terms of the recipe that was searched.
        recipe: the recipe of ``best``, as YAML.
        notices: candidates that diverged.
    """

    folder: Path
    trials: list[Trial]
    best: Trial
    overrides: list[str]
    recipe: str
    notices: list[str]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "candidates": [asdict(trial) for trial in self.trials],
            "best": self.best.number,
            "overrides": self.overrides,
            "folder": str(self.folder),
            "notices": self.notices,
        }


def tune(
    recipe: str | os.PathLike[str],
    search: Mapping[str, str] | Sequence[str] = (),
    overrides: Mapping[str, object] | Sequence[str] = (),
    *,
    candidates: int = 16,
    rungs: int = 3,
    steps: int | None = None,
    time: float | str | None = None,
    seed: int = 1,
    jobs: int = 1,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Tuned:
    """Search the settings of a recipe that give the lowest validation loss.

    All candidates are trained for a short time, the better half for twice as long, and so on; the last rung has the full
    length. The recipe as it is takes part in every rung. The same call resumes an interrupted search.

    Args:
        recipe: the name of a shipped recipe, or the path of a YAML file or of a text.
        search: key → range ``LOW..HIGH`` or values ``V1,V2,…``; or texts such as ``train.lr=0.001..0.01``. Empty:
            learning rate and dropout, and for a given time also the sizes of model and batch.
        overrides: for all candidates, as of :func:`charlm.train`.
        candidates: number of settings to draw.
        rungs: number of rounds.
        steps: length of a training in the last rung.
        time: its training time instead, in seconds or as a duration such as ``5m``. The steps are planned from the speed of
            each candidate. Neither: the recipe's own length or, if it gives none, a minute.
        seed: determines which settings are drawn.
        jobs: number of runs side by side, each in a process of its own.
        out: folder of the runs' folders; ``None``: ``checkpoints/tune-<recipe>``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        reporter: receives the progress; ``None``: nothing is shown.

    Raises:
        UsageError: a value that is impossible, a folder that holds another search, no validation text, or no result.
        RecipeError: a wrong recipe, key, range or value.
        KeyboardInterrupt: a run was interrupted, and saved.
    """
    source, common = os.fspath(recipe), override_texts(overrides)
    texts = [f"{key}={values}" for key, values in search.items()] if isinstance(search, Mapping) else list(search)
    seconds = time_limit(time, parameter="time")
    _check(candidates, rungs, steps, seconds)
    loaded = load_recipe(source, common)
    if steps is None and seconds is None and loaded.recipe.train.total_steps is None and loaded.recipe.train.epochs is None:
        seconds = loaded.recipe.train.time or SECONDS
    texts = texts or default_space(loaded.recipe, is_timed=seconds is not None)
    space = [dimension(text) for text in texts]
    _check_space(source, common, space)
    folder = Path(out) if out is not None else RUNS / f"tune-{recipe_name(source)}"
    asked = {
        "recipe": source, "overrides": common, "search": texts, "candidates": candidates, "rungs": rungs, "steps": steps,
        "seconds": seconds, "seed": seed,
    }  # fmt: skip
    training = Jobs(jobs, "auto", False, device, reporter)
    _check_validation(loaded, training.reporter)
    stored = _stored(folder / RESULTS, asked)
    drawn = stored["drawn"] if stored else [{}, *draw(space, candidates, seed)]
    _write(folder / RESULTS, {"asked": asked, "drawn": drawn})
    rows = [_row(number, source, settings, common) for number, settings in enumerate(drawn)]
    planned = _Lengths(folder, rows, rungs, steps, seconds, device, training)
    found = _halve(rows, drawn, planned, training, folder)
    _write(folder / RESULTS, {"asked": asked, "drawn": drawn, **found.as_json()})
    return found


def _check(candidates: int, rungs: int, steps: int | None, seconds: float | None) -> None:
    for name, value in (("candidates", candidates), ("rungs", rungs), ("steps", steps)):
        if value is not None and value < 1:
            raise UsageError(f"{value}: expected 1 or more", parameter=name)
    if steps is not None and seconds is not None:
        raise UsageError(f"{steps}: steps and time both give the length; keep one", parameter="steps")


def _check_space(source: str, common: Sequence[str], space: Sequence[Dimension]) -> None:
    """Refuse keys that are given twice, and values that the recipe refuses, before anything is trained."""
    keys = [one.key for one in space]
    for one in space:
        if keys.count(one.key) > 1:
            raise RecipeError(f"{one.key}: is searched twice; give all its values once", parameter="search")
        if one.key in ("train.total_steps", "train.epochs", "train.time", "train.seed"):
            raise RecipeError(f"{one.key}: cannot be searched; steps and time give the length", parameter="search")
        for value in one.ends:
            try:
                candidate(source, as_overrides({one.key: value}), common)
            except RecipeError as error:
                raise RecipeError(str(error), parameter="search") from None


def _check_validation(loaded: LoadedRecipe, reporter: Reporter) -> None:
    with reporter.reading() as (fetching, encoding):
        start, stop = open_dataset(loaded, fetch_progress=fetching, encode_progress=encoding).splits["validation"]
    if stop - start < 2:
        raise UsageError(
            "the text has no validation part, and candidates are ranked by it; set data.split, such as data.split=[0.9,0.1,0]"
        )


def _row(number: int, source: str, settings: Settings, common: Sequence[str]) -> Candidate:
    found = candidate(source, as_overrides(settings), common)
    return Candidate(f"candidate-{number:02}", found.source, found.overrides)


# -- the file of a search --


def _stored(path: Path, asked: Mapping[str, object]) -> dict[str, Any] | None:
    """The search that a folder holds.

    Raises:
        UsageError: it is another search, or the file was not written by charlm.
    """
    if not os.path.lexists(path):
        return None
    try:
        stored = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or not isinstance(stored.get("asked"), dict) or not isinstance(stored.get("drawn"), list):
        raise UsageError(f"{path} was not written by charlm", advice={"move it": {}, "use another folder": {"out": "DIR"}})
    changed = [name for name, value in asked.items() if stored["asked"].get(name) != value]
    if changed:
        lines = [f"  {name}: was {stored['asked'].get(name)}, is now {asked[name]}" for name in changed]
        raise UsageError(
            "\n".join([f"{path.parent} holds another search:", *lines]),
            advice={"repeat its command to resume it": {}, "use another folder": {"out": "DIR"}},
        )
    return stored


def _write(path: Path, content: Mapping[str, object]) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def check_recipe_path(path: Path) -> None:
    """Refuse a path that is not free for a recipe; ask before a long computation.

    Raises:
        UsageError: another file is there.
    """
    if path.is_dir() or not is_free(path, [_MARK.encode()]):
        raise UsageError(f"{path} exists, and was not written by charlm tune; choose another name", parameter="output")


def write_recipe(path: Path, found: Tuned) -> None:
    """Write the recipe of the best candidate.

    Raises:
        UsageError: another file is there.
        OSError: it cannot be written.
    """
    check_recipe_path(path)
    with whole_file(path) as file:
        file.write(found.recipe.encode("utf-8"))


def _recipe_text(best: Trial, loaded: LoadedRecipe) -> str:
    values = anchored(loaded).model_dump(mode="json", exclude_unset=True)
    values.pop("reported", None)  # the result of another recipe
    values = {section: content for section, content in values.items() if content != {}}
    return f"{_MARK} Validation: {best.validation_nats:.4f} nats per character after {best.steps:,} steps.\n{dump_yaml(values)}"


# -- the search --


class _Lengths:
    """The length of each candidate's training in each rung: half of the next rung's."""

    def __init__(
        self, folder: Path, rows: Sequence[Candidate], rungs: int, steps: int | None, seconds: float | None, device: str,
        training: Jobs,
    ) -> None:  # fmt: skip
        self.rungs = rungs
        self._steps = steps
        self._plans: dict[str, list[str]] = {}
        self.diverged: set[str] = set()
        if seconds is None:
            return
        plans = EqualTime(folder / "equal-time.json", seconds, device)
        for row in rows:
            try:
                self._plans[row.name] = plans.overrides(row)
                training.reporter.notice(f"{row.name}: {self._plans[row.name][-2].partition('=')[2]} steps in {seconds:g} s")
            except DivergedError as error:
                if row is rows[0]:
                    raise
                self.diverged.add(row.name)
                training.left_out.append(f"{row.name} is left out: {error}")

    def overrides(self, row: Candidate, rung: int) -> list[str]:
        """The length in a rung, from 1; the last rung has the whole length."""
        halvings = self.rungs - rung
        if row.name in self._plans:
            others = [text for text in self._plans[row.name] if not text.startswith("train.total_steps=")]
            (steps,) = (text for text in self._plans[row.name] if text.startswith("train.total_steps="))
            return [*others, f"train.total_steps={max(1, int(steps.partition('=')[2]) >> halvings)}"]
        train = row.load().recipe.train
        steps_ = self._steps or train.total_steps
        if steps_ is not None:
            return [f"train.total_steps={max(1, steps_ >> halvings)}", "train.time=null"]
        assert train.epochs is not None
        return [f"train.epochs={train.epochs / 2**halvings}", "train.time=null"]


def _halve(rows: Sequence[Candidate], drawn: Sequence[Settings], lengths: _Lengths, training: Jobs, folder: Path) -> Tuned:
    baseline, *others = [row for row in rows if row.name not in lengths.diverged]
    sizes, size = [], len(others)
    for _ in range(lengths.rungs):
        sizes.append(1 + size)
        size = max(1, size // 2)
    numbers = {row: number for number, row in enumerate(rows)}
    trials: dict[Candidate, Trial] = {}
    for rung in range(1, lengths.rungs + 1):
        jobs = {
            row: Job(f"{row.name}, rung {rung}", row.but(*lengths.overrides(row, rung)), folder / f"{row.name}-rung-{rung}")
            for row in (baseline, *others)
        }
        records = training.train(jobs.values(), sum(sizes), 1 + sum(sizes[: rung - 1]))
        nats = {row: records[job]["nats_per_character"] for row, job in jobs.items() if job in records}
        for row, job in jobs.items():
            reached = nats.get(row)
            trials[row] = Trial(
                number=numbers[row],
                settings=drawn[numbers[row]],
                rung=rung,
                steps=records[job]["step"] if job in records else None,
                validation_nats=reached,
                perplexity=None if reached is None else perplexity(reached),
                change=None if reached is None or baseline not in nats else reached - nats[baseline],
                folder=str(job.folder),
            )
        others = sorted((row for row in others if row in nats), key=lambda row: nats[row])[: max(1, len(others) // 2)]
    ordered = sorted(trials.values(), key=lambda trial: (-trial.rung, _or_infinite(trial.validation_nats), trial.number))
    best = ordered[0]
    if best.validation_nats is None:
        raise UsageError("no run has a result:\n" + "\n".join(training.left_out))
    row = rows[best.number]
    whole = row.but(*lengths.overrides(row, lengths.rungs))
    return Tuned(folder, ordered, best, list(whole.overrides), _recipe_text(best, whole.load()), list(training.left_out))


def _or_infinite(nats: float | None) -> float:
    return math.inf if nats is None else nats
