"""``charlm sample``: generate text with a model."""

from __future__ import annotations

import base64
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli.console import json_line, notice, table, visible_word
from charlm.cli.drawn import show_pieces, write_pieces
from charlm.cli.evaluate.arguments import CheckpointArgument
from charlm.cli.options import MAX_LENGTH, MAX_SEED, Precision, Unknown, read_text, unescaped
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.data.vocabulary import Vocabulary
    from charlm.model.language_model import LanguageModel
    from charlm.sampling import SamplingParams

_GROUP, _GROUP_CHARACTERS = 1024, 1_000_000
"""Maximum number of samples that are drawn in parallel, and of their characters in memory."""

_JSON_CHARACTERS = 100_000_000
"""Maximum number of characters that ``--json`` holds in memory."""


def sample(
    checkpoint: CheckpointArgument,
    prompt: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Text to continue; @FILE reads a file, - standard input.", rich_help_panel="Text"),
    ] = "",
    escape: Annotated[
        bool,
        typer.Option("--escape", help=r"Read \n, \t and \\ in --prompt as newline, tab and \.", rich_help_panel="Text"),
    ] = False,
    length: Annotated[
        int, typer.Option(min=0, max=MAX_LENGTH, help="New characters; 0: until stopped.", rich_help_panel="Text")
    ] = 500,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Below 1: safer; above 1: more random; 0: always the most likely.",
            show_default="0.8; 1 for --probabilities",
            rich_help_panel="Drawing",
        ),
    ] = None,
    top_k: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_LENGTH, help="Draw only from the K most likely characters; 0: all.", rich_help_panel="Drawing"
        ),
    ] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw only from the most likely characters that together reach P.", rich_help_panel="Drawing")
    ] = 1.0,
    num: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="Number of samples.", rich_help_panel="Text")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, help="Same seed, same text.", show_default="drawn", rich_help_panel="Drawing"),
    ] = None,
    stop: Annotated[str, typer.Option(metavar="TEXT", help="Stop before this text.", rich_help_panel="Text")] = "",
    ban: Annotated[
        str, typer.Option(metavar="CHARACTERS", help="Characters that are never drawn.", rich_help_panel="Drawing")
    ] = "",
    unknown: Annotated[
        Unknown,
        typer.Option(
            metavar="error|skip|map", help="Treatment of prompt characters outside the vocabulary.", rich_help_panel="Text"
        ),
    ] = Unknown.error,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="List the most likely next characters instead of drawing.", rich_help_panel="Output"
        ),
    ] = False,
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="fp32|bf16",
            help="bf16 is faster on CPUs that support it, and gives another text.",
            rich_help_panel="Computation",
        ),
    ] = Precision.fp32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Computation")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line instead of text.", rich_help_panel="Output")] = False,
) -> None:
    """Generate text. Only new characters are written to stdout, exactly as drawn; a terminal also shows the prompt.

    A model trained with data.records ends a sample where its record ends.

    Examples:
        charlm sample shakespeare --prompt "ROMEO:" --temperature 0.7
        charlm sample checkpoints/mine --num 3 --length 200 --seed 1
        charlm sample shakespeare --prompt "To be, or " --probabilities
    """
    text = unescaped(read_text(prompt)) if escape else read_text(prompt)
    from charlm.data.vocabulary import utf8_bytes

    end = utf8_bytes(stop, "--stop")
    if as_json and num * length > _JSON_CHARACTERS and not probabilities:
        raise _too_long(f"{num:,} × {length:,}")

    from charlm.loaded import load
    from charlm.sampling import SamplingParams, next_characters, truncate_at_stop

    opened = load(checkpoint, device)
    if length == 0 and not stop and opened.record_form is None and (as_json or num > 1) and not probabilities:
        raise UsageError("--length 0 without --stop never ends; it works only with one sample and without --json")
    network, vocabulary = opened.network, opened.vocabulary
    text = opened.as_prompt(text)
    ids = _encode(text, vocabulary, unknown)
    banned = frozenset(vocabulary.encode(ban, "skip"))
    if temperature is None:
        temperature = 1.0 if probabilities else 0.8
    params = SamplingParams(temperature, top_k, top_p, banned)
    if precision.value not in network.engine.sampling_precisions:
        raise UsageError("--precision bf16: only the native engine samples in bf16, and it cannot run this model here")
    if probabilities:
        _show_probabilities(next_characters(network, vocabulary, ids, params), as_json)
        return
    if seed is None:
        seed = secrets.randbelow(2**31)
        if temperature > 0:
            notice(f"seed {seed}")

    drawn: Iterator[Iterable[int]] = _samples(network, vocabulary, ids, params, seed, num, length, precision.value)
    if as_json:
        drawn = _limited(drawn)
    samples = (truncate_at_stop((vocabulary.bytes_of(index) for index in one), end) for one in drawn)
    if as_json:
        collected = [_joined(pieces) for pieces in samples]
        record = {
            "prompt": text,
            "seed": seed,
            "temperature": temperature,
            "samples": [one.decode("utf-8", "replace") for one in collected],
        }
        if vocabulary.unit == "byte":  # not always valid UTF-8
            record["samples_base64"] = [base64.b64encode(one).decode("ascii") for one in collected]
        json_line(record)
        return
    form = opened.record_form
    for number, pieces in enumerate(samples):
        if sys.stdout.isatty():
            if num > 1:
                notice(f"── sample {number + 1} of {num} ──")
            show_pieces(text, pieces)
        else:
            write_pieces([b"\n"] if number and form is None else [])
            write_pieces(pieces)
            write_pieces([form.written.encode()] if form is not None and num > 1 else [])
    sys.stdout.flush()


