"""Plans a sweep over kinds of work, cells, engines and precisions, and measures it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from charlm.bench.memory import peak_memory
from charlm.bench.record import CELLS, KINDS, TORCH_NN, Configuration, NotRun, Report, Row, Shape, Speed, section_of
from charlm.bench.timing import clock_of, measure
from charlm.bench.work import build, matrix_products, product_sizes
from charlm.cells import entry_of
from charlm.model.engines import ENGINES
from charlm.model.native import library
from charlm.runtime import cpu_name, prepare, resolve_precision
from charlm.threads import Load, most

PRECISIONS = ("fp32", "bf16")
"""On every device; :func:`precisions_on` adds fp16 on a GPU."""

_VARIES = 0.7
"""A row varies if its slowest turn is below this share of the median."""

Progress = Callable[[str, int, int, float | None], None]
"""(kind of work, turns done, all turns, estimated seconds left; ``None``: unknown during the warm-up), between turns."""


@dataclass(frozen=True)
class Sweep:
    """The cases to measure, and for how long.

    Attributes:
        shape: of every network.
        kinds, cells, engines: from ``KINDS``, ``CELLS`` and ``ENGINES``.
        precisions: from :func:`precisions_on`, for training, and for sampling with engines that support them; ``None``: fp32,
            and bf16 where ``precision: auto`` would choose it.
        repetitions: turns of each case.
        seconds: minimum duration of a turn.
    """

    shape: Shape = field(default_factory=Shape)
    kinds: Sequence[str] = KINDS
    cells: Sequence[str] = CELLS
    engines: Sequence[str] = tuple(ENGINES)
    precisions: Sequence[str] | None = None
    repetitions: int = 7
    seconds: float = 0.15


def precisions_on(device: torch.device) -> tuple[str, ...]:
    """The precisions that can be measured on a device."""
    return (*PRECISIONS, "fp16") if device.type == "cuda" else PRECISIONS


def plan(sweep: Sweep, device: torch.device) -> tuple[list[Configuration], list[NotRun]]:
    """The cases of a sweep here, and those that are left out. torch.nn in fp32 is always included: ratios refer to it."""
    planned: list[Configuration] = []
    left_out: dict[NotRun, None] = {}  # ordered, without duplicates
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
    """Measure a sweep.

    Args:
        memory: also measure the peak memory of each case, in a new process (seconds per case).
        progress: called between turns.
    """
    planned, left_out = plan(sweep, device)
    threads = prepare(most())  # the same for every case, whatever else runs here
    products = [(precision, size) for precision in _precisions_of(planned) for size in product_sizes(device)]
    speeds: dict[Configuration, Speed] = {}
    ceilings: dict[str, float] = {}
    load = Load()
    for kind in dict.fromkeys(case.kind for case in planned):
        group = [case for case in planned if case.kind == kind]
        runs: list[Callable[[], float]] = [build(case, sweep.shape, device) for case in group]
        products_now = [] if ceilings else products  # with the first kind: training, if it is measured
        runs += [matrix_products(*size, precision, device).__next__ for precision, size in products_now]
        report_progress = partial(progress, kind) if progress else None
        found = measure(runs, sweep.repetitions, sweep.seconds, clock_of(device), progress=report_progress)
        speeds |= dict(zip(group, found, strict=False))
        for (precision, _), speed in zip(products_now, found[len(group) :], strict=True):
            ceilings[precision] = max(speed.high, ceilings.get(precision, 0.0))

    other_cores = load.others(0)

    def row(case: Configuration) -> Row:
        speed = speeds[case]
        torch_nn = speeds.get(Configuration(case.kind, case.cell, TORCH_NN, "fp32"))
        flop = sweep.shape.flop_per_character(case.cell)
        return Row(
            case.kind, case.cell, case.engine, case.precision,
            characters_per_second=speed.median, low=speed.low, high=speed.high, repetitions=sweep.repetitions,
            share_of_ceiling=speed.median * flop / ceilings[case.precision] if case.kind == "train" else None,
            ratio_to_torch_nn=None if torch_nn is None else speed.median / torch_nn.median,
            peak_memory_bytes=peak_memory(case, sweep.shape, device, threads) if memory else None,
        )  # fmt: skip

    rows = [row(case) for case in planned]
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
            "the results are too low"
        )
    varying = sum(row.low < _VARIES * row.characters_per_second for row in rows)
    if varying:
        warnings.append(
            f"{varying} of {len(rows)} results vary widely (slowest turn below {_VARIES:.0%} of the median); "
            "repeat on an idle machine, or with more repetitions"
        )
    return warnings


def _precisions_of(planned: Sequence[Configuration]) -> list[str]:
    return [precision for precision in (*PRECISIONS, "fp16") if any(case.precision == precision for case in planned)]
