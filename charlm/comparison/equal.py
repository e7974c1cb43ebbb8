"""Makes candidates equal: in the number of parameters, by the hidden width, or in training time, by the length."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from charlm.comparison.candidates import Candidate
from charlm.config import LoadedRecipe, ModelSection
from charlm.errors import UsageError
from charlm.files import whole_file
from charlm.model.language_model import count_parameters
from charlm.training import defaults
from charlm.training.events import StepDone
from charlm.training.plan import Limits
from charlm.training.start import Options, start
from charlm.training.trainer import Trainer

_MULTIPLE, _TOLERANCE = 8, 0.01
"""A hidden width is a multiple of 8 if the number of parameters is then within 1 % of the target."""

_NEVER = 10**9  # steps
_WARM_UP = 5  # steps, not timed
_TIMED = 20  # steps at least


def closest_width(model: ModelSection, symbols: int, parameters: int) -> int:
    """The hidden width H with which a model has about this number of parameters.

    Args:
        model: the network; its own width is ignored.
        symbols: V.
        parameters: the target.

    Returns:
        The closest multiple of 8, if its number of parameters is within 1 % of the target; otherwise the closest integer.
    """

    def excess(hidden: int) -> int:
        return count_parameters(_with_width(model, hidden), symbols) - parameters

    below, above = 1, 2
    while excess(above) < 0:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if excess(middle) < 0 else (below, middle)
    exact = min(below, above, key=lambda hidden: abs(excess(hidden)))
    down = exact // _MULTIPLE * _MULTIPLE
    even = min(max(down, _MULTIPLE), down + _MULTIPLE, key=lambda hidden: abs(excess(hidden)))
    return even if abs(excess(even)) <= _TOLERANCE * parameters else exact


def _with_width(model: ModelSection, hidden: int) -> ModelSection:
    embedding = hidden if model.tied and model.embedding else model.embedding
    return model.model_copy(update={"hidden": hidden, "embedding": embedding})


def equal_parameters(planned: Sequence[Candidate], symbols: Sequence[int]) -> tuple[list[Candidate], list[str]]:
    """Adapt the hidden widths so that every candidate has about as many parameters as the first.

    Args:
        symbols: V of each candidate.

    Returns:
        The candidates, and a sentence about each width.
    """
    models = [candidate.load().recipe.model for candidate in planned]
    wanted = count_parameters(models[0], symbols[0])
    adapted, sentences = [planned[0]], [f"{planned[0].name}: hidden {models[0].hidden}, {wanted:,} parameters"]
    for candidate, model, V in zip(planned[1:], models[1:], symbols[1:], strict=True):
        new = _with_width(model, closest_width(model, V, wanted))
        overrides = [f"model.hidden={new.hidden}"]
        if new.embedding != model.embedding:
            overrides.append(f"model.embedding={new.embedding}")
        adapted.append(candidate.but(*overrides))
        count = count_parameters(new, V)
        sentences.append(
            f"{candidate.name}: hidden {model.hidden} becomes {new.hidden}, {count:,} parameters ({count / wanted - 1:+.2%})"
        )
    return adapted, sentences


class EqualTime:
    """Plans lengths so that every candidate trains for the same time, from its speed over a few steps.

    Plans are stored in a file, so that a repeated comparison has the same lengths.

    Args:
        path: the file of the plans.
        seconds: training time of each run.
        device: where the speed is measured.
        from_first_run: the time is that of a run trained as its recipe says. Values that recipes leave open are then chosen
            as for that run; otherwise for a training of ``seconds``.

    Raises:
        UsageError: the file was made for another time.
    """

    def __init__(self, path: Path, seconds: float, device: str = "auto", *, from_first_run: bool = False) -> None:
        self._path, self._seconds, self._device = path, seconds, device
        self._chosen_for = None if from_first_run else seconds
        self._plans: dict[str, list[str]] = {}
        if os.path.lexists(path):
            stored = _stored_plans(path)
            if stored["seconds"] != seconds:
                raise UsageError(
                    f"{path.parent} holds runs planned for {stored['seconds']:.1f} s of training, not for {seconds:.1f} s",
                    advice={"start again": {"overwrite": True}, "use another folder": {"out": "DIR"}},
                )
            self._plans = stored["plans"]

    def overrides(self, candidate: Candidate) -> list[str]:
        """The length of a candidate, ``train.total_steps=…``, and all values that its recipe leaves to charlm."""
        if candidate.name not in self._plans:
            chosen = values_left_open(candidate, self._device, self._chosen_for)
            closed = candidate.but(*chosen)
            steps = max(1, round(self._seconds / seconds_per_step(closed, self._device, self._seconds)))
            self._plans[candidate.name] = [*chosen, f"train.total_steps={steps}", "train.time=null"]
            with whole_file(self._path) as file:
                file.write(json.dumps({"seconds": self._seconds, "plans": self._plans}).encode())
        return self._plans[candidate.name]


def _stored_plans(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or stored.keys() != {"seconds", "plans"}:
        raise UsageError(f"{path} was not written by charlm", advice={"move it": {}, "use another folder": {"out": "DIR"}})
    return stored


def remove_plans(path: Path) -> None:
    """Delete the plans of an earlier comparison.

    Raises:
        UsageError: the file was not written by charlm.
    """
    if os.path.lexists(path):
        _stored_plans(path)
        path.unlink()


def values_left_open(candidate: Candidate, device: str, seconds: float | None = None) -> list[str]:
    """The values that charlm chooses for a recipe without a length, as overrides; the length itself is left out.

    Args:
        seconds: planned training time; ``None``: as the recipe says.
    """
    recipe = candidate.load().recipe
    if not defaults.needs_plan(recipe):
        return []
    with _started(candidate.load(*([f"train.time={seconds}s"] if seconds is not None else [])), device) as trainer:
        chosen = defaults.chosen_overrides(recipe, trainer.recipe)
    return [override for override in chosen if not override.startswith("train.epochs=")]


def with_chosen_width(candidate: Candidate, device: str) -> Candidate:
    """The candidate with its hidden width as an override, if its recipe leaves the width to charlm."""
    return candidate.but(*(value for value in values_left_open(candidate, device) if value.startswith("model.hidden=")))


def seconds_per_step(candidate: Candidate, device: str, seconds: float) -> float:
    """Measure the duration of a training step.

    Args:
        seconds: planned training time; a twentieth of it is measured, at most 5 s, but at least 20 steps.
    """
    never = [f"{section}.every={_NEVER}" for section in ("evaluate", "checkpoint", "sample")]
    with _started(candidate.load(f"train.total_steps={_NEVER}", "train.time=null", *never), device) as trainer:
        steps = (event for event in trainer.run() if isinstance(event, StepDone))
        for _ in range(_WARM_UP):
            next(steps)
        began, done = time.perf_counter(), 0
        while done < _TIMED or time.perf_counter() - began < min(5.0, seconds / 20):
            next(steps)
            done += 1
        return (time.perf_counter() - began) / done


@contextmanager
def _started(loaded: LoadedRecipe, device: str) -> Iterator[Trainer]:
    """A trainer whose folder is deleted at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="charlm-") as folder,
        start(loaded, Options(Path(folder), Limits(time.monotonic()), device=device)) as begun,
    ):
        yield begun.trainer
