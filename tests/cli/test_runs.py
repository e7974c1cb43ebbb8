"""``charlm runs``: the state of every run, and the removal of charlm's own files alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.training.lock import FolderLock

TRAIN = ("train", "recipe.yaml", "-q")


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``checkpoints`` in the current folder, with one finished run, ``done``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", tmp_path / "checkpoints" / "done")
    return tmp_path / "checkpoints"


def _listed(charlm: Callable[..., Any], *arguments: str | Path) -> dict[str, dict[str, Any]]:
    done = charlm("runs", "list", *arguments, "--json")
    assert done.code == 0
    return {run["name"]: run for run in done.record["runs"]}


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_finished_run_is_listed_with_its_result(charlm: Callable[..., Any], runs: Path) -> None:
    """Failing would mean that the list shows another result, length or size than the run has."""
    (run,) = _listed(charlm).values()
    assert run["state"] == "finished" and run["corpus"] == "text.txt" and (run["cell"], run["hidden"]) == ("lstm", 8)
    assert run["step"] == run["planned_steps"] == 20
    assert 0 < run["best_validation_nats"] < 5 and 0 < run["nats_per_character"] < 5
    assert run["bytes"] == sum(path.stat().st_size for path in (runs / "done").iterdir())
    done = charlm("runs")
    assert done.code == 0 and "finished" in done.text and "lstm 8" in done.text and "1 run," in done.err


def test_the_state_of_every_kind_of_run(charlm: Callable[..., Any], desk: Path, runs: Path) -> None:
    """Failing would mean that a run that can be resumed looks finished, or a damaged one looks sound."""
    for name in ("damaged", "weights", "running", "compare-x/inner"):
        shutil.copytree(runs / "done", runs / name)
    (runs / "damaged" / "last.safetensors").write_bytes((runs / "done" / "last.safetensors").read_bytes()[:5000])
    for name in ("last.safetensors", "previous.safetensors"):
        (runs / "weights" / name).unlink()
    assert charlm(*TRAIN, "--max-steps", "7", "--out", runs / "stopped").code == 0
    (runs / "notes").mkdir()
    (runs / "notes" / "last.safetensors").write_bytes(b"PK\x03\x04 of somebody else")
    lock = FolderLock(runs / "running")
    found = _listed(charlm)
    lock.release()
    assert {name: run["state"] for name, run in found.items()} == {
        "compare-x/inner": "finished",
        "damaged": "damaged",
        "done": "finished",
        "running": "running",
        "stopped": "stopped",
        "weights": "weights only",
    }
    assert (found["stopped"]["step"], found["stopped"]["planned_steps"]) == (7, 20)
    assert "truncated" in found["damaged"]["problem"] and "truncated" in charlm("runs").err
    assert charlm(*TRAIN, "--resume", "auto", "--out", runs / "stopped").code == 0
    assert _listed(charlm)["stopped"]["state"] == "finished"


def test_a_killed_run_can_be_resumed_and_is_listed_so(charlm: Callable[..., Any], runs: Path) -> None:
    """Failing would mean that a run whose log has no end is taken for finished."""
    log = runs / "done" / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join(lines[:-1]) + lines[-1][:40], encoding="utf-8")
    assert _listed(charlm)["done"]["state"] == "stopped"


def test_runs_that_were_moved_aside_are_counted_and_removed(charlm: Callable[..., Any], desk: Path, runs: Path) -> None:
    """Failing would mean that moved-aside runs pile up unnoticed, or that the run itself is removed with them."""
    for _ in range(2):
        assert charlm(*TRAIN, "--out", runs / "done", "--overwrite", "--max-steps", "1").code == 0
    assert [name for name, run in _listed(charlm).items() if run["moved_aside"]] == ["done.old-1", "done.old-2"]
    shown = charlm("runs")
    assert "2 of them moved aside" in shown.err and "charlm runs rm --old" in shown.err
    assert charlm("runs", "rm", "--old", "other", "--yes").code == 0 and len(_listed(charlm)) == 3
    assert charlm("runs", "rm", "--old", "--yes").code == 0
    assert {*_listed(charlm)} == {"done"} and [path.name for path in runs.iterdir()] == ["done"]


def test_foreign_and_edited_files_stay(charlm: Callable[..., Any], runs: Path) -> None:
    """Failing would mean that `runs rm` destroys a file that charlm did not write."""
    run = runs / "done"
    (run / "essay.txt").write_text("mine", encoding="utf-8")
    (run / "samples.txt").write_text("blood, 3 ml\n", encoding="utf-8")
    (run / "config.yaml").write_text((run / "config.yaml").read_text("utf-8") + "# edited\n", encoding="utf-8")
    (run / "previous.safetensors").unlink(missing_ok=True)
    (run / "previous.safetensors").symlink_to(run / "essay.txt")
    done = charlm("runs", "rm", "done", "--yes")
    assert done.code == 0
    assert _files(run) == {"essay.txt", "samples.txt", "config.yaml", "previous.safetensors"}
    assert all(name in done.text for name in _files(run))
    assert charlm("runs", "rm", "done", "--yes").code == 2, "a folder without a run"


def test_a_running_run_is_refused_and_nothing_else_is_removed(charlm: Callable[..., Any], runs: Path) -> None:
    """Failing would mean that files are removed while a training writes them."""
    shutil.copytree(runs / "done", runs / "running")
    before = _files(runs)
    lock = FolderLock(runs / "running")
    refused = charlm("runs", "rm", "done", "running", "--yes")
    lock.release()
    assert refused.code == 1 and "training" in refused.err and _files(runs) == before


def test_without_a_terminal_yes_is_needed(charlm: Callable[..., Any], runs: Path) -> None:
    """Failing would mean that a script removes runs that nobody confirmed, or waits for an answer."""
    refused = charlm("runs", "rm", "done")
    assert refused.code == 2 and "--yes" in refused.err and (runs / "done").exists()
    assert charlm("runs", "rm", "done", "--yes", "--json").record["removed"][0]["left"] == []
    assert not (runs / "done").exists()


@pytest.mark.parametrize("arguments", [["rm"], ["rm", "missing", "--yes"], ["rm", "compare-x", "--yes"], ["list", "missing"]])
def test_a_name_without_a_run_is_refused(charlm: Callable[..., Any], runs: Path, arguments: list[str]) -> None:
    """Failing would mean that a mistyped name is taken as done, or that a folder of runs is removed at once."""
    shutil.copytree(runs / "done", runs / "compare-x" / "inner")
    before = _files(runs)
    assert charlm("runs", *arguments).code == 2 and _files(runs) == before
    assert charlm("runs", "rm", "compare-x/inner", "--yes").code == 0
    assert not (runs / "compare-x" / "inner").exists()


def test_no_runs_is_no_error(charlm: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that the first command of a new user is an error."""
    monkeypatch.chdir(tmp_path)
    done = charlm("runs")
    assert done.code == 0 and "no runs" in done.err
    assert charlm("runs", "rm", "--old").code == 0
