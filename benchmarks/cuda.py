"""Does charlm compute on this GPU what it computes on a CPU, and how fast? Run once from a source tree; needs no build:

    python benchmarks/cuda.py --json cuda.json          # about five minutes
    python benchmarks/cuda.py --only parity             # the checks alone
    python benchmarks/cuda.py --tiny --device cpu       # seconds; shows that the script itself works

Needs torch (with CUDA), numpy, pydantic, platformdirs, pyyaml, safetensors, filelock, typer and rich; no network. Sections:

    parity       what must hold, with found and allowed difference (benchmarks/parity.py)
    training     whole optimizer steps, beside torch.nn, at five shapes
    evaluation   exact evaluation of one stream, beside torch.nn
    sampling     writing one stream, beside torch.nn
    memory       peak GPU memory of a training step, beside the formula that charlm plans with

The exit code is 1 if a check failed. torch.nn under bf16 autocast runs in fp16: PyTorch's wrapper around cuDNN knows no other.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Python puts a script's folder on the path, where this file would hide NVIDIA's package `cuda` from PyTorch.
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]

import torch

from benchmarks import parity
from charlm.bench import (
    TORCH_NN,
    Configuration,
    Report,
    Shape,
    Sweep,
    bench,
    peak_on_gpu,
    precisions_on,
    section_of,
)
from charlm.errors import CharlmError
from charlm.model.language_model import activation_bytes, count_parameters
from charlm.runtime import device_name, prepare, resolve_device

SECTIONS = ("parity", "training", "evaluation", "sampling", "memory")
D2L = Shape()
LARGE = Shape(hidden=512, seq_length=128, batch=64)
TINY = Shape(hidden=8, symbols=6, seq_length=4, batch=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen sections; returns the exit code."""
    options = _options(arguments)
    try:
        device = resolve_device(options.device)
    except CharlmError as error:
        print(error, file=sys.stderr)
        return 2
    prepare(None)
    began = time.perf_counter()
    record: dict[str, Any] = {"machine": _machine(device), "tiny": options.tiny}
    print(", ".join(f"{key} {value}" for key, value in record["machine"].items()))
    failed: list[str] = []
    for section in options.only:
        print(f"\n{section}", flush=True)
        try:
            record[section], problems = RUN[section](device, options.tiny)
        except Exception as error:  # a section that cannot run must not lose the others' results
            message = f"{type(error).__name__}: {error}"
            print(f"FAIL  {section}: {message}", flush=True)
            record[section], problems = {"error": message}, [section]
        failed += problems
    record |= {"failed": failed, "seconds": round(time.perf_counter() - began, 1)}
    if options.json is not None:
        options.json.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    print(f"{record['seconds']} s")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help=f"sections, with commas between (default: {','.join(SECTIONS)})"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny networks, seconds in all; the times mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results here")
    options = parser.parse_args(arguments)
    options.only = [name.strip() for name in options.only.split(",")]
    for name in options.only:
        if name not in SECTIONS:
            parser.error(f"--only {name}: expected one or more of {', '.join(SECTIONS)}")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.absolute().parent}")
    return options


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
    }


# -- sections: each returns its part of the record and the names of what failed --

Section = Callable[[torch.device, bool], tuple[Any, list[str]]]


