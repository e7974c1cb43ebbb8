"""``charlm eval probes``: long-range tests of one model, or of several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli.console import json_line, notice, out, progress_bar, table
from charlm.cli.evaluate.arguments import (
    CheckpointArgument,
    DeviceOption,
    EngineOption,
    FileArgument,
    JsonOption,
    SplitOption,
    describe_model,
    read_evaluated,
)
from charlm.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from charlm.evaluation.probes import Probe, Probes


def probes(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    others: Annotated[
        list[str] | None, typer.Option("--and", metavar="CHECKPOINT", help="Another model, side by side; repeatable.")
    ] = None,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Test how far back a model remembers.

    Tests agreement, and the closing of quotes, brackets, environments and indentation.

    Examples:
        charlm eval probes shakespeare
        charlm eval probes mine-lstm --and mine-gru
    """
    if others and file == "-":
        raise UsageError("standard input can be read once only; save it to a file to ask several models")

    from charlm.evaluation.probes import probes as ask
    from charlm.loaded import load

    answers: list[Probes] = []
    records: list[dict[str, Any]] = []
    paths: list[Path] = []
    for name in [checkpoint, *(others or [])]:
        opened = load(name, device, engine=engine or "auto")
        evaluated = read_evaluated(opened, file, split)
        with progress_bar("reading", unit="characters") as advance:
            answers.append(ask(opened.network, opened.vocabulary, evaluated.text, evaluated.symbols, progress=advance))
        records.append({**_describe(answers[-1]), **evaluated.describe(), **describe_model(opened)})
        paths.append(opened.path)
    if as_json:
        json_line({"checkpoints": records})
        return
    for record in records[1:]:
        if (record["sha256"], record["offsets"]) != (records[0]["sha256"], records[0]["offsets"]):
            notice(f"{record['checkpoint']} reads another text than the first model; name a FILE to ask both about the same")
    _print(_labels(paths), answers)


def _describe(found: Probes) -> dict[str, Any]:
    def numbers(part: Any) -> dict[str, Any]:
        return {"count": part.count, "accuracy": part.accuracy, "chance": part.chance}

    return {
        "probes": {
            probe.name: {
                **numbers(probe),
                "distances": [{"start": one.start, "stop": one.stop, **numbers(one)} for one in probe.bins],
            }
            for probe in found.probes
        },
        "left_out": found.left_out,
        "characters": found.characters,
    }


def _labels(paths: list[Path]) -> list[str]:
    """The names of the runs, or the full paths if two of them have the same name."""
    names = [path.parent.name or path.stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _print(labels: list[str], answers: list[Probes]) -> None:
    known = [{probe.name: probe for probe in found.probes} for found in answers]
    names = list(dict.fromkeys(name for probes in known for name in probes))
    for name in names:
        asked = [probes.get(name) for probes in known]
        table(name, ["distance", "places", "chance", *labels], _rows([probe for probe in asked if probe], asked))
    counts = [[probe.count if probe else 0 for probe in (probes.get(name) for probes in known)] for name in names]
    if any(len(set(row)) > 1 for row in counts):
        notice("places and chance are those of the first model that has the probe; the models differ in their vocabularies")
    reasons: dict[tuple[str, str], list[str]] = {}
    for label, found in zip(labels, answers, strict=True):
        for name, reason in found.left_out.items():
            reasons.setdefault((name, reason), []).append(label)
    for (name, reason), without in reasons.items():
        models = f" ({', '.join(without)})" if len(without) < len(labels) else ""
        notice(f"left out: {name}{models}: {reason}")
    if not names:
        out("no probe can be asked here")


def _rows(present: list[Probe], asked: list[Probe | None]) -> list[list[str]]:
    rows = []
    for start in sorted({one.start for probe in present for one in probe.bins}):
        here = [next((one for one in probe.bins if one.start == start), None) if probe else None for probe in asked]
        first = next(one for one in here if one is not None)
        distance = f"{first.start}–{first.stop - 1}" if first.stop else f"{first.start} and more"
        rows.append(
            [distance, f"{first.count:,}", f"{first.chance:.2f}", *(f"{one.accuracy:.2f}" if one else "–" for one in here)]
        )
    first_probe = present[0]
    totals = [f"{probe.accuracy:.2f}" if probe else "–" for probe in asked]
    return [*rows, ["all", f"{first_probe.count:,}", f"{first_probe.chance:.2f}", *totals]]
