"""Runs a recipe, and hands the events of its training to observers.

:func:`train` is public (``charlm.train``). The command line, which draws and handles more signals, uses the same two parts:
``with start(…) as begun`` and :func:`run`.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from charlm.checkpoint import RUNS
from charlm.config import LoadedRecipe, apply_overrides, load_recipe, recipe_name, time_limit, validate_recipe
from charlm.distributed import join
from charlm.errors import UsageError
from charlm.progress import Progress
from charlm.training.events import Event, Finished
from charlm.training.observers import Observer, make_loggers
from charlm.training.observers.run_log import RunLog
from charlm.training.plan import Limits
from charlm.training.start import Options, Resume, start
from charlm.training.trainer import Trainer


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | LoadedRecipe,
    overrides: Mapping[str, object] | Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    *,
    resume: Resume = "never",
    overwrite: bool = False,
    init: str | os.PathLike[str] | None = None,
    device: str = "auto",
    verify: bool = False,
    max_steps: int | None = None,
    max_time: float | str | None = None,
    log: str | Sequence[str] = (),
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """Train a model as a recipe says, or on a text.

    In the main thread Ctrl-C finishes the step, saves and returns the record with ``stopped_because`` ``interrupted``; a second
    Ctrl-C raises ``KeyboardInterrupt`` at once.

    In a script that ``torchrun`` has started, all its processes train together. Only the first one writes, calls observers and
    returns an exact evaluation.

    Args:
        recipe: the name of a shipped recipe, the path of a YAML file or of a text, a recipe's content as a dictionary, or a
            loaded recipe.
        overrides: key → value, such as ``{"train.time": "60s"}``; or texts such as ``"train.lr=0.01"``. A value that is a
            text is read as YAML, as on the command line.
        out: the run's folder; ``None``: ``checkpoints/`` and the recipe's name.
        resume: ``never``; ``auto``: resume if the folder holds a run; ``must``: it has to.
        overwrite: move an earlier run aside and start anew.
        init: a checkpoint to take initial weights from.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        verify: hash the text even if its files look unchanged.
        max_steps: stop after this many steps, earlier attempts included.
        max_time: seconds, or a duration such as ``5m``, after which to stop.
        log: ``tensorboard``: write the metrics for TensorBoard too, in the folder ``tensorboard`` of the run.
        observers: are called with every event (:mod:`charlm.training.events`). One that raises an exception is reported by a
            ``RuntimeWarning`` and not called again.

    Returns:
        The final record: the keys of ``charlm train --json``.

    Raises:
        CharlmError: the recipe is wrong, the text or the folder cannot be used, or the training diverged.
    """
    started_at = time.monotonic()
    if max_steps is not None and max_steps < 0:
        raise UsageError(f"{max_steps}: expected 0 or more", parameter="max_steps")
    world = join(device)
    loaded = world.together(lambda: load(recipe, overrides))
    options = Options(
        out=Path(out) if out is not None else RUNS / loaded.name,
        limits=Limits.of(loaded.recipe, started_at, max_steps, time_limit(max_time)),
        resume=resume,
        overwrite=overwrite,
        init=os.fspath(init) if init is not None else None,
        device=device,
        verify=verify,
        world=world,
    )
    loggers = make_loggers([log] if isinstance(log, str) else log, options.out) if world.is_first else []
    handles_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with (
        closing(world),
        start(loaded, options) as begun,
        stop_on_signals(begun.trainer, [signal.SIGINT] if handles_ctrl_c else []),
    ):
        return run(begun.trainer, [*loggers, *observers]).record


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def run(
    trainer: Trainer,
    observers: Iterable[Observer] = (),
    exact_progress: Progress | None = None,
    report: Callable[[str], object] = _warn,
) -> Finished:
    """Train to the end, with the log of the run's folder. Arguments and errors are those of :func:`observed`.

    Returns:
        The last event.
    """
    with closing(observed(trainer, observers, exact_progress, report)) as events:
        for event in events:
            if isinstance(event, Finished):
                return event
    raise AssertionError("a run ends with Finished")


def observed(
    trainer: Trainer,
    observers: Iterable[Observer] = (),
    exact_progress: Progress | None = None,
    report: Callable[[str], object] = _warn,
) -> Generator[Event, None, None]:
    """Train, and yield each event after the log of the run's folder and then all observers have handled it.

    An observer that raises an exception is not called again, and the training continues. An error of the folder's log ends it.
    ``trainer.run()`` yields the same events, but records nothing. Of several processes, only the first has a log and observers.

    Args:
        observers: are called with every event.
        exact_progress: see :meth:`charlm.training.trainer.Trainer.run`.
        report: is told, once per observer, which one failed and why. Without it, this is a ``RuntimeWarning``.

    Raises:
        CharlmError: the training diverged, or the run's folder cannot be written.
    """
    records = trainer.world.is_first
    log = RunLog(trainer.folder)
    guarded = [_Guarded(observer, report) for observer in observers if records]
    try:
        for event in trainer.run(exact_progress):
            if records:
                log(event)
            for observer in guarded:
                observer(event)
            yield event
    finally:
        for observer in guarded:
            observer.close()


class _Guarded:
    """An observer whose failure stops nothing: it is reported once, and the observer is not called again."""

    def __init__(self, observer: Observer, report: Callable[[str], object]) -> None:
        self._observer, self._report = observer, report
        self._has_failed = False

    def __call__(self, event: Event) -> None:
        if not self._has_failed:
            self._try(self._observer, event)

    def close(self) -> None:
        close = getattr(self._observer, "close", None)
        if callable(close):
            self._try(close)

    def _try(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                name = getattr(self._observer, "__qualname__", type(self._observer).__qualname__)
                self._report(f"the observer {name} failed and is not called again: {type(error).__name__}: {error}")


def load(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | LoadedRecipe, overrides: Mapping[str, object] | Sequence[str] = ()
) -> LoadedRecipe:
    """A recipe in any of its forms, with overrides; arguments as of :func:`train`.

    Raises:
        RecipeError: wrong keys or values.
    """
    overrides = override_texts(overrides)
    if isinstance(recipe, LoadedRecipe):
        raw = recipe.recipe.model_dump(mode="json", exclude_unset=True)
        changed = validate_recipe(apply_overrides(raw, overrides), recipe.name, overrides) if overrides else recipe.recipe
        return replace(recipe, recipe=changed)
    if isinstance(recipe, Mapping):
        found = validate_recipe(apply_overrides(recipe, overrides), "the recipe", overrides)
        return LoadedRecipe(recipe_name(found.corpus), found, Path.cwd())
    return load_recipe(os.fspath(recipe), overrides)


def override_texts(overrides: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Overrides as ``KEY=VALUE``; arguments as of :func:`train`."""
    if isinstance(overrides, Mapping):
        return [f"{key}={_written(value)}" for key, value in overrides.items()]
    return list(overrides)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=os.fspath, ensure_ascii=False)


class CanStop(Protocol):
    """A trainer, or several."""

    def request_stop(self, reason: str) -> None:
        """Finish the step, save and stop."""


@contextmanager
def stop_on_signals(
    trainer: CanStop, signals: Sequence[signal.Signals], on_request: Callable[[], None] | None = None
) -> Iterator[None]:
    """The first of these signals requests a stop; a second raises ``KeyboardInterrupt``. Outside the main thread: nothing.

    A second SIGHUP is ignored: the system and the shell both send one when a terminal closes.

    Args:
        on_request: is called after the first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGHUP:
            return
        if asked:
            raise KeyboardInterrupt
        asked = True
        trainer.request_stop("interrupted")
        if on_request is not None:
            on_request()

    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
