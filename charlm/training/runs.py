"""The runs in a folder: what each one holds and whether it is running, finished or resumable; and their removal.

Listing reads headers of checkpoints and the end of each log. It takes no lock and changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from charlm import checkpoint
from charlm.config import Recipe, validate_recipe, with_present_names
from charlm.data.dataset import Text
from charlm.data.streams import Batches
from charlm.errors import CharlmError, CheckpointError, RunFolderError, UsageError
from charlm.run_files import BEST, CONFIG, LAST, LOCK, METRICS, PREVIOUS, TENSORBOARD, event_files, is_checkpoint, step_names
from charlm.training import own_files
from charlm.training.lock import FolderLock, is_locked
from charlm.training.own_files import Origin
from charlm.training.plan import Plan
from charlm.yaml_text import parse_yaml

State = Literal["running", "finished", "stopped", "weights only", "damaged", "no checkpoint"]

_MOVED_ASIDE = re.compile(r".*\.old-[0-9]+")
_TAIL = 1 << 16  # bytes; longer than any line of a log


@dataclass(frozen=True)
class RunSummary:
    """A run's folder.

    Attributes:
        name: the folder, relative to the one that was searched.
        folder: its path.
        state: ``stopped``: it can be resumed; ``weights only``: it cannot; ``damaged``: its newest checkpoint is unreadable;
            ``no checkpoint``: it ended before its first one.
        corpus: name of the text; empty if unknown, as the following values are ``None`` if unknown.
        recipe: of the run, completed.
        step: optimizer steps done.
        planned_steps: of the whole run; ``None`` also for a run that only a time limits, and for epochs of records.
        best_validation_nats: lowest quick validation, in nats per character.
        nats_per_character: of the exact evaluation at the end of the run.
        modified: when the training last wrote, in seconds since the epoch.
        bytes: size of charlm's files.
        moved_aside: whether ``--overwrite`` moved it aside (``NAME.old-1``).
        problem: why it is damaged; else empty.
    """

    name: str
    folder: Path
    state: State
    corpus: str
    recipe: Recipe | None
    step: int | None
    planned_steps: int | None
    best_validation_nats: float | None
    nats_per_character: float | None
    modified: float
    bytes: int
    moved_aside: bool
    problem: str


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs in a folder and in its folders (those of comparisons), by name. A folder that is a run itself is listed alone.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}; expected a folder with runs")
    if own := own_names(folder):
        return [_summary(folder, folder.resolve().name, own)]
    found = []
    for path in _folders(folder):
        if own := own_names(path):
            found.append(_summary(path, path.name, own))
            continue
        found += [_summary(inner, f"{path.name}/{inner.name}", own) for inner in _folders(path) if (own := own_names(inner))]
    return found


def _folders(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir(), key=_by_number)
    except OSError:
        return
    for path in entries:
        if path.is_dir() and not path.name.startswith("."):
            yield path


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts ``run.old-10`` after ``run.old-9``."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"([0-9]+)", path.name)]


def own_names(folder: Path) -> list[str]:
    """The files of a run that charlm wrote, without its lock, relative to the run's folder; empty: the folder is no run."""
    try:
        names = [path.name for path in folder.iterdir() if own_files.is_own_name(path.name)]
        names = [name for name in sorted(names) if name != LOCK and stat.S_ISREG(os.lstat(folder / name).st_mode)]
        origins = own_files.origins(folder, names, (folder / LOCK).exists())
        events = event_files(folder)
    except OSError:
        return []
    own = [name for name, origin in origins.items() if origin is Origin.CHARLM]
    return [*own, *events] if own else []


def _summary(folder: Path, name: str, own: list[str]) -> RunSummary:
    described, problem = _described(folder)
    end, running = _last_record(folder), is_locked(folder)
    recipe = _recipe(folder, described)
    corpus = described["corpus"] if described else {}
    progress = described["progress"] if described else {}
    step = end["step"] if running and "step" in end else progress.get("step")
    best = [nats for nats in (_best(folder), (progress.get("best") or {}).get("nats")) if nats is not None]
    planned = None
    if recipe is not None and corpus:
        start, stop = corpus["splits"]["train"]
        planned = _planned_steps(recipe, stop - start)
    is_over = end.get("kind") == "finished"
    found = {each: os.lstat(folder / each) for each in own}
    written = [stats.st_mtime for each, stats in found.items() if is_checkpoint(each) or each == METRICS]
    return RunSummary(
        name=name,
        folder=folder,
        state="running"
        if running
        else _state(folder, described, problem, end, planned is None and (recipe is None or recipe.train.epochs is None)),
        corpus=corpus.get("name") or (recipe.corpus if recipe is not None else ""),
        recipe=recipe,
        step=step,
        planned_steps=planned,
        best_validation_nats=min(best, default=None),
        nats_per_character=end["nats_per_character"] if is_over and end.get("measured_on") == "validation" else None,
        modified=max(written or [stats.st_mtime for stats in found.values()]),
        bytes=disk_size(folder, own),
        moved_aside=_MOVED_ASIDE.fullmatch(folder.name) is not None,
        problem=problem,
    )


