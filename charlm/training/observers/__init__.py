"""Observers: functions of the events of a training. The run's own log is one, the console's display another.

To write one, see docs/python.md.
"""

from __future__ import annotations

from collections.abc import Callable

from charlm.training.events import Event

Observer = Callable[[Event], object]
"""Is called with every event of a run, and may have a method ``close``, which is called when the run is over."""
