"""``charlm eval surprisal``: which characters, words and lines of a text a model did not expect."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli.console import has_colour, notice, out, progress_bar, results, styled, table, visible_word
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
from charlm.cli.evaluate.marked_text import (
    LINE_END,
    columns_of,
    cut,
    listed,
    percent,
    quoted,
    show_marked,
    shown_names,
    shown_symbols,
)
from charlm.cli.evaluate.surprisal_sums import By
from charlm.cli.options import MAX_LENGTH, unknown_note
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.data.vocabulary import Vocabulary
    from charlm.evaluation.surprisal import Span, Surprisal
    from charlm.evaluation.texts import EvaluationText

_SHOWN, _ON_PAGE = 1000, 20_000
_LEVELS = ("", "on color(230)", "on color(222)", "on color(215)", "on color(208)", "on color(202)", "on color(196)")
"""Backgrounds for surprisals from 1, 2, … bits; the text on them is black."""


def surprisal(
    checkpoint: CheckpointArgument,
    file: FileArgument = None,
    split: SplitOption = None,
    characters: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_LENGTH, help="How much of the text to show.", show_default="1000; 0 with --worst; 20000 in a page"
        ),
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", min=0, max=1_000_000, help="List the N most surprising lines.")] = 0,
    by: Annotated[
        By | None,
        typer.Option(
            metavar="|".join(By),
            help="Units that --worst and --tsv list.",
            show_default="line for --worst, character for --tsv",
        ),
    ] = None,
    tsv: Annotated[str | None, typer.Option(metavar="FILE", help="Write a table for other programs; -: to stdout.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page that shows alternatives on hover.")] = None,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show how surprising each character is, and what was likelier.

    Surprisal is −log2 of a character's probability, in bits.

    Examples:
        charlm eval surprisal shakespeare --characters 300
        charlm eval surprisal mine chapter.txt --worst 10
        charlm eval surprisal mine chapter.txt --html chapter.html
    """
    if as_json and tsv == "-":
        raise UsageError("--json and --tsv - both write to stdout; give --tsv a file")
    from charlm.cli.evaluate.surprisal_files import LongLists, Page, Sink, Table, check_table_path
    from charlm.cli.evaluate.surprisal_sums import Reading
    from charlm.config import path_of
    from charlm.evaluation.surprisal import surprisal_parts
    from charlm.html.page import check_page_path
    from charlm.loaded import load

    page_path = None if html is None else path_of(html)
    table_path = None if tsv in (None, "-") else path_of(tsv)
    if page_path is not None:
        check_page_path(page_path)
    if table_path is not None:
        check_table_path(table_path)
    opened = load(checkpoint, device, engine=engine or "auto")
    evaluated = read_evaluated(opened, file, split)
    vocabulary = opened.vocabulary
    shown = characters if characters is not None else 0 if worst else _SHOWN
    reading = Reading(evaluated, vocabulary, worst, by or By.line)
    beginning: list[Surprisal] = []
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if tsv is not None:
            sinks.append(Table(stack, table_path, by or By.character, reading))
        if page_path is not None:
            sinks.append(Page(stack, page_path, evaluated, vocabulary, _ON_PAGE if characters is None else characters))
        if as_json:
            sinks.append(LongLists(stack, reading))
        with progress_bar("reading", unit="characters") as advance:
            for part in surprisal_parts(opened.network, evaluated.text, progress=advance):
                reading.add(part)
                for sink in sinks:
                    sink.add(part)
                if part.start <= shown and not as_json:
                    beginning.append(part)
        reading.close()
        record = {**reading.record(), **evaluated.describe(), "precision": "fp32", **describe_model(opened)}
        for sink in sinks:
            sink.close(record)
    if as_json or tsv == "-":
        return
    if shown and not sinks:
        _show(beginning, evaluated, vocabulary, shown)
    for entry, span in zip(record["worst"], reading.worst(), strict=True):
        _show_span(entry, span, evaluated, vocabulary)
    _summary(record, vocabulary.unit)


# --------------------------------------------------------------------------------------------------------------------
# The terminal
# --------------------------------------------------------------------------------------------------------------------


