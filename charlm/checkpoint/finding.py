"""Finds a checkpoint by a run's name, its folder, or the file itself."""

from __future__ import annotations

from pathlib import Path

from charlm.config import is_path, path_of
from charlm.errors import UsageError
from charlm.run_files import BEST, LAST, PREVIOUS, RUNS


def find_checkpoint(name: str) -> Path:
    """The file of a checkpoint, from a file, a run's folder (its best weights) or a run's name.

    Raises:
        UsageError: there is none; the message names the folder.
    """
    path = path_of(name)
    by_name = not is_path(name) and ((RUNS / name).is_dir() or not path.is_dir())
    folder = RUNS / name if by_name else path
    if folder.is_file():
        return folder
    for candidate in (BEST, LAST, PREVIOUS):
        if (folder / candidate).is_file():
            return folder / candidate
    if folder.is_dir():
        raise UsageError(f"the folder {folder} holds no checkpoint ({BEST} or {LAST})")
    raise UsageError(f"no checkpoint: {folder} does not exist{_known_runs()}")


def find_run(name: str) -> Path:
    """The folder of a run, from its path or its name; the folder need not hold a checkpoint.

    Args:
        name: as `charlm runs` lists it: the run of a comparison is ``compare-hello/lstm``.

    Raises:
        UsageError: there is no such folder.
    """
    path = path_of(name)
    candidates = [path, RUNS / name] if is_path(name) else [RUNS / name, path]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UsageError(f"no run: {candidates[0]} does not exist{_known_runs()}")


def _known_runs() -> str:
    runs = sorted(found.parent.name for found in RUNS.glob(f"*/{LAST}")) if RUNS.is_dir() else []
    return f"; runs here: {', '.join(runs)}" if runs else f"; there are no runs in {RUNS}/ here"
