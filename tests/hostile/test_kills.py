"""A run that is killed at random moments, again and again, ends with the same files as one that never stopped.

``CHARLM_KILLS=100 pytest tests/hostile`` kills more often than the few times of an ordinary test run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm.checkpoint import load

KILLS = int(os.environ.get("CHARLM_KILLS", "8"))

# Forks, so that a start costs no import. Each child is an ordinary command that is killed after a random time.
SCRIPT = """
import json, os, random, signal, sys, time
import charlm.cli.app, charlm.training.start

recipe, folder, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
random = random.Random(seed)
done = {signal.SIGKILL: 0, signal.SIGTERM: 0, signal.SIGINT: 0}
longest, at_once = 0.3, 0
while True:
    pid = os.fork()
    if pid == 0:
        quiet = os.open(folder + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        os._exit(charlm.cli.app.run(["train", recipe, "--out", folder, "--resume", "auto", "--device", "cpu"]))
    if sum(done.values()) < kills:
        time.sleep(random.uniform(0, longest))
        which = random.choices(list(done), [8, 1, 1])[0]
        os.kill(pid, which)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 130:
            done[which] += 1
            continue
        assert os.waitstatus_to_exitcode(status) == 0, status
        break
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    break
print(json.dumps({signal.Signals(number).name: count for number, count in done.items()}))
"""


@pytest.mark.parametrize(
    "options",
    [
        {"model": {"cell": "lstm", "hidden": 24, "dropout": 0.3}, "train": {"average": 0.9, "optimizer": "adamw"}},
        {"model": {"cell": "gru", "hidden": 16, "engine": "torch", "dropout": 0.0}, "train": {"optimizer": "rmsprop"}},
    ],
    ids=["lstm", "gru torch"],
)
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    options: dict[str, Any], english: Callable[..., str], tmp_path: Path
) -> None:
    """If this fails, a power cut or an impatient user costs more than the steps since the last checkpoint."""
    (tmp_path / "text.txt").write_text(english(20_000), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    # Enough steps that a run outlives its kills: each attempt gets some further, and saves every few steps.
    train = {
        "batch": 4,
        "seq_length": 10,
        "total_steps": 60 * max(4, KILLS),
        "threads": 1,
        "precision": "fp32",
        **options["train"],
    }
    sections = {
        "data": {"split": [0.8, 0.2, 0.0]}, "model": options["model"], "train": train, "sample": {"every": 50, "length": 20},
        "evaluate": {"every": 40, "segments": 4, "warm": 20, "characters": 400}, "checkpoint": {"every": 10},
    }  # fmt: skip
    recipe.write_text(json.dumps({"corpus": "./text.txt", **sections}), encoding="utf-8")
    folders = {kills: tmp_path / f"after {kills} kills" for kills in (0, KILLS)}
    for kills, folder in folders.items():
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(recipe), str(folder), str(kills), "7"],
            capture_output=True,
            text=True,
            timeout=1800,
        )
        log = Path(f"{folder}.log").read_text(encoding="utf-8")
        assert done.returncode == 0, done.stderr + log[-3000:]
        assert "Traceback" not in log and "bug" not in log
        print(kills, done.stdout.strip())
    whole, killed = folders.values()
    assert json.loads(done.stdout)["SIGKILL"] > 0
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in killed.iterdir()} == names, "temporary files are left, or files are missing"
    assert (whole / "best.safetensors").read_bytes() == (killed / "best.safetensors").read_bytes()
    assert (whole / "samples.txt").read_bytes() == (killed / "samples.txt").read_bytes()
    one, other = load(whole / "last.safetensors"), load(killed / "last.safetensors")
    for part in ("weights", "optimizer", "average"):
        tensors, others = getattr(one, part), getattr(other, part)
        assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors), part
    assert all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))
    assert _losses(whole) == _losses(killed)


def _losses(folder: Path) -> list[tuple[Any, ...]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["kind"], line["step"], line.get("nats")) for line in lines if line["kind"] in ("step", "evaluation")]
