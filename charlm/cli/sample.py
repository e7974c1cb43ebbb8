"""``charlm sample``: write text with a model."""

from __future__ import annotations

import codecs
import json
import secrets
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli.console import notice, out, show_dimmed, table, visible
from charlm.cli.options import MAX_LENGTH, MAX_SEED, Precision, Unknown, read_text
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.data.vocabulary import Vocabulary

_DRAWN_TOGETHER = 10_000_000
"""Characters that several samples may keep in memory; beyond, they are drawn one after the other."""


def sample(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's file, a run's folder (its best), or a run's name.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; @FILE reads a file, - standard input.")] = "",
    length: Annotated[int, typer.Option(min=0, max=MAX_LENGTH, help="New characters; 0: until stopped.")] = 500,
    temperature: Annotated[
        float | None,
        typer.Option(help="Below 1 safer, above 1 wilder; 0: always the likeliest.", show_default="0.8; 1 for --probabilities"),
    ] = None,
    top_k: Annotated[int, typer.Option(min=0, max=MAX_LENGTH, help="Draw only from the K likeliest; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw only from the likeliest that together reach P.")] = 1.0,
    num: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="How many samples.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Makes it repeatable.", show_default="drawn")] = None,
    stop: Annotated[str, typer.Option(help="Stop when this text appears; it is not written.")] = "",
    ban: Annotated[str, typer.Option(metavar="CHARACTERS", help="Characters that are never drawn.")] = "",
    unknown: Annotated[Unknown, typer.Option(help="Prompt characters outside the vocabulary.")] = Unknown.error,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="List the likeliest next characters instead of drawing.")
    ] = False,
    precision: Annotated[
        Precision, typer.Option(help="bf16 is faster on a CPU that has it, and writes another text.")
    ] = Precision.fp32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line instead of text.")] = False,
) -> None:
    """Write text. Only new characters go to stdout, exactly as drawn; on a terminal the prompt is shown before them."""
    text = read_text(prompt)
    from charlm.data.vocabulary import utf8

    end = utf8(stop, "--stop")
    if length == 0 and not stop and (as_json or num > 1) and not probabilities:
        raise UsageError("--length 0 without --stop writes without end; it goes with one sample and without --json")

    from charlm.checkpoint import find_checkpoint, load
    from charlm.runtime import prepare, resolve_device
    from charlm.sampling import SamplingParams, generate, generate_together, until

    stored = load(find_checkpoint(checkpoint))
    vocabulary = stored.vocabulary
    prepare(None)
    ids = vocabulary.encode(text, unknown.value)
    banned = frozenset(vocabulary.encode(ban, "skip"))
    if temperature is None:
        temperature = 1.0 if probabilities else 0.8
    params = SamplingParams(temperature, top_k, top_p, banned)
    model = stored.model(resolve_device(device))
    if precision is Precision.bf16 and model.engine.name != "native":
        raise UsageError("--precision bf16: only the native engine samples in bf16, and it cannot be used here")
    if probabilities:
        from charlm.sampling import distribution, read, start_ids

        logits, _ = read(model, ids or start_ids(vocabulary))  # <unk> is listed: it is part of what the model expects
        _show_probabilities([float(p) for p in distribution(logits, params)], vocabulary, as_json)
        return
    if seed is None:
        seed = secrets.randbelow(2**31)
        if temperature > 0:
            notice(f"seed {seed}")

    together: list[list[int]] = []
    if num > 1 and 0 < num * length <= _DRAWN_TOGETHER and model.engine.name == "native":  # which draws them side by side
        together = list(islice(generate_together(model, vocabulary, ids, params, seed, range(num), precision.value), length))

    def pieces(number: int) -> Iterator[bytes]:
        drawn: Iterator[int] = generate(model, vocabulary, ids, params, seed, number, precision.value)
        if together:
            drawn = (row[number] for row in together)
        endless = (_bytes_of(index, vocabulary) for index in drawn)
        return until(islice(endless, length) if length else endless, end)

    if as_json:
        texts = [b"".join(pieces(number)).decode("utf-8", "replace") for number in range(num)]
        out(json.dumps({"prompt": text, "seed": seed, "temperature": temperature, "samples": texts}, ensure_ascii=False))
        return
    for number in range(num):
        if number:
            _write([b"\n"])
        if num > 1 and sys.stdout.isatty():
            notice(f"── sample {number + 1} of {num} ──")
        if text and sys.stdout.isatty():
            show_dimmed(text)
        _write(pieces(number))


def _bytes_of(index: int, vocabulary: Vocabulary) -> bytes:
    symbol = vocabulary.symbol_of(index)
    assert symbol is not None  # <unk> is never drawn
    return bytes([symbol]) if vocabulary.unit == "byte" else chr(symbol).encode()


def _write(pieces: Iterator[bytes] | list[bytes]) -> None:
    """Exact bytes into a file or pipe; on a terminal each character as it comes, with control characters visible."""
    if not sys.stdout.isatty():
        sys.stdout.flush()
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        sys.stdout.write(visible(decoder.decode(piece)))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _show_probabilities(probabilities: list[float], vocabulary: Vocabulary, as_json: bool) -> None:
    import math

    order = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
    rows = [(vocabulary.shown(index), probabilities[index]) for index in order if probabilities[index] > 0]
    if as_json:
        out(json.dumps({"next": [{"character": name, "probability": p} for name, p in rows]}, ensure_ascii=False))
        return
    shown = [(_named(name), f"{p:.4f}", f"{-math.log2(p):.2f}") for name, p in rows[:20]]
    table(None, ["next", "probability", "bits"], shown)


def _named(symbol: str) -> str:
    return {" ": "space", "\n": "newline", "\t": "tab"}.get(symbol, symbol)