def run_parity(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Every check of ``parity``, a line each."""
    sizes = {"hidden": 8, "steps": 3, "length": 600} if tiny else {}
    findings = []
    for check in parity.checks(device, **sizes):
        finding = check.run()
        findings.append(finding)
        verdict = "pass" if finding.passed else "FAIL"
        print(f"{verdict}  {finding.name}: found {finding.found:.2g}, allowed {finding.allowed:g} ({finding.note})", flush=True)
    # nan is not JSON
    record = [asdict(one) | {"passed": one.passed, "found": None if one.found != one.found else one.found} for one in findings]
    return record, [finding.name for finding in findings if not finding.passed]


def run_training(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Whole steps: d2l's shape with all cells and engines, then larger ones with the fused kernels."""
    everything = Sweep(D2L, ["train"], engines=["torch", "reference"], precisions=precisions_on(device), repetitions=5)
    fused = replace(everything, engines=["torch"], repetitions=3, seconds=0.3)
    sweeps = [everything, replace(fused, shape=LARGE, cells=["gru", "lstm"])]
    sweeps += [replace(fused, shape=replace(LARGE, batch=batch), cells=["lstm"]) for batch in (256, 512, 1024)]
    if tiny:
        sweeps = [replace(everything, shape=TINY, cells=["lstm"], repetitions=1, seconds=0.0)]
    return _swept(sweeps, device)


def run_evaluation(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Exact evaluation in fp32, by all engines at d2l's shape, by the fused kernels at H = 512."""
    return _one_stream("evaluate", device, tiny)


def run_sampling(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Sampling in fp32, likewise."""
    return _one_stream("sample", device, tiny)


def _one_stream(kind: str, device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    sweep = Sweep(D2L, [kind], engines=["torch", "reference"], precisions=["fp32"], repetitions=5)
    large = replace(sweep, shape=LARGE, engines=["torch"], cells=["gru", "lstm"])
    small = replace(sweep, shape=TINY, cells=["lstm"], repetitions=1, seconds=0.0)
    return _swept([small] if tiny else [sweep, large], device)


def run_memory(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Peak memory of a training step beside what the formula says: weights, gradients, SGD's none, and activations."""
    if device.type != "cuda":
        print("not measured: this section reads the GPU's allocator")
        return [], []
    rows = []
    for shape in [TINY] if tiny else [D2L, LARGE, replace(LARGE, batch=1024)]:
        for engine in ("torch", TORCH_NN):
            for precision in precisions_on(device):
                about = Configuration("train", "lstm", engine, precision)
                section = section_of(about.cell, shape)
                activations = activation_bytes(section, shape.symbols, shape.batch, shape.seq_length, precision, "torch")
                weights = 4 * count_parameters(section, shape.symbols)
                peak = peak_on_gpu(about, shape, device)
                rows.append(
                    asdict(about) | {"shape": asdict(shape), "peak_bytes": peak, "formula_bytes": activations + 2 * weights}
                )
    columns = [
        [_size(row["shape"]), row["engine"], row["precision"], f"{row['peak_bytes'] / 2**20:,.1f}",
         f"{row['formula_bytes'] / 2**20:,.1f}", f"{row['peak_bytes'] / row['formula_bytes']:.2f}"]
        for row in rows
    ]  # fmt: skip
    _table(["lstm", "engine", "precision", "peak MiB", "formula MiB", "peak ÷ formula"], columns)
    return rows, []


RUN: dict[str, Section] = {
    "parity": run_parity,
    "training": run_training,
    "evaluation": run_evaluation,
    "sampling": run_sampling,
    "memory": run_memory,
}


# -- measuring and printing --


def _swept(sweeps: Sequence[Sweep], device: torch.device) -> tuple[Any, list[str]]:
    reports = []
    for sweep in sweeps:
        report = bench(sweep, device)
        _print(report)
        reports.append(asdict(report))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return reports, []


def _print(report: Report) -> None:
    ceilings = [f"{precision} {gflops:,.0f}" for precision, gflops in report.gemm_gflops.items() if gflops is not None]
    print(f"{_size(asdict(report.shape))}; matrix products, GFLOP/s: {', '.join(ceilings)}")
    columns = [
        [row.cell, row.engine, row.precision, f"{row.characters_per_second:,.0f}", f"{row.low:,.0f}–{row.high:,.0f}",
         "" if row.ratio_to_torch_nn is None else f"{row.ratio_to_torch_nn:.2f}",
         "" if row.share_of_ceiling is None else f"{row.share_of_ceiling:.1%}"]
        for row in report.rows
    ]  # fmt: skip
    _table(["cell", "engine", "precision", "characters/s", "spread", "÷ torch.nn fp32", "of ceiling"], columns)
    for left_out in report.not_run:
        print(f"not run: {left_out.cell}, {left_out.engine}, {left_out.precision}: {left_out.reason}")


def _size(shape: dict[str, int]) -> str:
    return f"H={shape['hidden']} V={shape['symbols']} T={shape['seq_length']} B={shape['batch']}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