def _show(parts: list[Surprisal], evaluated: EvaluationText, vocabulary: Vocabulary, limit: int) -> None:
    """The beginning of the text with its surprisals, and the alternatives at its most surprising places."""
    import numpy as np

    limit = min(limit, len(evaluated.text))
    symbols = shown_symbols(evaluated, 0, limit, vocabulary.unit)
    nats = np.concatenate([part.nats for part in parts])[: limit - 1]
    bits = [0.0, *(nats / math.log(2)).tolist()]
    marks = [" " if value < 3 else str(min(9, int(value))) for value in bits]
    styles = [f"black {level}" if (level := _LEVELS[min(len(_LEVELS) - 1, int(value))]) else "" for value in bits]
    show_marked(symbols, [("", marks)], styles)
    if has_colour():
        scale = [(f" {number} ", f"black {level}") for number, level in enumerate(_LEVELS) if level]
        styled([("bits, 6 and more in the last colour: ", ""), *scale])
    else:
        out("the digits below the text: bits, from 3; 9: 9 or more")
    names = shown_names(vocabulary)
    alternatives, probabilities = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("alternatives", "probabilities")
    )
    rows = [
        [
            f"{bits[at + 1]:.1f}",
            "".join(symbols[max(0, at - 8) : at + 1]),
            quoted(symbols[at + 1]),
            listed(names, alternatives[at].tolist(), probabilities[at].tolist()),
        ]
        for at in np.argsort(-nats, kind="stable")[:5].tolist()
    ]
    if rows:
        table(None, ["bits", "after …", "came", "instead"], rows)


def _show_span(entry: dict[str, Any], span: Span, evaluated: EvaluationText, vocabulary: Vocabulary) -> None:
    """A surprising line, word or character: its sums, the text around its worst place, and what was expected there."""
    per_character = "" if entry["bits_per_character"] is None else f", {entry['bits_per_character']:.2f} per character"
    out(f"line {entry['line']}, column {entry['column']}: {entry['nats'] / math.log(2):.1f} bits{per_character}")
    worst = span.start if span.worst is None else span.worst
    line_start = span.start - entry["column"] + 1
    first = line_start if worst - line_start < 60 else worst - 40
    symbols = shown_symbols(evaluated, first, min(len(evaluated.text), first + 80), vocabulary.unit)
    symbols = symbols[: symbols.index(LINE_END) + 1] if LINE_END in symbols else symbols
    dots = "…" * (first > line_start)
    before = columns_of(dots + "".join(symbols[: worst - first]))
    fits = symbols[: cut(symbols, 79 - len(dots))]
    is_whole = len(fits) == len(symbols) and (symbols[-1] == LINE_END or first + len(symbols) == len(evaluated.text))
    out(f"{dots}{''.join(fits)}{'' if is_whole else '…'}")
    if entry["place"] is not None and worst - first < len(fits):
        alternative = shown_names(vocabulary)[span.alternative]
        instead = f"{alternative} {percent(span.probability)}"
        told = f"{quoted(symbols[worst - first])} {span.worst_nats / math.log(2):.1f} bits; instead: {instead}"
        out(f"{' ' * before}^ {told}" if before < 40 else f"{told:>{before - 1}} ^")


def _summary(record: dict[str, Any], unit: str) -> None:
    kind = "byte" if unit == "byte" else "character"
    where = f"{record['split']} part of {record['text']}" if record["split"] else record["text"]
    note = unknown_note(record["unknown_characters"] / record["characters"])
    bits = record["total_nats"] / math.log(2)
    lines = [
        ("bits in all", f"{bits:,.1f}{note}"),
        (f"bits per {kind}", f"{record['bits_per_character']:.6f}"),
        ("bits per line", f"{bits / record['lines']:.1f} ({record['lines']:,} lines)"),
    ]
    if record["words"]:
        lines.append(("bits per word", f"{record['nats_per_word'] / math.log(2):.1f} ({record['words']:,} words)"))
    lines.append(("scored", f"{record['characters']:,} of {visible_word(where)}"))
    results(lines)
    notice(f"engine {record['engine']}, {record['device']}")