def _encode(text: str, vocabulary: Vocabulary, unknown: Unknown) -> list[int]:
    try:
        return vocabulary.encode(text, unknown.value)
    except UsageError as error:
        refused = UsageError(f"{error}; use --unknown skip (leave them out) or --unknown map (read them as <unk>)")
        escapes = re.search(r"\\[nt]", text)
        if escapes is None or vocabulary.id_of(ord("\\")) is not None:
            raise refused from None
        quoted = visible_word(text).replace("'", "\\'")
        raise UsageError(
            f"{refused}\n{escapes[0]} was read as two characters. For a newline or a tab write (bash, zsh): "
            f"--prompt $'{quoted}', or add --escape"
        ) from None


def _samples(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: list[int],
    params: SamplingParams,
    seed: int,
    num: int,
    length: int,
    precision: str,
) -> Iterator[Iterable[int]]:
    """The ids of each sample. Short samples are drawn in parallel, in growing groups, so that the first appear at once.

    Args:
        length: characters of each; 0: without end.
    """
    from charlm.sampling import generate, generate_parallel, until_separator

    in_parallel = model.samples_in_parallel
    most = min(_GROUP, _GROUP_CHARACTERS // length) if in_parallel and length else 1
    start, size = 0, 1
    while start < num:
        size = min(size, num - start)
        if size == 1:
            ids = generate(model, vocabulary, prompt, params, seed, start, precision)
            yield islice(ids, length) if length else ids
        else:
            numbers = range(start, start + size)
            rows = islice(generate_parallel(model, vocabulary, prompt, params, seed, numbers, precision), length)
            yield from (until_separator(one, vocabulary) for one in zip(*rows, strict=True))
        start, size = start + size, max(1, min(4 * size, most))


def _limited(samples: Iterable[Iterable[int]]) -> Iterator[Iterator[int]]:
    """The same samples, with a limit on their characters in memory.

    Raises:
        UsageError: more characters were drawn (their number is unknown in advance if ``--stop`` ends the samples).
    """
    left = _JSON_CHARACTERS

    def counted(ids: Iterable[int]) -> Iterator[int]:
        nonlocal left
        for index in ids:
            left -= 1
            if left < 0:
                raise _too_long(f"more than {_JSON_CHARACTERS:,}")
            yield index

    return (counted(ids) for ids in samples)


def _joined(pieces: Iterable[bytes]) -> bytes:
    joined = bytearray()  # a list of all pieces would take many times the memory
    for piece in pieces:
        joined += piece
    return bytes(joined)


def _too_long(characters: str) -> UsageError:
    return UsageError(
        f"--json holds all samples in memory, at most {_JSON_CHARACTERS:,} characters, and these are {characters}; "
        "without --json they are written while they are drawn"
    )


def _show_probabilities(probabilities: dict[str, float], as_json: bool) -> None:
    import math

    rows = [(name, p) for name, p in probabilities.items() if p > 0]
    if as_json:
        json_line({"next": [{"character": name, "probability": p} for name, p in rows]})
        return
    shown = [(_named(name), f"{p:.4f}", f"{-math.log2(p):.2f}") for name, p in rows[:20]]
    table(None, ["next", "probability", "bits"], shown)


def _named(symbol: str) -> str:
    return {" ": "space", "\n": "newline", "\t": "tab"}.get(symbol, symbol)
