"""What busy programs on the same machine cost: ``python benchmarks/busy.py``.

Training, validation, exact evaluation and sampling: with the number of threads that charlm chooses while it runs, with one,
and with all; alone, and beside one and two busy single-threaded programs. A turn lasts some seconds, so the time that charlm
needs to adapt is part of the result. The turns of the three alternate.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Python puts a script's folder on the path, where `cuda.py` would hide NVIDIA's package from PyTorch.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import numpy as np
import torch

from charlm.config import ModelSection, TrainSection
from charlm.data.dataset import Text
from charlm.data.vocabulary import Vocabulary
from charlm.evaluation import perplexity
from charlm.model.engines import ENGINES
from charlm.model.language_model import LanguageModel
from charlm.runtime import arithmetic, cpu_name, prepare, resolve_precision
from charlm.sampling import SamplingParams, generate
from charlm.threads import Tuner, _chosen
from charlm.training.update import Updater

SYMBOLS = 28


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=5.0, help="length of a turn")
    options.add_argument("--repetitions", type=int, default=3)
    options.add_argument("--neighbours", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--engines", nargs="*", default=["native", "torch"])
    options.add_argument("--json", metavar="FILE")
    given = options.parse_args()
    cores = prepare(None)
    print(f"{cpu_name()}, {os.cpu_count()} cores, {cores} threads, torch {torch.__version__}, LSTM {given.hidden}")
    names = ["chosen", "1 thread", f"{cores} threads", "÷ 1", f"÷ {cores}"]
    print(f"{'work':<18} {'engine':<7} {'neighbours':>10}" + "".join(f"{name:>11}" for name in names))
    rows = []
    for neighbours in given.neighbours:
        for engine in given.engines:
            for name, work in works(engine, given.hidden).items():
                rates: dict[str, list[float]] = {"chosen": [], "one": [], "all": []}
                with busy(neighbours):
                    for _ in range(given.repetitions):
                        for which, threads in (("chosen", None), ("one", 1), ("all", cores)):
                            prepare(threads)
                            _chosen.clear()  # as in a new process
                            rates[which].append(turn(work, given.seconds))
                chosen, one, all_ = (statistics.median(found) for found in rates.values())
                rows.append({"work": name, "engine": engine, "neighbours": neighbours, **rates})
                speeds = "".join(f"{speed:>11,.0f}" for speed in (chosen, one, all_))
                print(f"{name:<18} {engine:<7} {neighbours:>10}{speeds}{chosen / one:>11.2f}{chosen / all_:>11.2f}", flush=True)
    if given.json:
        report = {"machine": cpu_name(), "torch": torch.__version__, "hidden": given.hidden, "rows": rows}
        Path(given.json).write_text(json.dumps(report), encoding="utf-8")


def turn(work: Callable[[], Iterator[int]], seconds: float) -> float:
    """Characters per second, from the start of the work on."""
    pieces = work()
    next(pieces)  # memory, packed weights
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += next(pieces)
    return done / (time.perf_counter() - began)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but use a core."""
    processes = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(1.0 if count else 0.2)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


def works(engine: str, hidden: int) -> dict[str, Callable[[], Iterator[int]]]:
    """The four kinds of work, each an iterator over the characters of its pieces."""
    section = ModelSection.model_validate({"cell": "lstm", "hidden": hidden, "input": "one-hot", "dropout": 0.0})
    model = LanguageModel(section, SYMBOLS, engine)
    model.initialise(seed=1)
    cpu = torch.device("cpu")
    precision, _ = resolve_precision("auto", cpu, ENGINES[engine].fp32_reason)
    rng = np.random.default_rng(1)
    text = Text(rng.integers(SYMBOLS, size=200_000).astype(np.uint8), np.arange(SYMBOLS), np.zeros(SYMBOLS, dtype=np.bool_))

    def training() -> Iterator[int]:
        update = Updater(model, TrainSection(optimizer="adamw", lr=1e-4), precision)
        tuner = Tuner("training", model.is_thread_invariant)
        state = model.zero_state(32)
        ids = torch.from_numpy(rng.integers(SYMBOLS, size=(36, 32)))
        evaluated_at = time.perf_counter()
        while True:
            with arithmetic(precision, cpu), tuner.piece(35 * 32):
                state = update(ids[:-1], ids[1:], 35 * 32, state, 1e-4).state
            yield 35 * 32
            if not model.is_thread_invariant and time.perf_counter() - evaluated_at > 1:
                evaluated_at = time.perf_counter()
                tuner.choose()  # as after an evaluation

    def validation() -> Iterator[int]:
        while True:
            yield perplexity.segments(model, text, characters=20_000).characters

    def exact() -> Iterator[int]:
        while True:
            yield perplexity.carried(model, text[slice(0, 20_001)]).characters

    def sampling() -> Iterator[int]:
        drawn = generate(model, Vocabulary("char", tuple(range(SYMBOLS - 1))), [], SamplingParams(), seed=1)
        while True:
            for _ in range(32):
                next(drawn)
            yield 32

    return {"training": training, "validation": validation, "exact evaluation": exact, "sampling": sampling}


if __name__ == "__main__":
    main()
