"""How fast each cell is on this machine, with each engine and precision, and beside it the program one writes with torch.nn.

Three kinds of work are timed:

    train       whole optimizer steps: forward, loss, backward, clip, SGD; state carried, one-hot input, no dropout
    evaluate    exact evaluation of one stream, fp32
    sample      writing one stream, character by character

A shared machine's speed drifts, so nothing is timed in one piece: all cases of a kind are built and warmed up first, then
timed for a moment each, in turns, several times over. A figure is the median of its turns; lowest and highest stand beside
it. Large matrix products take their turns too: the best of theirs is the ceiling that training is held against. The report
says if other processes kept the processor busy meanwhile.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.cells import cell_names, entry_of
from charlm.config import ModelSection, TrainSection
from charlm.data.dataset import Text
from charlm.data.vocabulary import Vocabulary
from charlm.evaluation.perplexity import CHUNK, carried
from charlm.model.engines import ENGINES
from charlm.model.language_model import LanguageModel
from charlm.model.native import library
from charlm.runtime import arithmetic, cpu_name, prepare, resolve_precision
from charlm.sampling import SamplingParams, generate
from charlm.threads import Load, most, use
from charlm.training.update import Updater

KINDS = ("train", "evaluate", "sample")
CELLS = cell_names()
PRECISIONS = ("fp32", "bf16")
"""On every device; :func:`precisions_on` adds fp16 on a GPU."""
TORCH_NN = "torch.nn"
"""Stands where an engine's name stands: the program one writes without charlm."""

_RATE = 0.1
_CLIP = 1.0
_BATCHES = 4  # that take turns
_WARM_UP = 3  # calls
_DRAWN_AT_ONCE = 32

_VARIES = 0.7
"""A row varies if its slowest turn is below this share of the median."""

Progress = Callable[[str, int, int, float | None], None]
"""(kind of work, turns done, turns in all, estimated seconds left, ``None`` while cases are warmed up); between turns."""


@dataclass(frozen=True)
class Shape:
    """The size of the network and of a training step; by default that of d2l's experiment on The Time Machine.

    Attributes:
        hidden: H units of each layer.
        symbols: V.
        steps: T time steps of a training step.
        batch: B streams of a training step.
        layers: L.
    """

    hidden: int = 256
    symbols: int = 28
    seq_length: int = 35
    batch: int = 32
    layers: int = 1

    def flop_per_character(self, cell: str) -> int:
        """What training on one character costs at least: 6 floating-point operations per weight that is multiplied.

        (2 forward, 4 backward.) The first layer's input weights are not multiplied: a one-hot vector only looks them up.
        """
        entry, H = entry_of(section_of(cell, self)), self.hidden
        matrices = {name: math.prod(shape) for name, shape in entry.shapes(H, H).items() if len(shape) > 1}
        looked_up = sum(size for name, size in matrices.items() if "D" in entry.parameters[name])
        return 6 * (sum(matrices.values()) * self.layers - looked_up + H * self.symbols)


@dataclass(frozen=True)
class Sweep:
    """What to measure, and how long.

    Attributes:
        shape: of every network.
        kinds, cells, engines: from ``KINDS``, ``CELLS`` and ``ENGINES``.
        precisions: from :func:`precisions_on`, of training, and of sampling with the native engine; ``None``: fp32, and bf16
            where ``precision: auto`` would choose it.
        repetitions: turns of each case.
        seconds: how long a turn lasts, at least.
    """

    shape: Shape = Shape()
    kinds: Sequence[str] = KINDS
    cells: Sequence[str] = CELLS
    engines: Sequence[str] = tuple(ENGINES)
    precisions: Sequence[str] | None = None
    repetitions: int = 7
    seconds: float = 0.15


@dataclass(frozen=True)
class Configuration:
    """What one row of the result is about."""

    kind: str
    cell: str
    engine: str
    precision: str


