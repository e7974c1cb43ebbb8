"""Keys that were renamed: refused in a recipe with the new name, converted in stored recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "train.steps": "train.seq_length",
    "train.updates": "train.total_steps",
    "train.sampling": "train.batching",
    "figure": "reported",
}
"""Keys of recipes in checkpoints of format 1 → present keys."""


def with_present_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe of an earlier version, with the present keys."""
    renamed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    for old, new in RENAMED.items():
        section, _, name = old.rpartition(".")
        values = renamed.get(section) if section else renamed
        if isinstance(values, dict) and name in values:
            values[new.rpartition(".")[2]] = values.pop(name)
    return renamed
