"""Hashes of ten short runs: ``python tools/fingerprint.py > before``, change the code, and compare.

A change of the code's structure leaves every line as it was. The hashes belong to one machine and one version of PyTorch.
They cover weights, moments, averages, carried state and samples, over every cell, engine and precision, with dropout,
averaging, tied weights, attention, two threads, and a resume in the middle of each run.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

RUNS = {
    "lstm native fp32": "model.cell=lstm model.engine=native train.precision=fp32",
    "lstm native bf16, dropout, average": (
        "model.cell=lstm model.engine=native train.precision=bf16 model.dropout=0.4 model.input_dropout=0.2 train.average=0.9"
    ),
    "lstm torch fp32, two threads": "model.cell=lstm model.engine=torch train.precision=fp32 train.threads=2",
    "lstm reference fp32, attention": "model.cell=lstm model.engine=reference train.precision=fp32 model.attention=8",
    "gru native bf16, residual layers": (
        "model.cell=gru model.engine=native train.precision=bf16 model.layers=2 model.residual=true train.optimizer=rmsprop"
    ),
    "gru native fp32, reset before, tied": (
        "model.cell=gru model.engine=native train.precision=fp32 model.reset_after=false model.tied=true train.threads=2"
    ),
    "gru torch bf16": "model.cell=gru model.engine=torch train.precision=bf16 train.optimizer=adam",
    "rnn native fp32, weight drop": "model.cell=rnn model.engine=native train.precision=fp32 model.weight_drop=0.2",
    "rnn relu native bf16, sgd": (
        "model.cell=rnn model.nonlinearity=relu model.engine=native train.precision=bf16 train.optimizer=sgd "
        "train.momentum=0.9 train.lr=0.05 model.input=one-hot"
    ),
    "rnn reference fp32, locked dropout": (
        "model.cell=rnn model.engine=reference train.precision=fp32 model.dropout=0.3 model.locked_dropout=true "
        "train.schedule=step"
    ),
}
"""Name → overrides of the recipe below."""

RECIPE = """corpus: ./text.txt
data: {split: [0.8, 0.2, 0.0]}
model: {hidden: 48, dropout: 0.0}
train: {batch: 8, seq_length: 16, total_steps: 40, threads: 1, lr: 0.005}
evaluate: {every: 20, characters: 1000, warm: 100}
sample: {length: 60}
"""


def main() -> None:
    """Train, and print a line for each run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words, rng = ["the", "sea", "was", "calm", "and", "so", "were", "they", "who", "sailed", ";\n"], random.Random(1)
        (folder / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(6000)), encoding="utf-8")
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        for number, (about, overrides) in enumerate(RUNS.items()):
            out = folder / f"run-{number}"
            settings = [word for override in overrides.split() for word in ("--set", override)]
            command = [sys.executable, "-m", "charlm", "train", str(folder / "recipe.yaml"), *settings, "--out", str(out)]
            for part in (["--max-steps", "23"], ["--resume", "must"]):
                done = subprocess.run([*command, "--device", "cpu", "--quiet", *part], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{about}: {done.stderr}")
            print(f"{_fingerprint(out)}  {about}", flush=True)


def _fingerprint(run: Path) -> str:
    from charlm.checkpoint import load
    from charlm.run_files import BEST, LAST, SAMPLES

    digest = hashlib.sha256()
    for name in (BEST, LAST):
        stored = load(run / name)
        state = {f"state {index}": part for index, part in enumerate(stored.state)}
        for tensors in (stored.weights, stored.optimizer, stored.average, state):
            digest.update(b"".join(_described(tensors.items())))
    digest.update((run / SAMPLES).read_bytes())
    return digest.hexdigest()[:32]


def _described(tensors: Iterable[tuple[str, object]]) -> Iterable[bytes]:
    import torch

    for name, tensor in sorted(tensors):
        assert isinstance(tensor, torch.Tensor)
        yield (
            f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        )


if __name__ == "__main__":
    main()