@dataclass(frozen=True)
class NotRun:
    """What has no row, and why."""

    cell: str
    engine: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Speed:
    """Work per second: the median over the turns, the lowest and the highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row(Configuration):
    """What was measured.

    Attributes:
        characters_per_second: the median over the repetitions.
        low, high: the slowest and the fastest repetition.
        share_of_ceiling: of training: the operations it needs per second, as a share of the best matrix product's.
        ratio_to_torch_nn: how many times as fast as torch.nn in fp32; ``None``: torch.nn does not have the cell.
        peak_memory_bytes: see :func:`peak_memory`; ``None``: not measured.
    """

    characters_per_second: float
    low: float
    high: float
    repetitions: int
    share_of_ceiling: float | None
    ratio_to_torch_nn: float | None
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Report:
    """The whole result.

    Attributes:
        machine: the processor's or GPU's name.
        native: the instruction set that the native engine uses here, or why it cannot be used.
        gemm_gflops: precision → 10⁹ operations per second of the best matrix product; ``None``: not measured.
        other_cores: how many processor cores other processes used meanwhile; ``None`` where the system does not tell.
        warnings: sentences that say why the figures may be too low.
    """

    machine: str
    device: str
    threads: int
    torch: str
    native: str
    gemm_gflops: dict[str, float | None]
    shape: Shape
    rows: list[Row]
    not_run: list[NotRun]
    other_cores: float | None
    warnings: list[str]


def precisions_on(device: torch.device) -> tuple[str, ...]:
    """The precisions that can be measured on a device."""
    return (*PRECISIONS, "fp16") if device.type == "cuda" else PRECISIONS


# -- the sweep -------------------------------------------------------------------------------------------------------


def plan(sweep: Sweep, device: torch.device) -> tuple[list[Configuration], list[NotRun]]:
    """What the sweep consists of here, and what is left out. torch.nn in fp32, which ratios refer to, is in for its cells."""
    planned: list[Configuration] = []
    left_out: dict[NotRun, None] = {}  # in order, each once
    for kind, cell in itertools.product(sweep.kinds, sweep.cells):
        precisions = ("fp32",) if kind == "evaluate" else sweep.precisions or PRECISIONS
        for engine, precision in itertools.product(sweep.engines, precisions):
            if kind == "sample" and precision not in ENGINES[engine].sampling_precisions:
                continue
            if reason := _why_not(sweep, cell, engine, precision, device):
                left_out[NotRun(cell, engine, precision, reason)] = None
            else:
                planned.append(Configuration(kind, cell, engine, precision))
        if reason := _not_in_torch_nn(cell, sweep.shape):
            left_out[NotRun(cell, TORCH_NN, "fp32", reason)] = None
            continue
        for precision in precisions_on(device):
            wanted = kind == "train" and precision in precisions and not _why_not(sweep, cell, TORCH_NN, precision, device)
            if wanted or precision == "fp32":
                planned.append(Configuration(kind, cell, TORCH_NN, precision))
    return planned, list(left_out)


def _why_not(sweep: Sweep, cell: str, engine: str, precision: str, device: torch.device) -> str | None:
    if engine != TORCH_NN and (reason := ENGINES[engine].why_not(section_of(cell, sweep.shape), device)):
        return reason
    if sweep.precisions is None and precision == "bf16":
        chosen, reason = resolve_precision("auto", device, None if engine == TORCH_NN else ENGINES[engine].fp32_reason)
        return None if chosen == "bf16" else reason
    return None


def _not_in_torch_nn(cell: str, shape: Shape) -> str | None:
    entry = entry_of(section_of(cell, shape))
    return None if "torch" in entry.kernels else f"PyTorch has no {entry.title}"


def bench(sweep: Sweep, device: torch.device, *, memory: bool = False, progress: Progress | None = None) -> Report:
    """Measure.

    Args:
        memory: measure each configuration's memory too, in a process of its own, which takes seconds.
        progress: is told how far it is.
    """
    planned, left_out = plan(sweep, device)
    threads = prepare(most())  # as many for every case, whatever else runs here
    products = [(precision, size) for precision in _precisions_of(planned) for size in _product_sizes(device)]
    speeds: dict[Configuration, Speed] = {}
    ceilings: dict[str, float] = {}
    load = Load()
    for kind in dict.fromkeys(configuration.kind for configuration in planned):
        group = [configuration for configuration in planned if configuration.kind == kind]
        runs: list[Callable[[], float]] = [build(configuration, sweep.shape, device) for configuration in group]
        products_now = [] if ceilings else products  # in the first kind: training, if it is measured
        runs += [_products(*size, precision, device).__next__ for precision, size in products_now]
        told = partial(progress, kind) if progress else None
        found = measure(runs, sweep.repetitions, sweep.seconds, clock_of(device), progress=told)
        speeds |= dict(zip(group, found, strict=False))
        for (precision, _), speed in zip(products_now, found[len(group) :], strict=True):
            ceilings[precision] = max(speed.high, ceilings.get(precision, 0.0))

    other_cores = load.others(0)

    def row(about: Configuration) -> Row:
        speed = speeds[about]
        torch_nn = speeds.get(Configuration(about.kind, about.cell, TORCH_NN, "fp32"))
        flop = sweep.shape.flop_per_character(about.cell)
        return Row(
            about.kind, about.cell, about.engine, about.precision,
            characters_per_second=speed.median, low=speed.low, high=speed.high, repetitions=sweep.repetitions,
            share_of_ceiling=speed.median * flop / ceilings[about.precision] if about.kind == "train" else None,
            ratio_to_torch_nn=None if torch_nn is None else speed.median / torch_nn.median,
            peak_memory_bytes=peak_memory(about, sweep.shape, device, threads) if memory else None,
        )  # fmt: skip

    rows = [row(configuration) for configuration in planned]
    return Report(
        machine=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        device=str(device),
        threads=threads,
        torch=str(torch.__version__),
        native=library.reason() or library.choose(),
        gemm_gflops={
            precision: ceilings[precision] / 1e9 if precision in ceilings else None for precision in precisions_on(device)
        },
        shape=sweep.shape,
        rows=rows,
        not_run=left_out,
        other_cores=other_cores,
        warnings=_warnings(rows, other_cores, threads),
    )


def _warnings(rows: Sequence[Row], other_cores: float | None, threads: int) -> list[str]:
    warnings = []
    cores = os.cpu_count() or 1
    if other_cores is not None and other_cores + threads > cores + 0.25:
        warnings.append(
            f"the machine was busy: other processes used {other_cores:.1f} of its {cores} cores, and this one needs {threads}; "
            "the figures are too low"
        )
    varying = sum(row.low < _VARIES * row.characters_per_second for row in rows)
    if varying:
        warnings.append(
            f"{varying} of {len(rows)} figures vary widely (slowest turn below {_VARIES:.0%} of the median); "
            "repeat on an idle machine, or with more --repetitions"
        )
    return warnings


def _precisions_of(planned: Sequence[Configuration]) -> list[str]:
    return [precision for precision in (*PRECISIONS, "fp16") if any(about.precision == precision for about in planned)]


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock in seconds for work on a device; on a GPU it waits for what has been started there, so that all of it counts."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def measure(
    runs: Sequence[Callable[[], float]],
    repetitions: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int, float | None], None] | None = None,
) -> list[Speed]:
    """Time things in turns: each once, then each once more, … so that a drift of the machine's speed meets all alike.

    Args:
        runs: each does some work and returns how much.
        repetitions: turns of each.
        seconds: a turn calls its ``run`` until so much time has passed.
        progress: is told, between turns, turns done, turns in all, and the estimated seconds left; to warm up is a turn too.
    """
    done, total = 0, len(runs) * (1 + repetitions)
    lasting: list[float] = []  # of a turn of each
    for run in runs:
        one_call = _warm_up(run, clock)
        lasting.append(max(seconds + one_call / 2, one_call))
        done += 1
        if progress is not None:
            progress(done, total, None)
    turns: list[list[float]] = [[] for _ in runs]
    for repetition in range(repetitions):
        for index, run in enumerate(runs):
            began = clock()
            turns[index].append(_turn(run, seconds, clock))
            lasting[index] = clock() - began
            done += 1
            if progress is not None:
                progress(done, total, sum(lasting[index + 1 :]) + sum(lasting) * (repetitions - repetition - 1))
    return [Speed(statistics.median(rates), min(rates), max(rates)) for rates in turns]


def _warm_up(run: Callable[[], float], clock: Callable[[], float] = time.perf_counter) -> float:
    """Kernels are chosen, compiled and given their memory at the first calls.

    Returns:
        Seconds of the last call.
    """
    began = 0.0
    for _ in range(_WARM_UP):
        began = clock()
        run()
    return clock() - began


def _turn(run: Callable[[], float], seconds: float, clock: Callable[[], float]) -> float:
    """Work per second."""
    began = clock()
    done = run()
    while (elapsed := clock() - began) < seconds:
        done += run()
    return done / elapsed


def peak_memory(about: Configuration, shape: Shape, device: torch.device, threads: int) -> int | None:
    """The most memory that a configuration takes, weights included, beyond what the same takes with a tiny network.

    (Which is what Python, PyTorch and the kernels' code take.) On a CPU it is resident memory, seen from a new process: in
    an old one, memory that something else has given back would be used again unseen. On a GPU it is what PyTorch allocates.

    Returns:
        Bytes; ``None`` where the system does not tell (other than Linux).
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_peak_memory_here, about, shape, str(device), threads).result()


