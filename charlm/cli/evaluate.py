"""``charlm eval``: questions asked of a trained model."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli.console import json_line, notice, out, progress_bar, results, table, visible_word
from charlm.cli.options import MAX_LENGTH, Split, read_text, unknown_note
from charlm.errors import CharlmError, CorpusError, UsageError

if TYPE_CHECKING:
    from charlm.data.dataset import Dataset, Text
    from charlm.data.encoding import Encoded
    from charlm.loaded import Model

_CHUNK = 1024  # charlm.evaluation.perplexity.CHUNK, which help does not wait for

evaluate_app = typer.Typer(help="Ask a trained model: how well does it predict a text?", no_args_is_help=True)


@evaluate_app.callback()
def _group() -> None:
    """Ask a trained model: how well does it predict a text?"""


@evaluate_app.command()
def perplexity(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's file, a run's folder (its best), or a run's name.")],
    file: Annotated[str | None, typer.Argument(help="A text, or - for standard input. Omitted: the recipe's corpus.")] = None,
    split: Annotated[Split | None, typer.Option(help="Which part of the recipe's corpus.", show_default="validation")] = None,
    context: Annotated[
        str, typer.Option(help="carried: one stream from the first character to the last; reset:N: windows of N.")
    ] = "carried",
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Go on learning from what has been scored; the checkpoint does not change.")
    ] = False,
    dynamic_rate: Annotated[
        float | None, typer.Option(min=0, max=1000, help="Its learning rate.", show_default="0.1, after every 32 characters")
    ] = None,
    chunk: Annotated[
        int, typer.Option(min=0, max=MAX_LENGTH, help="Characters per call, 0: all. Changes only speed.")
    ] = _CHUNK,
    engine: Annotated[str | None, typer.Option(help="native, torch or reference.", show_default="the fastest here")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="What an n-gram, gzip, bz2 and xz need after the same training text.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """Measure perplexity exactly: fp32, every character but the first scored once, sums in float64."""
    window = _window(context)
    if dynamic_rate is not None and not dynamic:
        raise UsageError("--dynamic-rate belongs to --dynamic")
    if dynamic_rate is not None and not math.isfinite(dynamic_rate):
        raise UsageError(f"--dynamic-rate {dynamic_rate:g} is not a number to learn with")
    if dynamic and window is not None:
        raise UsageError("--dynamic reads the text as one stream; remove --context reset")
    if dynamic and chunk != _CHUNK:
        raise UsageError("--dynamic reads 32 characters at a time; remove --chunk, which belongs to the static evaluation")

    from charlm.evaluation import perplexity as measure
    from charlm.evaluation.baselines import TEXT_CHARACTERS
    from charlm.evaluation.dynamic import RATE, SEGMENT
    from charlm.evaluation.dynamic import dynamic as learning
    from charlm.loaded import load

    opened = load(checkpoint, device, engine=engine or "auto")
    if file is not None and split is not None:
        raise UsageError("--split chooses a part of the recipe's corpus; a FILE is read whole")
    if baselines and split is Split.train:
        raise UsageError(
            "--baselines: after the training text an n-gram or a compressor needs next to nothing for its own text again; "
            "choose --split validation or test, or a FILE"
        )
    corpus: Dataset | None
    if file is None:
        corpus = _own_corpus(opened, "name a FILE to evaluate on")
        text, encoded, about = _part(corpus, (split or Split.validation).value)
    else:
        text, encoded, about = _file(opened, file)
        corpus = _training_text(opened) if baselines else None
    if baselines and len(text) > TEXT_CHARACTERS:
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
        **about,
        "characters_per_second": score.characters / seconds,
        "seconds": seconds,
        "device": str(opened.device),
        "engine": opened.engine,
        "precision": "fp32",
        "step": opened.step,
        "epoch": opened.checkpoint.progress["epoch"],
        "parameters": model.parameter_count(),
        "checkpoint": str(opened.path),
    }
    if baselines and corpus is not None:
        record["baselines"] = _baselines(corpus, text, encoded, about["offsets"])
    if as_json:
        json_line(record)
    else:
        _print(record, vocabulary.unit)


@evaluate_app.command()
def attention(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's file, a run's folder (its best), or a run's name.")],
    text: Annotated[str, typer.Argument(help="What to read; @FILE reads a file, - standard input.")],
    top: Annotated[int, typer.Option(min=1, max=MAX_LENGTH, help="How many places to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line, with the weights of all places.")] = False,
) -> None:
    """Show where a model with attention looks at the end of a text: places in it, and their weights."""
    given = read_text(text, "TEXT")

    from charlm.loaded import load

    opened = load(checkpoint, "cpu")
    given, vocabulary = opened.as_read(given), opened.vocabulary
    unknown = sum(index == vocabulary.unknown_id for index in vocabulary.encode(given, "map"))
    if unknown:
        notice(f"note: {unknown} of the characters are not in the vocabulary, and were read as <unk>")
    weights = opened.attention(given)
    if as_json:
        json_line({"weights": weights.tolist(), "nothing": 1 - float(weights.sum()), "characters": len(weights) + 1})
        return
    symbols = given.encode("utf-8", "surrogateescape") if vocabulary.unit == "byte" else given
    rows = []
    for place in sorted(range(len(weights)), key=lambda place: -weights[place])[:top]:
        before, after = symbols[max(0, place - 24) : place + 1], symbols[place + 1 : place + 9]
        words = [part if isinstance(part, str) else part.decode(errors="replace") for part in (before, after)]
        rows.append([f"{weights[place]:.4f}", str(len(weights) - place), *(visible_word(word) for word in words)])
    table(None, ["weight", "steps back", "had read …", "… and then came"], rows)
    out(f"nothing               {1 - weights.sum():.4f}")


def _window(context: str) -> int | None:
    if context == "carried":
        return None
    kind, _, number = context.partition(":")
    if kind == "reset" and number.isascii() and number.isdigit() and len(number) <= 12 and int(number) > 0:
        return int(number)
    raise UsageError(f"--context {context}: expected carried or reset:N, such as reset:256 (at most 12 digits)")


def _file(opened: Model, file: str) -> tuple[Text, Encoded, dict[str, Any]]:
    from charlm.data.dataset import open_text

    text, encoded = open_text(file, opened.recipe.data, opened.checkpoint.corpus["normalise"], opened.vocabulary)
    name = "standard input" if file == "-" else Path(file).name
    return text, encoded, {"text": name, "sha256": encoded.sha256, "offsets": [0, encoded.characters], "split": None}


def _part(corpus: Dataset, split: str) -> tuple[Text, Encoded, dict[str, Any]]:
    encoded, offsets = corpus.encoded, list(corpus.splits[split])
    if offsets[1] - offsets[0] < 2:
        scorable = [name for name, (start, stop) in corpus.splits.items() if stop - start >= 2]
        raise UsageError(
            f"the {split} part of {corpus.name} is too short to score ({offsets[1] - offsets[0]} characters, at least 2 are "
            f"needed); choose --split {' or '.join(scorable)}"
        )
    return corpus.text(split), encoded, {"text": corpus.name, "sha256": encoded.sha256, "offsets": offsets, "split": split}


def _training_text(opened: Model) -> Dataset:
    try:
        return _own_corpus(opened, "supply it, or leave --baselines out")
    except CharlmError as error:
        raise UsageError(f"--baselines needs the training text: {error}") from None


def _own_corpus(opened: Model, advice: str) -> Dataset:
    """The text that the model was trained on, found again; used only if it is the same to the byte."""
    from charlm.data.encoding import OtherTextError
    from charlm.data.recorded import open_recorded

    try:
        return open_recorded(opened.recipe, opened.checkpoint.corpus, opened.vocabulary, opened.path)
    except UsageError as error:
        raise UsageError(f"the text this model was trained on is not at hand ({error}); {advice}") from None
    except OtherTextError as error:
        raise CorpusError(f"{error}; {advice}") from None


def _baselines(corpus: Dataset, text: Text, encoded: Encoded, offsets: list[int]) -> dict[str, Any]:
    """What simple methods need for a text after the corpus's training part, in bits per scored character."""
    from charlm.data.encoding import utf8
    from charlm.evaluation.baselines import COMPRESSORS, TRAINING_CHARACTERS, compressor_bits, ngram_bits

    unit, scored = corpus.vocabulary.unit, len(text) - 1
    start, stop = corpus.splits["train"]
    used = min(stop - start, TRAINING_CHARACTERS)
    train = corpus.text("train")
    with progress_bar("comparing", unit="methods") as advance:
        advance(0, 1 + len(COMPRESSORS))
        bits, order = ngram_bits(train.ids(len(train) - used, len(train)), text.ids(0, len(text)), len(corpus.vocabulary))
        found: dict[str, Any] = {"ngram": bits / scored, "ngram_order": order}
        before, after = utf8(corpus.encoded, stop - used, stop, unit), utf8(encoded, offsets[0], offsets[1], unit)
        for done, name in enumerate(COMPRESSORS, 1):
            advance(done, 1 + len(COMPRESSORS))
            found[name] = compressor_bits(name, before, after) / scored
    return {**found, "training_characters": used}


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
            ("dynamic", f"the model went on learning: a step of rate {rate:g} after every {segment} characters")
        )  # fmt: skip
    lines.append(("sha256", record["sha256"]))
    if record["unknown_characters"]:
        nats = record["unknown_nats"]
        bits = nats / math.log(2) / record["characters"]
        lines.append(
            ("unknown", f"{record['unknown_characters']:,} scored as <unk>; naming them would cost {nats:,.1f} nats more, "
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
            notice("so short a text says nothing of compressors: they write whole bytes and blocks")
    notice(f"{record['characters_per_second']:,.0f} characters/s, engine {record['engine']}, {record['device']}")
