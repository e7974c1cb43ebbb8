"""A run's folder: who may write to it, what lies in it, and how it is cut back when a run goes on from a checkpoint.

last.safetensors        where to go on from          best.safetensors     the best validation so far
previous.safetensors    the one before `last`        step-N.safetensors   where asked
config.yaml             the recipe as it was run     metrics.jsonl        a line per step and evaluation
samples.txt             texts written on the way     .lock                held by the process that trains

best-of-schedule.safetensors   while weights of a stop are `best`: the best of the schedule's own evaluations, for a resumed run
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from charlm import checkpoint
from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.errors import CheckpointError, RunFolderError, UsageError
from charlm.files import flush_folder
from charlm.yaml_text import dump_yaml

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
SCHEDULE_BEST = "best-of-schedule.safetensors"
METRICS, SAMPLES, CONFIG = "metrics.jsonl", "samples.txt", "config.yaml"


class RunFolder:
    """Opens and locks a folder for one training process. The lock is the operating system's: it dies with its owner.

    Raises:
        RunFolderError: another process trains there, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logs: dict[str, TextIO] = {}
        self._last_is_good = True  # a damaged `last` must not become `previous`
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"another process is training in {path}; wait for it, stop it, or choose another --out"
            ) from None
        except OSError as error:
            raise RunFolderError(f"cannot write in the run's folder {path}: {error.strerror}; choose another --out") from None

    def close(self) -> None:
        """Close the logs and give the lock back."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()
        self._lock.release()

    def holds_run(self) -> bool:
        """Whether there is something here that starting anew would destroy."""
        return any((self.path / name).exists() for name in (LAST, PREVIOUS, BEST))

    def move_aside(self) -> Path:
        """Move what an earlier run left into a folder beside this one, and return it."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        aside.mkdir()
        for item in self.path.iterdir():
            if item.name != ".lock":
                shutil.move(item, aside / item.name)
        return aside

    def newest(self) -> tuple[Checkpoint, list[str]]:
        """The checkpoint to go on from, and what has to be said about it.

        Raises:
            CheckpointError: there is one, but none is readable.
            UsageError: there is none.
        """
        problems = []
        for name in (LAST, PREVIOUS):
            if not (self.path / name).exists():
                continue
            try:
                found = checkpoint.load(self.path / name)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if "position" not in found.progress:
                problems.append(f"{self.path / name} holds weights only; --init {self.path / name} starts a new run from them")
                continue
            self._last_is_good = name == LAST
            if name == PREVIOUS:
                problems.append(f"going on from {PREVIOUS}, step {found.progress['step']}")
            return found, problems
        if problems:
            raise CheckpointError("no readable checkpoint to go on from:\n" + "\n".join(problems))
        raise UsageError(f"--resume must: there is no run in {self.path} to go on with")

    def best_step(self, name: str = BEST) -> int | None:
        """The step that `best` comes from; ``None`` if there is no readable one."""
        try:
            return int(checkpoint.describe(self.path / name)["progress"]["step"])
        except (CheckpointError, KeyError):
            return None

    def save(self, state: Checkpoint, keep_step: bool = False) -> None:
        """Write ``last``; the one before it becomes ``previous``."""
        for log in self._logs.values():
            log.flush()
        last = self.path / LAST
        if last.exists() and self._last_is_good:
            self._keep_as(last, PREVIOUS)
        checkpoint.save(last, state)
        self._last_is_good = True
        if keep_step:
            checkpoint.save(self.path / f"step-{state.progress['step']}.safetensors", state)

    def _keep_as(self, file: Path, name: str) -> None:
        """Give a file a second name, so that it has its first one at every moment until it is replaced."""
        link = self.path / f".{name}.tmp"
        try:
            link.unlink(missing_ok=True)
            os.link(file, link)
            link.replace(self.path / name)
            link.unlink(missing_ok=True)  # a rename between two names of one file does nothing
        except OSError:  # a file system without hard links
            file.replace(self.path / name)

    def save_best(self, weights_only: Checkpoint) -> None:
        """Write ``best``."""
        checkpoint.save(self.path / BEST, weights_only)

    def set_best_aside(self) -> None:
        """Keep `best` as the schedule's own, before weights of a stop take its place.

        Killed at any moment from here on, the folder holds the schedule's best under one of its two names or both, and
        :meth:`restore_best` finds it.
        """
        self._keep_as(self.path / BEST, SCHEDULE_BEST)
        flush_folder(self.path)

    def restore_best(self, step: int | None) -> bool:
        """Bring back the schedule's own `best`, if weights of a stop took its place.

        Args:
            step: of the schedule's best, as the checkpoint says from which the run is resumed; ``None``: it has none yet.

        Returns:
            Whether `best` now holds the weights of that step.
        """
        aside = self.path / SCHEDULE_BEST
        if step is not None and self.best_step(SCHEDULE_BEST) == step:
            aside.replace(self.path / BEST)
            flush_folder(self.path)
        aside.unlink(missing_ok=True)  # a second name of `best`, or of another time than the checkpoint
        return step is not None and self.best_step() == step

    def write_config(self, recipe: Recipe) -> None:
        """Write the recipe as it is run, so that ``charlm train config.yaml`` repeats it."""
        (self.path / CONFIG).write_text(dump_yaml(recipe.model_dump(mode="json")), encoding="utf-8")

    def log_sizes(self) -> dict[str, int]:
        """Bytes in each log, to be stored with a checkpoint."""
        for log in self._logs.values():
            log.flush()
        return {name: (self.path / name).stat().st_size if (self.path / name).exists() else 0 for name in (METRICS, SAMPLES)}

    def cut_logs(self, sizes: dict[str, int]) -> None:
        """Cut the logs back to what they held when a checkpoint was written."""
        for name in (METRICS, SAMPLES):
            if (self.path / name).exists():
                os.truncate(self.path / name, min(sizes.get(name, 0), (self.path / name).stat().st_size))

    def record(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``. It reaches the disk at the next checkpoint at the latest."""
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entry.items()}
        self._log(METRICS).write(json.dumps(plain, ensure_ascii=False) + "\n")

    def record_sample(self, heading: str, text: str) -> None:
        """Append a text to ``samples.txt``, at once, so that one can watch."""
        log = self._log(SAMPLES)
        log.write(f"━━━ {heading} ━━━\n{text}\n\n")
        log.flush()

    def _log(self, name: str) -> TextIO:
        if name not in self._logs:
            self._logs[name] = (self.path / name).open("a", encoding="utf-8", newline="")
        return self._logs[name]