def _peak_memory_here(about: Configuration, shape: Shape, device_name: str, threads: int) -> int | None:
    prepare(threads)
    device = torch.device(device_name)
    _warm_up(build(about, Shape(hidden=2, symbols=2, seq_length=2, batch=1, layers=shape.layers), device))
    if device.type == "cuda":
        return peak_on_gpu(about, shape, device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        before = _status("VmRSS")
        _warm_up(build(about, shape, device))
        return _status("VmHWM") - before
    except OSError:
        return None


def peak_on_gpu(about: Configuration, shape: Shape, device: torch.device) -> int:
    """The most memory in bytes that PyTorch allocates for a configuration, beyond what is allocated already."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _warm_up(build(about, shape, device))
    return torch.cuda.max_memory_allocated(device) - before


def _status(name: str) -> int:
    """A line of this process's ``/proc/self/status``, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# -- what is timed ---------------------------------------------------------------------------------------------------
# Each is an endless generator that reads like the program it stands for: it does a piece of the work and yields how much.


def build(about: Configuration, shape: Shape, device: torch.device) -> Callable[[], int]:
    """A function that does a piece of the configuration's work and returns how many characters it was."""
    work = {
        ("train", False): _training,
        ("train", True): _training_with_torch_nn,
        ("evaluate", False): _evaluation,
        ("evaluate", True): _evaluation_with_torch_nn,
        ("sample", False): _sampling,
        ("sample", True): _sampling_with_torch_nn,
    }
    return work[about.kind, about.engine == TORCH_NN](about, shape, device).__next__


def _training(about: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _model(about, shape, device)
    update = Updater(model, TrainSection(optimizer="sgd", lr=_RATE, clip=_CLIP), about.precision)
    state = model.zero_state(shape.batch)
    for inputs, targets in _batches(shape, device):
        use(most(), torch_threads=1 if model.is_thread_invariant else None)
        state = update(inputs, targets, targets.numel(), state, _RATE).state
        yield targets.numel()


def _training_with_torch_nn(about: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _TorchNN(about.cell, shape).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)
    state = None
    for inputs, targets in _batches(shape, device):
        use(most())
        with arithmetic(about.precision, device):
            logits, state = model(inputs, state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        loss.item()
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        yield targets.numel()


def _evaluation(about: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _model(about, shape, device)
    indices = _random_ids(shape, CHUNK + 1).astype(np.uint32)
    text = Text(indices, np.arange(shape.symbols), np.zeros(shape.symbols, dtype=np.bool_))
    while True:
        yield carried(model, text).characters


def _evaluation_with_torch_nn(about: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _TorchNN(about.cell, shape).to(device)
    ids = torch.from_numpy(_random_ids(shape, CHUNK + 1)).to(device)[:, None]
    state = None
    while True:
        use(most())
        with torch.inference_mode():
            logits, state = model(ids[:-1], state)
            F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten(), reduction="sum").item()
        yield CHUNK


def _sampling(about: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _model(about, shape, device)
    vocabulary = Vocabulary("char", tuple(range(shape.symbols - 1)))  # and <unk>
    drawn = generate(model, vocabulary, [], SamplingParams(), seed=1, precision=about.precision)
    while True:
        for _ in range(_DRAWN_AT_ONCE):
            next(drawn)
        yield _DRAWN_AT_ONCE


def _sampling_with_torch_nn(about: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _TorchNN(about.cell, shape).to(device)
    ids, state = torch.zeros(1, 1, dtype=torch.long, device=device), None
    while True:
        use(most())
        with torch.inference_mode():
            for _ in range(_DRAWN_AT_ONCE):
                logits, state = model(ids, state)
                ids = torch.multinomial(torch.softmax(logits[0], dim=-1), 1)
                ids.item()
        yield _DRAWN_AT_ONCE


def _products(rows: int, inner: int, columns: int, precision: str, device: torch.device) -> Iterator[float]:
    """Matrix products; yields floating-point operations."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    product = torch.empty(rows, columns, dtype=dtype, device=device)
    while True:
        use(most())
        torch.mm(a, b, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield 2.0 * rows * inner * columns


def _product_sizes(device: torch.device) -> list[tuple[int, int, int]]:
    """Large enough to be at full speed, small enough for a turn to hold several."""
    return [(8192, 8192, 8192)] if device.type == "cuda" else [(1024, 1024, 1024), (2048, 1024, 2048)]


class _TorchNN(nn.Module):
    """One-hot vectors, a recurrent layer, a linear layer: the program one writes with torch.nn."""

    def __init__(self, cell: str, shape: Shape) -> None:
        super().__init__()
        self.symbols = shape.symbols
        self.recurrent = getattr(nn, cell.upper())(shape.symbols, shape.hidden, shape.layers)
        self.output = nn.Linear(shape.hidden, shape.symbols)

    def forward(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As :meth:`LanguageModel.forward`, with the state as ``torch.nn`` has it; ``None``: zeros."""
        outputs, state = self.recurrent(F.one_hot(ids, self.symbols).float(), state)
        return self.output(outputs), state


def section_of(cell: str, shape: Shape) -> ModelSection:
    """The network that is measured: one-hot input, no dropout."""
    return ModelSection.model_validate(
        {"cell": cell, "hidden": shape.hidden, "layers": shape.layers, "input": "one-hot", "dropout": 0.0}
    )


def _model(about: Configuration, shape: Shape, device: torch.device) -> LanguageModel:
    model = LanguageModel(section_of(about.cell, shape), shape.symbols, about.engine)
    model.initialise(seed=1)
    model.to(device)
    model.flatten_for_cudnn()
    return model


def _batches(shape: Shape, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """A few random batches, ``(T, B)`` inputs and targets, over and over."""
    ids = torch.from_numpy(_random_ids(shape, _BATCHES, shape.seq_length + 1, shape.batch)).to(device)
    return itertools.cycle([(batch[:-1], batch[1:]) for batch in ids])


def _random_ids(shape: Shape, *size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(1).integers(shape.symbols, size=size)