def disk_size(folder: Path, names: Iterable[str]) -> int:
    """Bytes of files; a file with two names counts once."""
    found = [os.lstat(folder / name) for name in names]
    return sum({(stats.st_dev, stats.st_ino): stats.st_size for stats in found}.values())


def _described(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The description of the newest readable checkpoint, and the error of the first unreadable one."""
    problem = ""
    for name in (LAST, PREVIOUS, *step_names(folder), BEST):
        if (folder / name).exists():
            try:
                return checkpoint.describe(folder / name), problem
            except CheckpointError as error:
                problem = problem or str(error)
    return None, problem


def _state(folder: Path, described: dict[str, Any] | None, problem: str, end: dict[str, Any], is_timed: bool) -> State:
    """The state of a run that no process trains; ``is_timed``: only a time limits it."""
    if problem:
        return "damaged"
    if described is None:
        return "no checkpoint"
    if "position" not in described["progress"]:
        return "weights only"
    step, reason = described["progress"]["step"], end.get("stopped_because")
    ended = end.get("kind") == "finished" and end.get("step") == step
    is_complete = reason in ("finished", "early stopping") or (reason == "max time" and is_timed)
    return "finished" if ended and is_complete else "stopped"


def _last_record(folder: Path) -> dict[str, Any]:
    """The last whole line of a run's log; empty if there is none."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")
        found = json.loads(lines[-2])  # the last is empty, or still being written
    except (OSError, ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def _best(folder: Path) -> float | None:
    """The quick validation of the best weights."""
    try:
        nats: float | None = checkpoint.describe(folder / BEST)["progress"]["validation_nats"]
    except CheckpointError:
        return None
    return nats


def _recipe(folder: Path, described: dict[str, Any] | None) -> Recipe | None:
    try:
        if described is not None:
            return validate_recipe(described["recipe"], str(folder))
        values = parse_yaml((folder / CONFIG).read_text(encoding="utf-8"), CONFIG)
        return validate_recipe(with_present_names(values), CONFIG) if isinstance(values, dict) else None
    except (CharlmError, OSError, UnicodeDecodeError):
        return None


def _planned_steps(recipe: Recipe, characters: int) -> int | None:
    """The planned length of a completed recipe in optimizer steps; ``None``: unknown, or only a time limits it.

    Args:
        recipe: with its length.
        characters: of the training text, two or more.
    """
    if characters < 2 or recipe.data.records is not None:  # their lengths are not known here
        return recipe.train.total_steps
    # The plan depends on the length of a text alone, so all its characters may be one byte in memory.
    text = Text(np.broadcast_to(np.uint8(0), characters), np.zeros(1, np.int64), np.zeros(1, np.bool_))
    return Plan.of(recipe, Batches(text, recipe.train, 0.0)).total_steps


def remove_run(folder: Path) -> list[str]:
    """Remove the files of a run that charlm wrote and has not been edited since, and its folder if nothing else is in it.

    Returns:
        The names of the files and folders that are left.

    Raises:
        UsageError: the folder holds no run.
        RunFolderError: a process trains there, or a file cannot be removed.
    """
    lock_path = folder / LOCK
    if lock_path.is_symlink() or (lock_path.exists() and (not lock_path.is_file() or lock_path.stat().st_size)):
        raise UsageError(f"{lock_path} is not charlm's lock, which would be an empty file; nothing was removed")
    if not own_names(folder):
        raise UsageError(f"{folder} holds no run; `charlm runs list` shows those that can be removed")
    try:
        lock = FolderLock(folder)
    except RunFolderError:
        raise RunFolderError(f"a process is training in {folder}; stop it before you remove the run") from None
    except OSError as error:
        raise _removal_error(folder, error) from None
    try:
        for name in own_names(folder):
            (folder / name).unlink()
        with suppress(OSError):  # other files are in it
            (folder / TENSORBOARD).rmdir()
        own_files.remove_leftovers(folder)
        lock.remove()
    except OSError as error:
        raise _removal_error(folder, error) from None
    finally:
        lock.release()
    with suppress(OSError):  # not empty, or a link to a folder
        folder.rmdir()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _removal_error(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"cannot remove the run in {folder}: {error.strerror}; some of its files may be left")


def moved_aside(run: Path) -> list[Path]:
    """The folders to which ``--overwrite`` moved earlier runs of a run, the oldest first."""
    pattern = re.compile(re.escape(run.name) + r"\.old-[0-9]+")
    return [path for path in _folders(run.parent) if pattern.fullmatch(path.name)]
