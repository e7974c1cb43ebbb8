"""Several processes train one model, started as ``torchrun`` starts them; the elastic test uses ``torchrun`` itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm.checkpoint import load
from charlm.distributed import PeerError
from charlm.yaml_text import dump_yaml

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")

CELLS = {
    "rnn": ("model.cell=rnn", "train.optimizer=rmsprop"),
    "gru": ("model.cell=gru", "model.locked_dropout=true", "train.average=0.9"),
    "lstm": ("model.cell=lstm", "train.accumulate=2"),
}
COMMON = ("model.layers=2", "model.dropout=0.3", "model.input_dropout=0.1", "train.batch=5", "train.total_steps=200",
          "evaluate.every=100", "sample.every=200")  # fmt: skip
"""Five streams: the two processes have two and three."""

JOBS = """
import json, os, sys
from pathlib import Path
from conftest import started
from charlm.distributed import join
from charlm.training.run import run
world = join("cpu")
for job in json.loads(sys.argv[1]):
    with started(job["corpus"], Path(job["out"]), *job["overrides"], world=world, **job["options"]) as begun:
        run(begun.trainer)
world.close()
"""


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1", "CHARLM_PEER_TIMEOUT": "30"}
    return {
        **os.environ, **threads, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _start(*commands: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start a process of the same run for each command line of Python."""
    port = _free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command], env=_environment(rank, len(commands), port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip


def _finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def _in_two_processes(jobs: list[dict[str, Any]]) -> None:
    for code, _, errors in _finish(_start(*[["-c", JOBS, json.dumps(jobs)]] * 2)):
        assert code == 0, errors


def _losses(folder: Path, kind: str = "step") -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["nats"] for line in lines if line["kind"] == kind]


def test_two_processes_give_the_losses_of_one(tiny_run: Callable[..., Any], english_file: Path, tmp_path: Path) -> None:
    """If this fails, gradients are weighted wrongly, or dropout, states or batches depend on the number of processes."""
    cases = {
        f"{cell}-{engine}": (f"model.engine={engine}", *overrides, *COMMON)
        for cell, overrides in CELLS.items()
        for engine in ("native", "torch", "reference")
    }
    _in_two_processes([
        {"corpus": str(english_file), "out": str(tmp_path / "two" / name), "overrides": overrides, "options": {}}
        for name, overrides in cases.items()
    ])  # fmt: skip
    for name, overrides in cases.items():
        one = tiny_run(english_file, tmp_path / "one" / name, *overrides)
        two = tmp_path / "two" / name
        assert _losses(two) == pytest.approx(_losses(one.folder), rel=1e-5), name
        assert _losses(two, "evaluation") == pytest.approx(_losses(one.folder, "evaluation"), rel=1e-5), name


