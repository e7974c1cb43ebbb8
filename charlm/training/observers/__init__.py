"""Observers: functions of the events of a training. The log of the run's folder is one, the console's display another.

To write one, see docs/python.md. To let users choose it with ``--log``, add it to :data:`LOGGERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from charlm.errors import UsageError
from charlm.training.events import Event
from charlm.training.observers.tensorboard import TensorBoard

Observer = Callable[[Event], object]
"""Is called with every event of a run. A method ``close``, if it has one, is called when the run is over, however it ends."""

LOGGERS: dict[str, Callable[[Path], Observer]] = {"tensorboard": TensorBoard}
"""Name → observer of a run, given its folder. It must not write there before the first event."""


def make_loggers(names: Sequence[str], run: Path) -> list[Observer]:
    """The observers with these names, each once.

    Args:
        names: keys of :data:`LOGGERS`.
        run: the run's folder, which may not exist yet.

    Raises:
        UsageError: there is no such logger, or it needs a package that is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise UsageError(f"{name}: expected {' or '.join(LOGGERS)}", parameter="log")
    return [LOGGERS[name](run) for name in dict.fromkeys(names)]
