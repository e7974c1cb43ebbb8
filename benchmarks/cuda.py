"""Does charlm compute on this GPU what it computes on a CPU, and how fast? Run once from a source tree; needs no build:

    python benchmarks/cuda.py --json cuda.json          # less than ten minutes
    python benchmarks/cuda.py --only parity             # the checks alone
    python benchmarks/cuda.py --tiny --device cpu       # seconds; shows that the script itself works

Needs torch (with CUDA), numpy, pydantic, platformdirs, pyyaml, safetensors, filelock, typer and rich; no network. Sections:

    parity       what must hold, with found and allowed difference (benchmarks/parity.py)
    steps        whole steps launched from Python and as CUDA graphs, beside torch.nn
    training     whole steps of every cell and engine, launched from Python, beside torch.nn
    evaluation   exact evaluation of one stream, beside torch.nn
    sampling     writing one stream, beside torch.nn, and many streams together
    memory       peak GPU memory of a training step, beside the formula that charlm plans with
    resume       2k steps against k, save, new process, k, with train.deterministic: bit-equal
    experiments  d2l's 500 epochs, and Tiny Shakespeare to the loss of nanoGPT; needs these texts (`charlm corpus`)

Targets for one H100 are printed with the results. The exit code is 1 if a check failed; a missed target is not a failed check.
torch.nn under bf16 autocast runs in fp16: PyTorch's wrapper around cuDNN knows no other.
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

from benchmarks import graphs, parity
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

SECTIONS = ("parity", "steps", "training", "evaluation", "sampling", "memory", "resume", "experiments")
GRAPH = "torch, as a graph"
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
    """Whole steps: d2l's shape with all cells and engines, then a larger one with the fused kernels."""
    everything = Sweep(D2L, ["train"], engines=["torch", "reference"], precisions=precisions_on(device), repetitions=5)
    fused = replace(everything, engines=["torch"], repetitions=3, seconds=0.3)
    sweeps = [everything, replace(fused, shape=LARGE, cells=["gru", "lstm"])]
    if tiny:
        sweeps = [replace(everything, shape=TINY, cells=["lstm"], repetitions=1, seconds=0.0)]
    return _swept(sweeps, device)


def run_evaluation(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Exact evaluation in fp32, by all engines at d2l's shape, by the fused kernels at H = 512."""
    return _one_stream("evaluate", device, tiny)


def run_sampling(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Sampling in fp32: one stream, then many."""
    reports, problems = _one_stream("sample", device, tiny)
    shape, numbers = (TINY, (1, 3)) if tiny else (LARGE, (1, 64, 1024))
    rows = list(graphs.streams(device, shape, numbers, 0.0 if tiny else 0.3))
    print(_size(asdict(shape)))
    _table(["streams", "characters/s"], [[str(row["streams"]), f"{row['characters_per_second']:,.0f}"] for row in rows])
    return [*reports, {"streams": rows}], problems


def run_steps(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Whole steps of an LSTM, with and without a graph."""
    rows = list(graphs.steps(device, graphs.shapes(tiny), precisions_on(device), 0.0 if tiny else 0.3))
    columns = [
        [_size(row["shape"]), row["how"], row["precision"], f"{row['characters_per_second']:,.0f}",
         f"{row['ratio_to_torch_nn']:.2f}"]
        for row in rows
    ]  # fmt: skip
    _table(["lstm", "step", "precision", "characters/s", "÷ torch.nn fp32"], columns)
    on_gpu = device.type == "cuda"
    failed = [
        f"graph at {_size(row['shape'])} {row['precision']}: {row['no_graph']}" for row in rows if row["no_graph"] and on_gpu
    ]
    targets = []
    if not tiny:
        graph = [row for row in rows if row["how"] == "graph"]
        at_d2l = max(row["ratio_to_torch_nn"] for row in graph if row["shape"]["hidden"] == D2L.hidden)
        fastest = max(row["characters_per_second"] for row in graph if row["shape"]["hidden"] == LARGE.hidden)
        targets = [
            _target("d2l's shape, times torch.nn in fp32", at_d2l, 4, "at least"),
            _target("H=512 T=128, best batch, characters/s", fastest, 5e6, "at least"),
        ]
    return {"rows": rows, "targets": targets}, failed


def run_resume(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """Exact resume with ``train.deterministic``, in new processes."""
    precisions = ["fp32"] if tiny else precisions_on(device)
    found = {precision: graphs.exact_resume(device, precision, tiny) for precision in precisions}
    for precision, difference in found.items():
        print(f"{'FAIL' if difference else 'pass'}  exact resume, {precision}: largest difference {difference:.2g}, allowed 0")
    return found, [f"exact resume, {precision}" for precision, difference in found.items() if difference]


def run_experiments(device: torch.device, tiny: bool) -> tuple[Any, list[str]]:
    """d2l's experiment to its end, and Shakespeare to nanoGPT's loss."""
    small = ["model.hidden=8", "train.epochs=null", "train.total_steps=3", "sample.length=1"] if tiny else []
    short = ["train.total_steps=3", "model.hidden=8", "evaluate.characters=1000", "sample.length=1"] if tiny else []
    runs = {
        "d2l": lambda: graphs.experiment("time-machine-lstm", small, device),
        "shakespeare": lambda: graphs.experiment("shakespeare", short or ["evaluate.every=250"], device, until=graphs.NANOGPT),
    }
    allowed = {"d2l": 5.0, "shakespeare": 15.0}
    record: dict[str, Any] = {}
    for name, run in runs.items():
        found = graphs.unavailable(run)
        record[name] = found
        if isinstance(found, str):
            print(f"not run: {name}: {found}")
            continue
        print(
            f"{name}: {found['step']:,} steps in {found['seconds']:.1f} s, {found['characters_per_second']:,.0f} characters/s, "
            f"{found['nats']:.4f} nats (perplexity {found['perplexity']:.3f}) on {found['measured_on']} text"
        )
        if not tiny:
            record[f"{name} target"] = _target(f"{name}, seconds", found["seconds"], allowed[name], "at most")
    return record, []


def _target(name: str, found: float, wanted: float, comparison: str) -> dict[str, Any]:
    """Print a target for one H100 and whether it is met."""
    is_met = found >= wanted if comparison == "at least" else found <= wanted
    print(f"target {'met' if is_met else 'missed'}: {name}: {found:,.2f}, {comparison} {wanted:,.0f}")
    return {"name": name, "found": found, "wanted": wanted, "comparison": comparison, "met": is_met}


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
        for engine in ("torch", GRAPH, TORCH_NN):
            for precision in precisions_on(device):
                about = Configuration("train", "lstm", engine, precision)
                section = section_of(about.cell, shape)
                activations = activation_bytes(section, shape.symbols, shape.batch, shape.seq_length, precision, "torch")
                weights = 4 * count_parameters(section, shape.symbols)
                if engine == GRAPH:
                    peak = graphs.peak_of_graph(shape, precision, device)
                else:
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
    "steps": run_steps,
    "training": run_training,
    "evaluation": run_evaluation,
    "sampling": run_sampling,
    "memory": run_memory,
    "resume": run_resume,
    "experiments": run_experiments,
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
