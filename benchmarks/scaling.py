"""Measures the model of docs/scaling.md here: steps of one process, messages between two, and steps of two processes.

    python -m benchmarks.scaling         about a minute, with one thread for each process

A step of n processes is predicted as t(B/n) + 3α + 4P·2(n−1)/n / β: the step of one process with its share of the streams, the
latency of three messages, and the gradient of P weights through a ring (Patarasuk & Yuan 2009).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from charlm.config import ModelSection, TrainSection
from charlm.distributed import ALONE, World, join
from charlm.model.language_model import LanguageModel
from charlm.runtime import prepare
from charlm.training.update import Updater

SHAPES = ((128, 1, 32), (256, 1, 32), (512, 1, 32), (512, 1, 128), (512, 2, 64))
"""H, L, B; T and V are constant."""
T, V = 64, 65
SMALL, LARGE = 16, 4_000_000
"""Numbers of a message whose time is all latency, and of one whose time is all bandwidth."""


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest duration, after three calls that do not count: other programs can only lengthen it."""
    times = []
    for number in range(repeats + 3):
        began = time.perf_counter()
        work()
        if number >= 3:
            times.append(time.perf_counter() - began)
    return min(times)


def step(H: int, layers: int, B: int, world: World) -> float:
    """Seconds of a training step of this process's share of B streams."""
    own = world.share(B)
    model = LanguageModel(ModelSection(cell="lstm", hidden=H, layers=layers, dropout=0.0), V, "native")
    model.initialise(1)
    update = Updater(model, TrainSection(), "fp32", world)
    ids = torch.randint(V, (T + 1, len(own)), generator=torch.Generator().manual_seed(world.rank))
    state = model.zero_state(len(own))

    def work() -> None:
        update(ids[:-1], ids[1:], T * B, state, 1e-3, None, own.start, B)
        world.any(False, False)  # as the trainer asks before each step

    return seconds(work, 25)


def weights(H: int, layers: int) -> int:
    """P."""
    return LanguageModel(ModelSection(cell="lstm", hidden=H, layers=layers), V, "native").parameter_count()


def measure(world: World) -> list[float]:
    """α and 1/β in seconds, then a step of each shape with all processes."""
    small, large = torch.zeros(SMALL), torch.zeros(LARGE)
    alpha = seconds(lambda: world.sum_(small), 200)
    per_byte = (seconds(lambda: world.sum_(large), 15) - alpha) / (4 * LARGE)
    return [alpha, per_byte, *(step(*shape, world) for shape in SHAPES)]


def two_processes() -> list[float]:
    """:func:`measure` in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling"], env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    output, _ = [process.communicate()[0] for process in running]
    found: list[float] = json.loads(output)
    return found


def main() -> None:
    """Print the table."""
    prepare(1)
    if "RANK" in os.environ:
        world = join("cpu")
        print(json.dumps(measure(world)))
        world.close()
        return
    alpha, per_byte, *together = two_processes()
    print(f"messages between two processes: latency {alpha * 1e6:.0f} µs, {1e-9 / per_byte:.2f} GB/s\n")
    print("H     L  B     weights   one process   two processes   predicted   characters/s: one, two")
    for (H, layers, B), found in zip(SHAPES, together, strict=True):
        whole, half, P = step(H, layers, B, ALONE), step(H, layers, B // 2, ALONE), weights(H, layers)
        predicted = half + 3 * alpha + 4 * P * per_byte
        speeds = f"{T * B / whole:,.0f}, {T * B / found:,.0f}"
        print(
            f"{H:<5} {layers}  {B:<5} {P:9,}   {whole * 1e3:8.2f} ms   {found * 1e3:10.2f} ms   {predicted * 1e3:6.2f} ms"
            f"   {speeds}"
        )
    prepare(2)
    threads = [step(*shape, ALONE) for shape in SHAPES]
    ratios = [f"{found / both:.2f}" for found, both in zip(together, threads, strict=True)]
    print(f"\ntime of two processes ÷ one process with two threads: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
