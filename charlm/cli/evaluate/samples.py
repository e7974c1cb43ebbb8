"""``charlm eval samples``: whether samples are copied from the training text, and whether they are well formed."""

from __future__ import annotations

import secrets
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli.console import json_line, notice, progress_bar, table, visible_word
from charlm.cli.evaluate.arguments import (
    CheckpointArgument,
    DeviceOption,
    EngineOption,
    JsonOption,
    SplitOption,
    describe_model,
    read_evaluated,
)
from charlm.cli.options import MAX_SEED, Split
from charlm.errors import CharlmError, UsageError
from charlm.evaluation.limits import JUDGED_CHARACTERS

if TYPE_CHECKING:
    from charlm.data.symbols import CodePoints, Symbols
    from charlm.evaluation.samples import Novelty, Quality
    from charlm.evaluation.texts import EvaluationText
    from charlm.loaded import Model

_SHOWN = 5


def samples(
    checkpoint: CheckpointArgument,
    file: Annotated[
        str | None,
        typer.Argument(help="A held-out text to compare with, or - for standard input.", show_default="the corpus's"),
    ] = None,
    split: SplitOption = None,
    num: Annotated[int | None, typer.Option(min=1, max=10_000, help="How many samples to draw.", show_default="10")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, max=JUDGED_CHARACTERS, help="Characters per sample.", show_default="1000")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="As in charlm sample.", show_default="0.8")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Makes it repeatable.", show_default="drawn")] = None,
    judged: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="Judge this text instead of drawing samples.")
    ] = None,
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Test whether samples are copied, and well formed.

    Compares samples with the training text, beside held-out text of the same length.

    Examples:
        charlm eval samples shakespeare --num 20
        charlm eval samples mine --file samples.txt
    """
    given = {"--num": num, "--length": length, "--temperature": temperature, "--seed": seed}
    if judged is not None and (also := [flag for flag, value in given.items() if value is not None]):
        raise UsageError(f"{also[0]} is for drawing; --file judges a text that is there")
    if split is Split.train:
        raise UsageError("--split train: the training text is what samples are compared with; choose validation or test")
    num, length, temperature = num or 10, length or 1000, 0.8 if temperature is None else temperature
    if num * length > JUDGED_CHARACTERS:
        raise UsageError(
            f"{num:,} × {length:,} characters are too many; at most {JUDGED_CHARACTERS:,} together (--num, --length)"
        )

    from charlm.data.symbols import to_text
    from charlm.evaluation.samples import draw, novelty
    from charlm.evaluation.texts import read_file, training_corpus
    from charlm.loaded import load
    from charlm.sampling import SamplingParams

    opened = load(checkpoint, device, engine=engine or "auto")
    corpus = training_corpus(opened.checkpoint, opened.path)
    training = corpus.encoded.symbols(*corpus.splits["train"])
    heldout = _heldout(opened, file, split)
    record: dict[str, Any] = {"seed": None, "temperature": None, "file": judged}
    if judged is None:
        seed = secrets.randbelow(2**31) if seed is None else seed
        record |= {"seed": seed, "temperature": temperature}
        with progress_bar("drawing", unit="characters") as advance:
            drawn = draw(opened.network, opened.vocabulary, SamplingParams(temperature), seed, num, length, advance)
    else:
        drawn = [_whole(read_file(opened.checkpoint, judged))]
    other = None if heldout is None else heldout.symbols
    with progress_bar("comparing", unit="characters") as advance:
        found = novelty(drawn, training, other, opened.vocabulary.unit, progress=advance)
    if as_json:
        about = heldout.describe() if heldout is not None else None
        json_line(
            {**_describe(found), "texts": [*map(to_text, drawn)], "heldout_text": about, **record, **describe_model(opened)}
        )
    else:
        _print(found, drawn, training)
        if judged is None:
            most = "at most " if opened.record_form is not None else ""
            notice(f"{num} samples of {most}{length:,} characters, temperature {temperature:g}, seed {seed}")


def _heldout(opened: Model, file: str | None, split: Split | None) -> EvaluationText | None:
    """The text to compare with; none if the recipe holds none out and none is named."""
    try:
        return read_evaluated(opened, file, split)
    except CharlmError as error:
        if file is not None or split is not None:
            raise
        notice(f"no held-out text to compare with ({error})")
        return None


def _whole(evaluated: EvaluationText) -> CodePoints:
    symbols = evaluated.symbols
    if len(symbols) > JUDGED_CHARACTERS:
        raise UsageError(f"{evaluated.name} has {len(symbols):,} characters; at most {JUDGED_CHARACTERS:,} are judged (--file)")
    return symbols.read(0, len(symbols))


def _describe(found: Novelty) -> dict[str, Any]:
    return {
        "samples": _quality(found.samples),
        "heldout": _quality(found.heldout) if found.heldout is not None else None,
        "training_characters": found.training_characters,
    }


def _quality(quality: Quality) -> dict[str, Any]:
    return {
        "characters": quality.characters,
        "longest": max(match.length for match in quality.matches),
        "median_longest": median(match.length for match in quality.matches),
        "matches": [vars(match) for match in quality.matches],
        "new": {str(n): share for n, share in quality.new.items()},
        "brackets": quality.brackets,
        "environments": quality.environments,
        "python": quality.python,
        "words": quality.words,
    }


def _print(found: Novelty, drawn: list[CodePoints], training: Symbols) -> None:
    columns = [found.samples] + ([found.heldout] if found.heldout is not None else [])
    numbers = [_quality(quality) for quality in columns]
    rows = [
        ["longest match", *(f"{row['longest']:,}" for row in numbers)],
        ["median of longest", *(f"{row['median_longest']:,.0f}" for row in numbers)],
        *([f"new {n}-grams", *(_percent(quality.new[n]) for quality in columns)] for n in found.samples.new),
        ["brackets in pairs", *(_percent(quality.brackets) for quality in columns)],
        ["environments in pairs", *(_percent(quality.environments) for quality in columns)],
        ["functions that parse", *(_percent(quality.python) for quality in columns)],
        ["known words", *(_percent(quality.words) for quality in columns)],
    ]
    table(None, ["", "samples", "held-out"][: 1 + len(columns)], [row for row in rows if set(row[1:]) != {"–"}])
    longest = sorted(found.samples.matches, key=lambda match: -match.length)[:_SHOWN]
    shown = []
    for match in longest:
        copied = visible_word(training.characters(match.place, match.place + match.length)) if match.length else ""
        text = copied if len(copied) <= 36 else f"{copied[:22]} … {copied[-11:]}"
        place = f"{match.place:,}" if match.length else "–"
        shown.append([str(match.sample + 1), f"{match.length:,}", f"{match.at:,}", place, text])
    table("longest matches", ["sample", "length", "at", "in training", "text"], shown)
    notice(f"compared with {found.training_characters:,} characters of training text")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
