"""``charlm bench``: measure the speed of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cells import cell_names
from charlm.cli.console import json_line, out, size, still_bar, table, wrapped
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.bench import NotRun, Report, Row

_TITLES = {
    "train": "train: whole steps (forward, loss, backward, clip, SGD)",
    "evaluate": "evaluate: one stream, exact",
    "sample": "sample: one stream, character by character",
}


def bench(
    only: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="train, evaluate or sample.", show_default="all")
    ] = None,
    cells: Annotated[
        list[str] | None, typer.Option(metavar="CELLS", help=f"From {', '.join(cell_names())}.", show_default="all")
    ] = None,
    engines: Annotated[
        list[str] | None, typer.Option(metavar="ENGINES", help="Compared with torch.nn.", show_default="all")
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISIONS",
            help="For training: fp32, bf16 or, on a GPU, fp16.",
            show_default="fp32, and bf16 where auto would choose it",
        ),
    ] = None,
    hidden: Annotated[int, typer.Option(min=1, max=1_000_000, help="Hidden units H of each layer.")] = 256,
    symbols: Annotated[int, typer.Option(min=2, max=1_200_000, help="Symbols V.")] = 28,
    seq_length: Annotated[int, typer.Option(min=1, max=1_000_000, help="Time steps T of a training step.")] = 35,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Streams B of a training step.")] = 32,
    layers: Annotated[int, typer.Option(min=1, max=1_000, help="Recurrent layers L.")] = 1,
    repetitions: Annotated[int, typer.Option(min=1, max=1_000_000, help="Turns per case; the result is their median.")] = 7,
    seconds: Annotated[float, typer.Option(min=0, max=1e6, help="Minimum duration of a turn.")] = 0.15,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also measure peak memory, each case in a new process (minutes).")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="CPU threads.", show_default="one per core")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """Measure the speed of every cell, engine and precision on this machine, and compare it with torch.nn.

    The default sizes are those of d2l's experiment. Lists are comma-separated (gru,lstm); their options are repeatable.

    Examples:
        charlm bench
        charlm bench --only train --cells gru,lstm --hidden 512
    """
    from charlm.bench import CELLS, KINDS, Shape, Sweep, precisions_on
    from charlm.bench import bench as measure
    from charlm.model.engines import ENGINES
    from charlm.runtime import prepare, resolve_device

    on = resolve_device(device)
    sweep = Sweep(
        shape=Shape(hidden, symbols, seq_length, batch, layers),
        kinds=_chosen("--only", only, KINDS),
        cells=_chosen("--cells", cells, CELLS),
        engines=_chosen("--engines", engines, tuple(ENGINES)),
        precisions=None if precisions is None else _chosen("--precisions", precisions, precisions_on(on)),
        repetitions=repetitions,
        seconds=seconds,
    )
    prepare(threads)
    with still_bar() as progress:
        report = measure(sweep, on, memory=memory, progress=progress)
    if as_json:
        json_line(_record(report, memory))
    else:
        _print(report, memory)


def _chosen(option: str, given: list[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The names in an option, in the order of ``known``; all names if it is not given."""
    if given is None:
        return tuple(known)
    names = [name.strip() for text in given for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name}: expected a comma-separated list of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _record(report: Report, memory: bool) -> dict[str, Any]:
    from dataclasses import asdict

    record = asdict(report)
    if not memory:
        for row in record["rows"]:
            del row["peak_memory_bytes"]
    return record


def _print(report: Report, memory: bool) -> None:
    shape = report.shape
    ceilings = [f"{precision} {gflops:,.0f}" for precision, gflops in report.gemm_gflops.items() if gflops is not None]
    out(f"{report.machine}, {report.threads} thread{'s' if report.threads > 1 else ''}, torch {report.torch}")
    out(f"native engine: {report.native}")
    out(f"matrix products: {', '.join(ceilings)} GFLOP/s")
    out(f"H = {shape.hidden}, V = {shape.symbols}, T = {shape.seq_length}, B = {shape.batch}, L = {shape.layers}")
    for kind in dict.fromkeys(row.kind for row in report.rows):
        _print_kind(kind, [row for row in report.rows if row.kind == kind], memory)
    for note in [*(f"warning: {warning}" for warning in report.warnings), *_notes(report.not_run)]:
        out(wrapped(note, to_stderr=False))


def _print_kind(kind: str, rows: Sequence[Row], memory: bool) -> None:
    headers = ["cell", "engine", "precision", "characters/s", "spread", "÷ torch.nn fp32"]
    cells = [
        [row.cell, row.engine, row.precision, f"{row.characters_per_second:,.0f}", f"{row.low:,.0f}–{row.high:,.0f}",
         "" if row.ratio_to_torch_nn is None else f"{row.ratio_to_torch_nn:.2f}"]
        for row in rows
    ]  # fmt: skip
    if kind == "train":
        headers.append("of ceiling")
        for shown, row in zip(cells, rows, strict=True):
            shown.append(f"{row.share_of_ceiling:.0%}")
    if memory:
        headers.append("memory")
        for shown, row in zip(cells, rows, strict=True):
            shown.append("" if row.peak_memory_bytes is None else size(row.peak_memory_bytes))
    table(_TITLES[kind], headers, cells)


def _notes(not_run: Sequence[NotRun]) -> list[str]:
    """One line per engine and reason, with all cells and precisions."""
    cells: dict[tuple[str, str], list[str]] = {}
    for about in not_run:
        cells.setdefault((about.engine, about.reason), []).append(f"{about.cell} {about.precision}")
    return [f"not run: {engine}, {', '.join(which)}: {reason}" for (engine, reason), which in cells.items()]
