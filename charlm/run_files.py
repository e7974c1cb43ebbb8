"""The names of the files of a run.

last.safetensors        where to resume from                best.safetensors    lowest validation loss so far
previous.safetensors    the `last` before this one          step-N.safetensors  kept, see `checkpoint.keep_every`
config.yaml             the recipe, with all defaults       metrics.jsonl       a line per step and evaluation
samples.txt             texts sampled during training       learning-curve.png  validation and training loss
.lock                   held by the process that trains

best-of-schedule.safetensors   the best of the regular evaluations, while `best` is from the evaluation at a stop
"""

from __future__ import annotations

import re
from pathlib import Path

RUNS = Path("checkpoints")
"""The default folder for runs, in the current folder."""

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
SCHEDULE_BEST = "best-of-schedule.safetensors"
METRICS, SAMPLES, CONFIG, PICTURE, LOCK = "metrics.jsonl", "samples.txt", "config.yaml", "learning-curve.png", ".lock"

_STEP = re.compile(r"step-([0-9]+)\.safetensors")


def step_name(step: int) -> str:
    """The name of the checkpoint that is kept of a step."""
    return f"step-{step}.safetensors"


def step_names(folder: Path) -> list[str]:
    """The names of the ``step-N`` checkpoints in a folder, the latest first."""
    found = [(int(match[1]), name) for path in folder.iterdir() if (match := _STEP.fullmatch(name := path.name))]
    return [name for _, name in sorted(found, reverse=True)]


def is_checkpoint(name: str) -> bool:
    """Whether this is the name of a checkpoint."""
    return name in (LAST, PREVIOUS, BEST, SCHEDULE_BEST) or _STEP.fullmatch(name) is not None
