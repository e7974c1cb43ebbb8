"""A run's folder: who may write to it, what it holds, and how it is cut back when a run is resumed from a checkpoint.

last.safetensors        where to resume from         best.safetensors     the best validation so far
previous.safetensors    the one before `last`        step-N.safetensors   where asked
config.yaml             the recipe as it was run     metrics.jsonl        a line per step and evaluation
samples.txt             texts written on the way     .lock                held by the process that trains
tensorboard/            where asked: event files

best-of-schedule.safetensors   while weights of a stop are `best`: the best of the schedule's own evaluations, for a resumed run

charlm writes only to files of its own (:mod:`charlm.training.own_files`), and never through a link. All but the logs are
written atomically; the logs are appended to, whole entries at a time.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from charlm import checkpoint
from charlm.checkpoint import Checkpoint
from charlm.config import Recipe, reconcile, validate_recipe, with_present_names
from charlm.errors import CharlmError, CheckpointError, RunFolderError, UsageError
from charlm.files import flush_folder, give_name, remove_temporaries, to_json, whole_file
from charlm.training import own_files
from charlm.training.own_files import BEST, CONFIG, LAST, LOCK, METRICS, PREVIOUS, SAMPLES, SCHEDULE_BEST, TENSORBOARD, Origin
from charlm.yaml_text import parse_yaml

_BUFFER = 8192  # bytes of a log


class RunFolder:
    """Opens and locks a folder for one training process. The lock is the operating system's: it dies with its owner.

    Raises:
        RunFolderError: another process trains there, or it cannot be written.
        UsageError: a file of charlm's is a link there, or something else that is not a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logs: dict[str, _Log] = {}
        self._last_is_good = True  # a damaged `last` must not become `previous`
        self._own: list[str] = []
        self._aside: Path | None = None
        self._writes_config = True
        self._made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
        try:
            path.mkdir(parents=True, exist_ok=True)
            own_files.present(path)
            self._had_lock = (path / LOCK).exists()
            self._acquire()
        except OSError as error:
            cause = _cause(path, error)
            raise RunFolderError(f"cannot write in the run's folder {path}: {cause}; choose another --out") from None

    def _acquire(self) -> None:
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunFolderError(
                f"another process is training in {self.path}; wait for it, stop it, or choose another --out"
            ) from None
        self._lock, self._lock_identity = lock, _identity(self.path / LOCK)

    def _check_lock(self) -> None:
        """Make sure that nobody else writes here: with the lock file removed, another process could lock a new one.

        Raises:
            RunFolderError: one did, or the folder is gone.
        """
        try:
            identity = _identity(self.path / LOCK)
        except OSError:
            if not self.path.is_dir():
                raise RunFolderError(f"the run's folder {self.path} was removed while it was trained in") from None
            self._lock.release()
            self._acquire()
            return
        if identity != self._lock_identity:
            raise RunFolderError(
                f"{self.path / LOCK} was removed, and another process has locked the folder: this training stops here and "
                "writes nothing more"
            )

    def _is_locked(self) -> bool:
        try:
            self._check_lock()
        except RunFolderError:
            return False
        return True

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
            if any(log.pending for log in logs) and self._is_locked():
                for log in logs:
                    log.flush()
        finally:
            for log in logs:
                log.close()

    def abandon(self) -> None:
        """Close a folder in which no run was started: what opening it made is removed, an earlier run is back in its place."""
        self._close_logs()
        if self._aside is not None and self._is_locked():
            with suppress(OSError):
                _move(self._own, self._aside, self.path)
                self._aside.rmdir()
        with suppress(OSError):
            if not self._had_lock and _identity(self.path / LOCK) == self._lock_identity:
                (self.path / LOCK).unlink()  # while it is locked, so that nobody else has it
        self._lock.release()
        with suppress(OSError):  # not empty
            for folder in self._made:
                folder.rmdir()

    def examine(self) -> list[str]:
        """Find out which files here are charlm's own; returns what has to be said about them.

        Raises:
            UsageError: a file that charlm would replace, move or append to is not.
        """
        found = {name: own_files.origin(self.path / name) for name in own_files.present(self.path)}
        checkpoints = [name for name in found if own_files.is_checkpoint(name) and found[name] is Origin.CHARLM]
        has_mark = any(origin in (Origin.CHARLM, Origin.EDITED) for origin in found.values())
        if found.get(CONFIG) is Origin.UNMARKED:  # an earlier version wrote no mark
            is_own = self._is_recipe_of(checkpoints) if checkpoints else has_mark or self._had_lock
            found[CONFIG] = Origin.CHARLM if is_own else Origin.FOREIGN
            has_mark = has_mark or is_own
        notices = []
        config = found.get(CONFIG)
        if config is Origin.EDITED or (config is Origin.FOREIGN and checkpoints):
            self._writes_config = False
            del found[CONFIG]
            notices.append(
                f"{self.path / CONFIG} was edited, or charlm did not write it: it stays as it is. The recipe of this run is in "
                "its checkpoints"
            )
        unmarked = Origin.CHARLM if has_mark else Origin.FOREIGN
        origins = {name: unmarked if origin is Origin.UNMARKED else origin for name, origin in found.items()}
        if foreign := [name for name, origin in origins.items() if origin is Origin.FOREIGN]:
            it = "it" if len(foreign) == 1 else "them"
            raise UsageError(
                f"{self.path} holds {', '.join(foreign)}: charlm did not write {it} and would replace {it}. Nothing was "
                f"changed; choose another --out, or move {it} elsewhere"
            )
        self._own = [*found, *own_files.event_files(self.path)]
        return notices

    def _is_recipe_of(self, checkpoints: list[str]) -> bool:
        """Whether ``config.yaml`` has the values of the run itself."""
        try:
            stored = validate_recipe(checkpoint.describe(self.path / checkpoints[0])["recipe"], checkpoints[0])
            values = parse_yaml((self.path / CONFIG).read_text(encoding="utf-8"), CONFIG)
            reconcile(stored, validate_recipe(with_present_names(values), CONFIG))
        except (CharlmError, OSError, KeyError):
            return False
        return True

    def holds_run(self) -> bool:
        """Whether there is something here that starting anew would destroy."""
        return any((self.path / name).exists() for name in (LAST, PREVIOUS, BEST)) or bool(own_files.kept_steps(self.path))

    def move_aside(self) -> Path:
        """Move charlm's own files into a folder beside this one, and return it; other files stay."""
        here = self.path if self.path.name not in ("", "..") else self.path.resolve()
        number = 1
        while os.path.lexists(aside := here.with_name(f"{here.name}.old-{number}")):
            number += 1
        aside.mkdir()
        self._aside = aside
        _move(self._own, self.path, aside)
        return aside

    def remove_temporaries(self) -> None:
        """Remove what killed processes were writing here."""
        remove_temporaries(self.path)
        for path in [entry for entry in self.path.iterdir() if own_files.is_old_temporary(entry.name)]:
            if stat.S_ISREG(os.lstat(path).st_mode):
                path.unlink()

    def newest(self) -> tuple[Checkpoint, list[str]]:
        """The checkpoint to resume from, and what has to be said about it.

        Raises:
            CheckpointError: there is one, but none is readable.
            UsageError: there is none.
        """
        problems = []
        for name in (LAST, PREVIOUS, *own_files.kept_steps(self.path)):
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
            if name != LAST:
                problems.append(f"going on from {name}, step {found.progress['step']}")
            return found, problems
        if problems:
            raise CheckpointError("no readable checkpoint to go on from:\n" + "\n".join(problems))
        best = self.path / BEST
        if best.exists():
            raise UsageError(
                f"{self.path} holds only {BEST}: weights without the state of the training, which cannot be resumed; "
                f"--overwrite --init {best} starts a new run from these weights"
            )
        raise UsageError(f"--resume must: there is no run in {self.path} to resume")

    def best_step(self, name: str = BEST) -> int | None:
        """The step that `best` comes from; ``None`` if there is no readable one."""
        try:
            return int(checkpoint.describe(self.path / name)["progress"]["step"])
        except (CheckpointError, KeyError):
            return None

    def save(self, state: Checkpoint, keep_step: bool = False) -> None:
        """Write ``last``; the one before it becomes ``previous``.

        Raises:
            CheckpointError: it cannot be written.
            RunFolderError: the folder is no longer locked by this process, or a log cannot be written.
        """
        self._check_lock()
        for log in self._logs.values():
            log.flush()
        checkpoint.save(self.path / LAST, state, keep=self.path / PREVIOUS if self._last_is_good else None)
        self._last_is_good = True
        if keep_step:
            checkpoint.save(self.path / f"step-{state.progress['step']}.safetensors", state)

    def save_best(self, weights_only: Checkpoint) -> None:
        """Write ``best``."""
        self._check_lock()
        checkpoint.save(self.path / BEST, weights_only)

    def set_best_aside(self) -> None:
        """Keep `best` as the schedule's own, before weights of a stop take its place.

        Killed at any moment from here on, the folder holds the schedule's best under one of its two names or both, and
        :meth:`restore_best` finds it.
        """
        self._check_lock()
        give_name(self.path / BEST, self.path / SCHEDULE_BEST)
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
        """Write the recipe as it is run, so that ``charlm train config.yaml`` repeats it; not over one that was edited."""
        if not self._writes_config:
            return
        try:
            with whole_file(self.path / CONFIG) as file:
                file.write(own_files.config_text(recipe).encode("utf-8"))
        except OSError as error:
            raise _not_written(self.path / CONFIG, error) from None

    def log_sizes(self) -> dict[str, int]:
        """Bytes in each log, to be stored with a checkpoint."""
        for log in self._logs.values():
            log.flush()
        return {name: (self.path / name).stat().st_size if (self.path / name).exists() else 0 for name in (METRICS, SAMPLES)}

    def cut_logs(self, sizes: dict[str, int]) -> None:
        """Cut the logs back to what they held when a checkpoint was written. One with a second name (a hard link) is copied."""
        for name in (METRICS, SAMPLES):
            path = self.path / name
            try:
                log = os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b")
            except FileNotFoundError:
                continue
            with log:
                found = os.fstat(log.fileno())
                size = min(sizes.get(name, 0), found.st_size)
                if found.st_nlink == 1:
                    log.truncate(size)
                    continue
                with whole_file(path) as copy:
                    shutil.copyfileobj(log, copy)
                    copy.truncate(size)

    def record(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``. It reaches the disk at the next checkpoint at the latest."""
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in entry.items()}
        self._log(METRICS).append(to_json(plain) + "\n")

    def record_sample(self, heading: str, text: str) -> None:
        """Append a text to ``samples.txt``, at once, so that one can watch."""
        log = self._log(SAMPLES)
        log.append(f"━━━ {heading} ━━━\n{text}\n\n")
        log.flush()

    def _log(self, name: str) -> _Log:
        self._check_lock()
        if name not in self._logs:
            self._logs[name] = _Log(self.path / name)
        return self._logs[name]


class _Log:
    """A file that is appended to, whole entries at a time.

    Raises:
        RunFolderError: it cannot be written, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.pending = bytearray()
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise _not_written(path, error) from None
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(self._descriptor)
            raise RunFolderError(f"{path} was replaced by a link while the run was trained; nothing was written to it")

    def append(self, text: str) -> None:
        """Add an entry."""
        self.pending += text.encode("utf-8", "backslashreplace")
        if len(self.pending) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what was added. If the disk is full, the file is as it was: no half entry."""
        size = os.fstat(self._descriptor).st_size
        done = 0
        try:
            while done < len(self.pending):
                done += os.write(self._descriptor, self.pending[done:])
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise _not_written(self._path, error) from None
        self.pending.clear()

    def close(self) -> None:
        """Close the file; what was not flushed is dropped."""
        os.close(self._descriptor)


def _move(names: list[str], source: Path, target: Path) -> None:
    """Move files from one folder to another. The folder of the event files goes with them, unless it holds other files."""
    for name in names:
        if os.path.lexists(source / name):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.move(source / name, target / name)
    with suppress(OSError):
        (source / TENSORBOARD).rmdir()


def _identity(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _not_written(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot write {path}: {error.strerror}; what was saved before is whole. Make room or repair the folder, then use "
        "--resume auto"
    )


def _cause(path: Path, error: OSError) -> str:
    """Which part of a path keeps a folder from being made, if that can be told."""
    for folder in (path, *path.parents):
        if folder.is_symlink() and not folder.exists():
            return f"{folder} is a link to nothing"
        if folder.exists():
            return str(error.strerror) if folder.is_dir() else f"{folder} is not a folder"
    return str(error.strerror)