def test_a_run_resumes_with_another_number_of_processes(
    tiny_run: Callable[..., Any], english_file: Path, tmp_path: Path
) -> None:
    """If this fails, a checkpoint does not hold the state of all streams."""
    whole = tiny_run(english_file, tmp_path / "whole", *COMMON, "train.random_offset=true")
    run = tmp_path / "run"
    overrides = (*COMMON, "train.random_offset=true")
    tiny_run(english_file, run, *overrides, max_steps=37)
    job = {"corpus": str(english_file), "out": str(run), "overrides": overrides}
    _in_two_processes([{**job, "options": {"resume": "must", "max_steps": 101}}])
    record = tiny_run(english_file, run, *overrides, resume="must").record
    assert (record["resumed_from"], record["processes"], record["streams"]) == (101, 1, [[0, 5]])
    assert _losses(run) == pytest.approx(_losses(whole.folder), rel=1e-5)


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(english_file: Path, tmp_path: Path) -> Path:
    """A recipe with five streams that two processes train for an hour."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        dump_yaml({
            "corpus": str(english_file),
            "model": {"hidden": 16, "dropout": 0.2},
            "train": {"batch": 5, "seq_length": 10, "total_steps": 1_000_000, "precision": "fp32"},
            "evaluate": {"every": 50, "segments": 4, "warm": 50},
            "checkpoint": {"every": 20},
            "sample": {"length": 5},
        }),
        encoding="utf-8",
    )  # fmt: skip
    return path


def _train(recipe: Path, *options: str) -> list[str]:
    return ["-m", "charlm", "train", str(recipe), "--out", str(recipe.parent / "run"), *options]


def _wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_only_the_first_process_prints_and_the_record_names_the_streams(recipe: Path) -> None:
    """If this fails, the output of a run is there several times, or scripts cannot tell how it was trained."""
    (code, output, errors), other = _finish(_start(*[_train(recipe, "--json", "--max-steps", "5")] * 2))
    assert code == 0, errors
    record = json.loads(output.splitlines()[-1])
    assert (record["step"], record["processes"], record["streams"]) == (5, 2, [[0, 2], [2, 5]])
    assert "2 processes" in errors or "processes   2" in errors
    assert other == (0, "", "")


WRONG: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "recipes": (("--set", "train.lr=0.1"), ("--set", "train.lr=0.2"), "train.lr: 0.1 in process 0, 0.2 in process 1"),
    "key": (("--set", "train.lrr=0.1"), ("--set", "train.lrr=0.1"), "train.lrr"),
    "streams": (("--set", "train.batch=1"), ("--set", "train.batch=1"), "2 processes share the 1 streams"),
    "device": (("--device", "cpu"), ("--device", "cuda"), "process 1 of 2"),
    "device number": (("--device", "cuda:0"), ("--device", "cuda:0"), "each process takes the GPU of its own number"),
}


@pytest.mark.parametrize("case", [name for name in WRONG if name != "device" or not torch.cuda.is_available()])
def test_a_wrong_start_is_explained_once_and_ends_all(recipe: Path, case: str) -> None:
    """If this fails, processes wait for one that has given up, or a cluster prints the same error from each process."""
    first, second, message = WRONG[case]
    found, other = _finish(_start(_train(recipe, *first), _train(recipe, *second)))
    assert message in found[2], found[2]
    assert (found[0], found[1]) == (2, "")
    assert other == (2, "", "")
    assert not (recipe.parent / "run").exists(), "a run that did not start left a folder"


def test_a_stop_asked_of_one_process_stops_all_at_the_same_step(recipe: Path) -> None:
    """If this fails, the others wait for the one that has stopped."""
    processes = _start(*[_train(recipe, "--json")] * 2)
    _wait_for(recipe.parent / "run" / "last.safetensors")
    processes[1].send_signal(signal.SIGTERM)
    (code, output, errors), (other, _, _) = _finish(processes)
    assert (code, other) == (130, 0), errors
    record = json.loads(output.splitlines()[-1])
    assert record["stopped_because"] == "interrupted"
    assert load(recipe.parent / "run" / "last.safetensors").progress["step"] == record["step"]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_dead_peer_is_a_sentence_and_no_hang(recipe: Path, killed: int) -> None:
    """If this fails, the death of one process leaves others waiting for ever, or shows a traceback."""
    processes = _start(*[_train(recipe)] * 2)
    _wait_for(recipe.parent / "run" / "last.safetensors")
    processes[killed].kill()
    code, _, errors = _finish(processes)[1 - killed]
    assert code == 1
    assert f"process {1 - killed} of 2 lost the others" in errors and "Traceback" not in errors
    assert load(recipe.parent / "run" / "last.safetensors").progress["step"] > 0


def test_killed_processes_are_restarted_and_nothing_is_lost(recipe: Path) -> None:
    """If this fails, a run that torchrun restarts ends with other weights. ``scripts/kill_ranks.py`` kills more often."""
    script = Path(__file__).parents[1] / "scripts" / "kill_ranks.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--steps", "300"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_error_of_another_process_has_its_exit_code() -> None:
    """If this fails, processes of one run end with different codes."""
    assert PeerError("x", 2).exit_code == 2
