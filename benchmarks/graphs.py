"""Sections of ``benchmarks/cuda.py``: whole steps as CUDA graphs, sampling of many streams, exact resume, d2l and Shakespeare.

On a CPU the same code runs without graphs, which shows that the sections work.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parity import QueuedSteps
from charlm import checkpoint
from charlm.bench import TORCH_NN, Configuration, Shape, section_of
from charlm.bench.timing import clock_of, measure
from charlm.bench.work import build
from charlm.config import TrainSection, load_recipe
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CharlmError
from charlm.model.language_model import LanguageModel
from charlm.run_files import LAST
from charlm.sampling import SamplingParams, generate_parallel
from charlm.training.events import Evaluated, Finished, RunStarted, StepDone
from charlm.training.plan import Limits
from charlm.training.run import observed
from charlm.training.start import Options, start

NANOGPT = 1.4697
"""Nats per character of Tiny Shakespeare that nanoGPT's 10.7 million parameters reach."""

SOURCE = Path(__file__).resolve().parents[1]


def steps(device: torch.device, shapes: Sequence[Shape], precisions: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Characters/s of whole steps of an LSTM: torch.nn in fp32, charlm launched from Python, charlm as a graph."""
    for shape in shapes:
        runs: dict[tuple[str, str], Callable[[], float]] = {
            ("torch.nn", "fp32"): build(Configuration("train", "lstm", TORCH_NN, "fp32"), shape, device)
        }
        reasons = {}
        for precision in precisions:
            runs["launched", precision] = build(Configuration("train", "lstm", "torch", precision), shape, device)
            queued = _queued_steps(shape, precision, device)
            runs["graph", precision] = queued.train
            reasons[precision] = queued.why_not
        speeds = measure(list(runs.values()), 3, seconds, clock_of(device))
        for (how, precision), speed in zip(runs, speeds, strict=True):
            yield {
                "shape": asdict(shape), "how": how, "precision": precision, "characters_per_second": speed.median,
                "low": speed.low, "high": speed.high, "ratio_to_torch_nn": speed.median / speeds[0].median,
                "no_graph": reasons.get(precision) if how == "graph" else None,
            }  # fmt: skip


def _queued_steps(shape: Shape, precision: str, device: torch.device) -> QueuedSteps:
    train = TrainSection(optimizer="sgd", lr=0.1, clip=1.0, batch=shape.batch, seq_length=shape.seq_length)
    return QueuedSteps(section_of("lstm", shape), train, shape.symbols, precision, device)


def peak_of_graph(shape: Shape, precision: str, device: torch.device) -> int:
    """Peak memory in bytes that PyTorch allocates for steps as a graph, minus its allocations so far."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _queued_steps(shape, precision, device).train()
    return torch.cuda.max_memory_allocated(device) - before


def streams(device: torch.device, shape: Shape, numbers: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """Characters/s of all streams together, sampled from an LSTM in fp32."""
    model = LanguageModel(section_of("lstm", shape), shape.symbols, "torch")
    model.initialise(seed=1)
    model.to(device)
    model.flatten_for_cudnn()
    vocabulary = Vocabulary("char", tuple(range(shape.symbols - 1)))  # and <unk>
    for number in numbers:
        drawn = generate_parallel(model, vocabulary, [1], SamplingParams(), 1, range(number))

        def block(drawn: Iterator[list[int]] = drawn, number: int = number) -> int:
            return number * sum(1 for _ in itertools.islice(drawn, 128))

        (speed,) = measure([block], 3, seconds, clock_of(device))
        yield {"shape": asdict(shape), "streams": number, "characters_per_second": speed.median}


def exact_resume(device: torch.device, precision: str, tiny: bool) -> float:
    """The largest difference in a checkpoint of 2k steps and one of k, save, new process, k; 0 with train.deterministic."""
    size = {"hidden": 16, "characters": 4000, "steps": 6} if tiny else {"hidden": 256, "characters": 400_000, "steps": 200}
    with tempfile.TemporaryDirectory() as folder:
        letters = np.random.default_rng(1).integers(97, 123, size=size["characters"]).astype(np.uint8)
        (Path(folder) / "letters.txt").write_bytes(letters.tobytes())
        recipe = {
            "corpus": "letters.txt",
            "model": {"engine": "torch", "hidden": size["hidden"], "layers": 2, "dropout": 0.2},
            "train": {"deterministic": True, "precision": precision, "total_steps": size["steps"], "threads": 1, "batch": 16},
        }
        path = Path(folder) / "letters.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        half = size["steps"] // 2
        for out, last, resume in (("whole", 2 * half, "never"), ("parts", half, "never"), ("parts", 2 * half, "must")):
            command = [sys.executable, "-m", "charlm", "train", str(path), "--out", str(Path(folder) / out), "--quiet"]
            command += ["--device", str(device), "--max-steps", str(last), "--resume", resume]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SOURCE)
            if done.returncode != 0:
                raise RuntimeError(f"charlm train ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        found = [checkpoint.load(Path(folder) / out / LAST) for out in ("whole", "parts")]
    whole, parts = ({**one.weights, **one.optimizer, **dict(enumerate(one.state))} for one in found)
    return max(float((whole[name] - parts[name]).abs().max()) for name in whole)


def experiment(name: str, overrides: Sequence[str], device: torch.device, until: float | None = None) -> dict[str, Any]:
    """Train a shipped recipe.

    Args:
        until: stop at the first validation at or below this loss in nats; ``None``: train to the end.

    Returns:
        Seconds of the training without start-up and final evaluation, and the final loss.
    """
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_recipe(name, list(overrides))
        options = Options(out=Path(folder) / "run", limits=Limits(time.monotonic()), device=str(device))
        with start(loaded, options) as started:
            began = ended = time.perf_counter()
            record: dict[str, Any] = {}
            for event in observed(started.trainer):
                if isinstance(event, RunStarted):
                    began = time.perf_counter()
                if isinstance(event, StepDone | Evaluated):
                    ended = time.perf_counter()
                if isinstance(event, Evaluated) and until is not None and event.nats <= until:
                    started.trainer.request_stop(f"{event.nats:.4f} nats")
                if isinstance(event, Finished):
                    record = event.record
    return {
        "recipe": name, "overrides": list(overrides), "seconds": ended - began, "step": record["step"],
        "measured_on": record["measured_on"], "nats": record["nats_per_character"], "perplexity": record["perplexity"],
        "characters_per_second": record["characters_per_second"],
    }  # fmt: skip


def unavailable(run: Callable[[], dict[str, Any]]) -> dict[str, Any] | str:
    """The result, or the reason if a corpus is not on this machine."""
    try:
        return run()
    except CharlmError as error:
        return str(error)


LARGE_BATCHES = (64, 256, 512, 1024, 2048)


def shapes(tiny: bool) -> list[Shape]:
    """d2l's shape, and H = 512, T = 128 with several batches."""
    if tiny:
        return [Shape(hidden=8, symbols=6, seq_length=4, batch=2)]
    large = Shape(hidden=512, symbols=65, seq_length=128)
    return [Shape(), *(replace(large, batch=batch) for batch in LARGE_BATCHES)]
