"""``charlm eval perplexity``: the exact perplexity of a model on a text."""

from __future__ import annotations

import math
import time
from typing import Annotated, Any

import typer

from charlm.cli.console import json_line, notice, out, progress_bar, results, visible_word
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
from charlm.cli.options import MAX_LENGTH, Split, unknown_note
from charlm.errors import UsageError
from charlm.evaluation.limits import CHUNK


def perplexity(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    context: Annotated[
        str,
        typer.Option(
            metavar="carried|reset:N",
            help="carried: one stream from the first to the last character; reset:N: windows of N.",
            rich_help_panel="Measurement",
        ),
    ] = "carried",
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic", help="Train a copy of the model on the scored text while evaluating.", rich_help_panel="Measurement"
        ),
    ] = False,
    dynamic_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            help="Learning rate of --dynamic.",
            show_default="0.1, one step per 32 characters",
            rich_help_panel="Measurement",
        ),
    ] = None,
    chunk: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_LENGTH, help="Characters per call; 0: all. Affects only speed.", rich_help_panel="Computation"
        ),
    ] = CHUNK,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Also measure an n-gram, gzip, bz2 and xz after the same training text.",
            rich_help_panel="Measurement",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the exact perplexity of a text.

    Arithmetic is fp32. Every character but the first is scored once; sums are in float64. A model trained with
    data.records reads each record from a zero state, and the separator after it is scored.

    Examples:
        charlm eval perplexity shakespeare
        charlm eval perplexity shakespeare --split test --baselines
        charlm eval perplexity mine other.txt --json
    """
    window = _window(context)
    if dynamic_rate is not None and not dynamic:
        raise UsageError("--dynamic-rate works only with --dynamic")
    if dynamic_rate is not None and not math.isfinite(dynamic_rate):
        raise UsageError(f"--dynamic-rate {dynamic_rate:g}: expected a finite number")
    if dynamic and window is not None:
        raise UsageError("--dynamic reads the text as one stream; remove --context reset")
    if dynamic and chunk != CHUNK:
        raise UsageError("--dynamic reads 32 characters at a time; remove --chunk")

    from charlm.evaluation import perplexity as measure
    from charlm.evaluation.baselines import TEXT_CHARACTERS, measure_baselines
    from charlm.evaluation.dynamic import RATE, SEGMENT
    from charlm.evaluation.dynamic import dynamic as learning
    from charlm.evaluation.texts import training_corpus
    from charlm.loaded import load

    opened = load(checkpoint, device, engine=engine or "auto")
    if baselines and split is Split.train:
        raise UsageError(
            "--baselines: an n-gram and a compressor already know the training text; choose --split validation or test, "
            "or a FILE"
        )
    if opened.record_form is not None:
        if window is not None:
            raise UsageError("--context reset: this model was trained with data.records; each record is read from a zero state")
        context = "records"
    evaluated = read_evaluated(opened, file, split)
    text = evaluated.text
    corpus = None
    if baselines:
        corpus = evaluated.corpus or training_corpus(opened.checkpoint, opened.path, "baselines")
        if len(text) > TEXT_CHARACTERS:
            raise UsageError(f"--baselines: the text has {len(text):,} characters; at most {TEXT_CHARACTERS:,} fit into memory")
    model, vocabulary = opened.network, opened.vocabulary
    unknown_id = vocabulary.unknown_id
    began = time.perf_counter()
    with progress_bar("evaluating", unit="characters") as advance:
        if dynamic:
            rate = RATE if dynamic_rate is None else dynamic_rate
            score = learning(model, text, rate=rate, unknown_id=unknown_id, progress=advance)
        elif window is None:
            score = measure.carried(model, text, chunk=chunk, unknown_id=unknown_id, progress=advance)
        else:
            score = measure.reset(model, text, window=window, unknown_id=unknown_id, progress=advance)
    seconds = time.perf_counter() - began
    record: dict[str, Any] = {
        "perplexity": score.perplexity,
        "nats_per_character": score.nats_per_character,
        "bits_per_character": score.bits_per_character,
        "characters": score.characters,
        "unknown_characters": score.unknown_characters,
        "unknown_nats": score.unknown_characters * vocabulary.unknown_nats,
        "context": context,
        "dynamic": {"rate": rate, "segment": SEGMENT} if dynamic else None,
        **evaluated.describe(),
        "characters_per_second": score.characters / seconds,
        "seconds": seconds,
        "precision": "fp32",
        **describe_model(opened),
    }
    if corpus is not None:
        with progress_bar("comparing", unit="methods") as advance:
            record["baselines"] = measure_baselines(corpus, evaluated, advance)
    if as_json:
        json_line(record)
    else:
        _print(record, vocabulary.unit)


def _window(context: str) -> int | None:
    if context == "carried":
        return None
    kind, _, number = context.partition(":")
    if kind == "reset" and number.isascii() and number.isdigit() and len(number) <= 12 and int(number) > 0:
        return int(number)
    raise UsageError(f"--context {context}: expected carried or reset:N, such as reset:256 (at most 12 digits)")


def _print(record: dict[str, Any], unit: str) -> None:
    kind = "byte" if unit == "byte" else "character"
    where = f"{record['split']} part of {record['text']}" if record["split"] else record["text"]
    start, stop = record["offsets"]
    unknown = record["unknown_characters"] / record["characters"]
    lines = [
        ("perplexity", f"{record['perplexity']:.6f}{unknown_note(unknown)}"),
        (f"nats per {kind}", f"{record['nats_per_character']:.6f}"),
        (f"bits per {kind}", f"{record['bits_per_character']:.6f}"),
        ("scored", f"{record['characters']:,} of {visible_word(where)}, {start:,}–{stop:,}, context {record['context']}"),
    ]
    if record["dynamic"]:
        rate, segment = record["dynamic"]["rate"], record["dynamic"]["segment"]
        lines.append(
            ("dynamic", f"trained on the scored text, learning rate {rate:g}, one step per {segment} characters")
        )  # fmt: skip
    lines.append(("sha256", record["sha256"]))
    if record["unknown_characters"]:
        nats = record["unknown_nats"]
        bits = nats / math.log(2) / record["characters"]
        lines.append(
            ("unknown", f"{record['unknown_characters']:,} scored as <unk>; coding them would cost {nats:,.1f} nats more, "
                        f"{bits:.4f} bits per {kind}")
        )  # fmt: skip
    results(lines)
    if "baselines" in record:
        from charlm.evaluation.baselines import COMPRESSIBLE

        found = record["baselines"]
        out(f"baselines             bits per {kind}, after {found['training_characters']:,} of training text")
        out(f"  n-gram              {found['ngram']:.6f}, order {found['ngram_order']}")
        for name in ("gzip", "bz2", "xz"):
            out(f"  {name:<19} {found[name]:.6f}")
        if record["characters"] < COMPRESSIBLE:
            notice("text too short for compressor baselines: compressors write whole bytes and blocks")
    notice(f"{record['characters_per_second']:,.0f} characters/s, engine {record['engine']}, {record['device']}")
