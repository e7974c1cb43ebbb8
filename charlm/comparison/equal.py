"""What is held equal: the number of parameters, by the hidden width, or the training time, by the length."""

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
from charlm.training.plan import Limits
from charlm.training.start import Options, start
from charlm.training.trainer import Trainer

_MULTIPLE, _TOLERANCE = 8, 0.01
"""A hidden width is a multiple of 8 where the number of parameters is then within 1 % of the wanted one."""

_NEVER = 10**9  # updates
_WARM_UP = 5  # updates, which are not timed
_TIMED = 20  # updates at least


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
    return model.model_copy(update={"hidden": hidden, "embedding": embedding})


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
        adapted.append(candidate.but(*overrides))
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
        as_the_first: whether the time is that of a run that was trained as its recipe says. What recipes leave open is then
            chosen as it was for that run; otherwise for so many seconds.

    Raises:
        UsageError: the file was made for another time.
    """

    def __init__(self, path: Path, seconds: float, device: str = "auto", *, as_the_first: bool = False) -> None:
        self._path, self._seconds, self._device = path, seconds, device
        self._chosen_for = None if as_the_first else seconds
        self._plans: dict[str, list[str]] = {}
        if os.path.lexists(path):
            stored = _stored_plans(path)
            if stored["seconds"] != seconds:
                raise UsageError(
                    f"{path.parent} holds runs planned for {stored['seconds']:.1f} s of training, and now {seconds:.1f} s are "
                    "asked for; --overwrite starts them anew, --out DIR goes elsewhere"
                )
            self._plans = stored["plans"]

    def overrides(self, candidate: Candidate) -> list[str]:
        """What gives a candidate its length: ``train.total_steps=…``, and all else that its recipe leaves to charlm."""
        if candidate.name not in self._plans:
            chosen = values_left_open(candidate, self._device, self._chosen_for)
            closed = candidate.but(*chosen)
            updates = max(1, round(self._seconds / seconds_per_update(closed, self._device, self._seconds)))
            self._plans[candidate.name] = [*chosen, f"train.total_steps={updates}", "train.time=null"]
            with whole_file(self._path) as file:
                file.write(json.dumps({"seconds": self._seconds, "plans": self._plans}).encode())
        return self._plans[candidate.name]


def _stored_plans(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or stored.keys() != {"seconds", "plans"}:
        raise UsageError(f"{path} was not written by charlm compare; move it elsewhere, or choose another --out")
    return stored


def remove_plans(path: Path) -> None:
    """Forget the plans of an earlier comparison.

    Raises:
        UsageError: the file is not charlm's.
    """
    if os.path.lexists(path):
        _stored_plans(path)
        path.unlink()


def values_left_open(candidate: Candidate, device: str, seconds: float | None = None) -> list[str]:
    """What charlm chooses for a recipe that gives no length, as overrides; the length itself is left out.

    Args:
        seconds: that the run is to take; ``None``: as its recipe says.
    """
    recipe = candidate.load().recipe
    if not defaults.needs_plan(recipe):
        return []
    with _started(candidate.load(*([f"train.time={seconds}s"] if seconds is not None else [])), device) as trainer:
        chosen = defaults.chosen_overrides(recipe, trainer.recipe)
    return [override for override in chosen if not override.startswith("train.epochs=")]


def with_its_width(candidate: Candidate, device: str) -> Candidate:
    """The candidate, saying the hidden width that charlm chooses where its recipe leaves that open."""
    return candidate.but(*(value for value in values_left_open(candidate, device) if value.startswith("model.hidden=")))


def seconds_per_update(candidate: Candidate, device: str, seconds: float) -> float:
    """Train a candidate for a moment.

    Args:
        seconds: how long a run is to take; a twentieth of it is timed, 5 s at most, but at least 20 updates.
    """
    never = [f"{section}.every={_NEVER}" for section in ("evaluate", "checkpoint", "sample")]
    with _started(candidate.load(f"train.total_steps={_NEVER}", "train.time=null", *never), device) as trainer:
        updates = trainer.run()
        for _ in range(_WARM_UP):
            next(updates)
        began, done = time.perf_counter(), 0
        while done < _TIMED or time.perf_counter() - began < min(5.0, seconds / 20):
            next(updates)
            done += 1
        return (time.perf_counter() - began) / done


@contextmanager
def _started(loaded: LoadedRecipe, device: str) -> Iterator[Trainer]:
    """A run in a folder that is thrown away."""
    with (
        tempfile.TemporaryDirectory(prefix="charlm-") as folder,
        start(loaded, Options(Path(folder), Limits(time.monotonic()), device=device)) as begun,
    ):
        yield begun.trainer
