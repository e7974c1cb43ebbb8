"""A run's folder: its lock, checkpoints, logs and recipe (file names: :mod:`charlm.run_files`).

charlm writes only to its own files (:mod:`charlm.training.own_files`), and never through a link. Logs are appended to; all
other files are written atomically.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from charlm import checkpoint
from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.errors import Advice, CheckpointError, RunFolderError, UsageError
from charlm.files import flush_folder, give_name, to_json, whole_file
from charlm.run_files import (
    BEST,
    CONFIG,
    LAST,
    METRICS,
    PREVIOUS,
    SAMPLES,
    SCHEDULE_BEST,
    TENSORBOARD,
    event_files,
    step_name,
    step_names,
)
from charlm.training import own_files
from charlm.training.lock import FolderLock
from charlm.training.log import Log, truncate_log, write_error
from charlm.training.own_files import Origin


class RunFolder:
    """Opens and locks a folder for one training process.

    Raises:
        RunFolderError: another process trains there, or the folder cannot be written.
        UsageError: one of charlm's files is a link there, or is not a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logs: dict[str, Log] = {}
        self._last_is_good = True  # a damaged `last` must not become `previous`
        self._own: list[str] = []
        self._aside: Path | None = None
        self._writes_config = True
        self._made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
        try:
            path.mkdir(parents=True, exist_ok=True)
            own_files.names_in_use(path)
            self._lock = FolderLock(path)
        except OSError as error:
            raise RunFolderError(
                f"cannot write in the run's folder {path}: {_cause(path, error)}", advice={"use another folder": {"out": "DIR"}}
            ) from None

    def close(self) -> None:
        """Close the logs and release the lock. If another process has locked the folder, nothing is written."""
        try:
            self._close_logs()
        finally:
            self._lock.release()

    def _close_logs(self) -> None:
        logs = list(self._logs.values())
        self._logs.clear()
        try:
            if any(log.pending for log in logs) and self._lock.is_held():
                for log in logs:
                    log.flush()
        finally:
            for log in logs:
                log.close()

    def abandon(self) -> None:
        """Undo the opening: move an earlier run back to its place, and remove what was created."""
        self._close_logs()
        if self._aside is not None and self._lock.is_held():
            with suppress(OSError):
                _move(self._own, self._aside, self.path)
                self._aside.rmdir()
        self._lock.undo()
        with suppress(OSError):  # not empty
            for folder in self._made:
                folder.rmdir()

    def check_ownership(self) -> list[str]:
        """Make sure that charlm wrote all files here that it would replace, move or append to.

        Returns:
            Notices for the user.

        Raises:
            UsageError: charlm did not write one of them.
        """
        origins = own_files.origins(self.path, own_files.names_in_use(self.path), self._lock.existed)
        notices = []
        if origins.get(CONFIG) is Origin.EDITED:
            self._writes_config = False
            del origins[CONFIG]
            notices.append(
                f"{self.path / CONFIG} was edited, or charlm did not write it, so charlm leaves it unchanged. The checkpoints "
                "hold the recipe of this run"
            )
        if foreign := [name for name, origin in origins.items() if origin is Origin.FOREIGN]:
            it = "it" if len(foreign) == 1 else "them"
            raise UsageError(
                f"{self.path} holds {', '.join(foreign)}: charlm did not write {it} and would replace {it}. Nothing "
                "was changed",
                advice={f"move {it} elsewhere": {}, "use another folder": {"out": "DIR"}},
            )
        self._own = [*origins, *event_files(self.path)]
        return notices

    def holds_run(self) -> bool:
        """Whether a new run would replace a checkpoint here."""
        return any((self.path / name).exists() for name in (LAST, PREVIOUS, BEST)) or bool(step_names(self.path))

    def move_aside(self) -> Path:
        """Move charlm's own files into a new folder beside this one, and return its path; other files stay."""
        here = self.path if self.path.name not in ("", "..") else self.path.resolve()
        number = 1
        while os.path.lexists(aside := here.with_name(f"{here.name}.old-{number}")):
            number += 1
        aside.mkdir()
        self._aside = aside
        _move(self._own, self.path, aside)
        return aside

    def remove_temporaries(self) -> None:
        """Remove the temporary files of killed processes."""
        own_files.remove_leftovers(self.path)

    def load_newest(self) -> tuple[Checkpoint, list[str]]:
        """Read the newest checkpoint that a run can be resumed from.

        Returns:
            The checkpoint, and notices for the user.

        Raises:
            CheckpointError: there are checkpoints, but none can be resumed from.
            UsageError: there is none.
        """
        problems = []
        weights_only = None
        for name in (LAST, PREVIOUS, *step_names(self.path)):
            if not (self.path / name).exists():
                continue
            try:
                found = checkpoint.load(self.path / name)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if "position" not in found.progress:
                problems.append(f"{self.path / name} holds weights only, so it cannot be resumed")
                weights_only = weights_only or self.path / name
                continue
            self._last_is_good = name == LAST
            if name != LAST:
                problems.append(f"resuming from {name}, step {found.progress['step']}")
            return found, problems
        if problems:
            raise CheckpointError(
                "\n".join(["no readable checkpoint to resume from:", *problems]),
                advice=_new_run_from(weights_only) if weights_only else None,
            )
        best = self.path / BEST
        if best.exists():
            raise UsageError(
                f"{self.path} holds only {BEST}: weights without the training state, which cannot be resumed",
                advice=_new_run_from(best),
            )
        raise UsageError(f"must: there is no run in {self.path} to resume", parameter="resume")

    def best_step(self, name: str = BEST) -> int | None:
        """The step of `best`; ``None`` if there is no readable one."""
        try:
            return int(checkpoint.describe(self.path / name)["progress"]["step"])
        except (CheckpointError, KeyError):
            return None

    def save(self, state: Checkpoint, keep_step: bool = False) -> None:
        """Write ``last``; the old ``last`` becomes ``previous``.

        Raises:
            CheckpointError: it cannot be written.
            RunFolderError: this process has lost its lock, or a log cannot be written.
        """
        self._lock.check()
        for log in self._logs.values():
            log.flush()
        checkpoint.save(self.path / LAST, state, keep=self.path / PREVIOUS if self._last_is_good else None)
        self._last_is_good = True
        if keep_step:
            checkpoint.save(self.path / step_name(state.progress["step"]), state)

    def save_best(self, weights_only: Checkpoint) -> None:
        """Write ``best``."""
        self._lock.check()
        checkpoint.save(self.path / BEST, weights_only)

    def keep_schedule_best(self) -> None:
        """Give `best` a second name, before the weights of a stop replace it.

        If the process is killed at any moment after this, the schedule's best exists under at least one of its two names,
        and :meth:`restore_schedule_best` finds it.
        """
        self._lock.check()
        give_name(self.path / BEST, self.path / SCHEDULE_BEST)
        flush_folder(self.path)

    def restore_schedule_best(self, step: int | None) -> bool:
        """Restore the schedule's `best`, if the weights of a stop have replaced it.

        Args:
            step: of the schedule's best, from the checkpoint that the run is resumed from; ``None``: there is none yet.

        Returns:
            Whether `best` now holds the weights of that step.
        """
        aside = self.path / SCHEDULE_BEST
        if step is not None and self.best_step(SCHEDULE_BEST) == step:
            aside.replace(self.path / BEST)
            flush_folder(self.path)
        aside.unlink(missing_ok=True)  # a second name of `best`, or older than the checkpoint
        return step is not None and self.best_step() == step

    def write_config(self, recipe: Recipe) -> None:
        """Write the completed recipe, so that ``charlm train config.yaml`` repeats the run; an edited file stays."""
        if not self._writes_config:
            return
        try:
            with whole_file(self.path / CONFIG) as file:
                file.write(own_files.config_text(recipe).encode("utf-8"))
        except OSError as error:
            raise write_error(self.path / CONFIG, error) from None

    def log_sizes(self) -> dict[str, int]:
        """The size of each log in bytes, for a checkpoint."""
        for log in self._logs.values():
            log.flush()
        return {name: (self.path / name).stat().st_size if (self.path / name).exists() else 0 for name in (METRICS, SAMPLES)}

    def truncate_logs(self, sizes: dict[str, int]) -> None:
        """Cut the logs to their sizes at a checkpoint (see :meth:`log_sizes`); logs without a size become empty."""
        for name in (METRICS, SAMPLES):
            truncate_log(self.path / name, sizes.get(name, 0))

    def record(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``. It reaches the file by the next checkpoint."""
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entry.items()}
        self._log(METRICS).append(to_json(plain) + "\n")

    def record_sample(self, heading: str, text: str) -> None:
        """Append a text to ``samples.txt``, without buffering, so that users can follow the file."""
        log = self._log(SAMPLES)
        log.append(f"━━━ {heading} ━━━\n{text}\n\n")
        log.flush()

    def _log(self, name: str) -> Log:
        self._lock.check()
        if name not in self._logs:
            self._logs[name] = Log(self.path / name)
        return self._logs[name]


class OtherFolder(RunFolder):
    """The folder as the other processes of a run have it: only the first one locks, reads and writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        """Nothing to close."""

    def abandon(self) -> None:
        """Nothing to undo."""

    def save(self, state: Checkpoint, keep_step: bool = False) -> None:
        """The first process saves."""

    def save_best(self, weights_only: Checkpoint) -> None:
        """The first process saves."""

    def keep_schedule_best(self) -> None:
        """The first process keeps it."""

    def restore_schedule_best(self, step: int | None) -> bool:
        """The first process restores it, and tells the others whether it could."""
        return False

    def log_sizes(self) -> dict[str, int]:
        """It has no logs."""
        return {}

    def truncate_logs(self, sizes: dict[str, int]) -> None:
        """It has no logs."""


def _new_run_from(weights: Path) -> Advice:
    return {"start a new run from these weights": {"overwrite": True, "init": str(weights)}}


def _move(names: list[str], source: Path, target: Path) -> None:
    """Move files from one folder to another. The folder of the event files goes with them, unless it holds other files."""
    for name in names:
        if os.path.lexists(source / name):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.move(source / name, target / name)
    with suppress(OSError):
        (source / TENSORBOARD).rmdir()


def _cause(path: Path, error: OSError) -> str:
    """Why a folder cannot be made or written, with the part of the path that is the cause."""
    for folder in (path, *path.parents):
        if folder.is_symlink() and not folder.exists():
            return f"{folder} is a link to nothing"
        if folder.exists():
            return str(error.strerror) if folder.is_dir() else f"{folder} is not a folder"
    return str(error.strerror)
