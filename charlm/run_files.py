"""The names of the files of a run.

last.safetensors        where to resume from                best.safetensors    lowest validation loss so far
previous.safetensors    the `last` before this one          step-N.safetensors  kept, see `checkpoint.keep_every`
config.yaml             the recipe, with all defaults       metrics.jsonl       a line per step and evaluation
samples.txt             texts sampled during training       learning-curve.png  validation and training loss
.lock                   held by the process that trains
tensorboard/*.charlm    event files, with ``--log tensorboard``

best-of-schedule.safetensors   the best of the regular evaluations, while `best` is from the evaluation at a stop
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

RUNS = Path("checkpoints")
"""The default folder for runs, in the current folder."""

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
SCHEDULE_BEST = "best-of-schedule.safetensors"
METRICS, SAMPLES, CONFIG, PICTURE, LOCK = "metrics.jsonl", "samples.txt", "config.yaml", "learning-curve.png", ".lock"
TENSORBOARD, EVENTS_SUFFIX = "tensorboard", ".charlm"
"""The folder of TensorBoard's event files, and how the names of charlm's own end."""

_STEP = re.compile(r"step-([0-9]+)\.safetensors")


def step_name(step: int) -> str:
    """The name of the checkpoint that is kept of a step."""
    return f"step-{step}.safetensors"


def step_names(folder: Path) -> list[str]:
    """The names of the ``step-N`` checkpoints in a folder, the latest first."""
    found = [(int(match[1]), name) for path in folder.iterdir() if (match := _STEP.fullmatch(name := path.name))]
    return [name for _, name in sorted(found, reverse=True)]


def event_files(folder: Path) -> list[str]:
    """The event files of TensorBoard that charlm wrote, relative to a run's folder. Others may be beside them."""
    events = folder / TENSORBOARD
    if events.is_symlink() or not events.is_dir():
        return []
    names = [path.name for path in events.iterdir() if stat.S_ISREG(path.lstat().st_mode)]
    own = [name for name in names if name.startswith("events.out.tfevents.") and name.endswith(EVENTS_SUFFIX)]
    return [f"{TENSORBOARD}/{name}" for name in sorted(own)]


def is_checkpoint(name: str) -> bool:
    """Whether this is the name of a checkpoint."""
    return name in (LAST, PREVIOUS, BEST, SCHEDULE_BEST) or _STEP.fullmatch(name) is not None
