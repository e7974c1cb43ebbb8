"""Kills processes of a run under ``torchrun`` again and again, and compares the final weights with a run that nobody killed.

    python tests/scripts/kill_ranks.py --kills 20

A random process of the run dies by SIGKILL after a random number of further steps; ``torchrun`` starts all of them again with
``--resume auto``. Exits with 0 if weights and losses are equal to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from charlm.checkpoint import load

PROCESSES = 2


def main() -> int:
    """Run both trainings, and print what was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="charlm-kills-") as scratch:
        folder = Path(scratch)
        text = " ".join(random.Random(1).choices(["the", "network", "reads", "a", "long", "text,", "and", "learns\n"], k=4000))
        (folder / "text.txt").write_text(text, encoding="utf-8")
        _train(folder, "whole", options.steps, 0).wait()
        kills = _train_and_kill(folder, options.steps, options.kills, random.Random(options.seed))
        stored = [load(folder / name / "last.safetensors") for name in ("whole", "killed")]
        losses = [_losses(folder / name) for name in ("whole", "killed")]
    weights = all(torch.equal(one, stored[1].weights[name]) for name, one in stored[0].weights.items())
    steps = [one.progress["step"] for one in stored]
    print(f"kills: {kills}, steps: {steps}, equal weights: {weights}, equal losses: {losses[0] == losses[1]}")
    return 0 if weights and losses[0] == losses[1] and steps == [options.steps] * 2 and kills == options.kills else 1


def _train(folder: Path, name: str, steps: int, restarts: int) -> subprocess.Popen[bytes]:
    keys = {
        "model.hidden": 32, "model.dropout": 0.3, "train.batch": 5, "train.seq_length": 16, "train.total_steps": steps,
        "train.precision": "fp32", "evaluate.every": 100, "evaluate.segments": 4, "evaluate.warm": 50, "checkpoint.every": 10,
        "sample.every": steps,
    }  # fmt: skip
    overrides = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "--standalone"]
    return subprocess.Popen(
        [*torchrun, "--max-restarts", str(restarts), "-m", "charlm", "train", folder / "text.txt", "--out", folder / name,
         "--resume", "auto", "--quiet", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _train_and_kill(folder: Path, steps: int, kills: int, rng: random.Random) -> int:
    """Kill the processes of a run at random; returns how often."""
    agent = _train(folder, "killed", steps, kills)
    last, done = folder / "killed" / "last.safetensors", 0
    for number in range(kills):
        goal = rng.randint(number * steps // (kills + 1) + 1, (number + 1) * steps // (kills + 1))
        while agent.poll() is None and _step(last) < goal - 10:  # of the last checkpoint
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)
        if workers := _children(agent.pid):
            victim = rng.choice(workers)
            os.kill(victim, signal.SIGKILL)
            done += 1
            while victim in _children(agent.pid):
                time.sleep(0.01)
    agent.wait()
    return done


def _step(path: Path) -> int:
    from charlm.checkpoint import describe

    return int(describe(path)["progress"]["step"]) if path.exists() else 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def _losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["nats"] for line in lines if line["kind"] == "step"]


if __name__ == "__main__":
    sys.exit(main())
