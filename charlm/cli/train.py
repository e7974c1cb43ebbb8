"""``charlm train``: start or resume a run, show how it goes, and say at the end what it reached."""

from __future__ import annotations

import math
import sys
import time
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cells import cell_names, entry_of
from charlm.cli import completion
from charlm.cli.console import (
    duration,
    facts,
    is_terminal,
    json_line,
    notice,
    out,
    progress_bar,
    shell_words,
    size,
    visible,
    visible_word,
)
from charlm.cli.live import Live
from charlm.cli.options import MAX_SEED, MAX_STEPS, ResumeChoice, parse_folder, unknown_note
from charlm.cli.streams import OutputError, delivery
from charlm.cli.watch import Watch, sample_label, stop_on_signals
from charlm.errors import UsageError
from charlm.run_files import PICTURE

_EXACT = ("carried", "records")
"""The contexts of an exact evaluation, as opposed to the quick one."""

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from charlm.config import LoadedRecipe, ReportedSection
    from charlm.training.events import Finished
    from charlm.training.start import Started
    from charlm.training.trainer import Trainer


class LogChoice(StrEnum):
    """Values of ``--log``."""

    tensorboard = "tensorboard"


def train(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            autocompletion=completion.recipes_and_texts,
            help="A shipped recipe (`charlm recipe list`), a YAML file, or a text to train on: a file, a folder, a glob, or - "
            "for standard input.",
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            autocompletion=completion.overrides,
            help="Override a key, such as model.hidden=256. Repeatable.",
            rich_help_panel="Model and data",
        ),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(cell_names()),
            autocompletion=completion.cell,
            help="Same as --set model.cell=CELL.",
            rich_help_panel="Model and data",
        ),
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(metavar="UNITS", help="Same as --set model.hidden=UNITS.", rich_help_panel="Model and data")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=parse_folder,
            help="The run's folder.",
            show_default="checkpoints/<recipe>",
            rich_help_panel="Run",
        ),
    ] = None,
    resume: Annotated[
        ResumeChoice,
        typer.Option(
            metavar="never|auto|must",
            help="Resume the run in this folder: never, if there is one, or else fail.",
            rich_help_panel="Run",
        ),
    ] = ResumeChoice.never,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move an earlier run aside and start anew.", rich_help_panel="Run")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            autocompletion=completion.runs,
            help="Take initial weights from this checkpoint.",
            rich_help_panel="Model and data",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Run")] = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Same as --set train.seed=SEED.", rich_help_panel="Model and data")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=0, max=MAX_STEPS, help="Stop after this many steps in all.", rich_help_panel="Run")
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Stop after 90s, 5m or 1h, the last evaluation included. Plans the length where the recipe gives none.",
            rich_help_panel="Run",
        ),
    ] = None,
    log: Annotated[
        list[LogChoice] | None,
        typer.Option(
            metavar="tensorboard", help="Write the metrics for this program too. Repeatable.", rich_help_panel="Output"
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash the text even if its files look unchanged.", rich_help_panel="Run")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.", rich_help_panel="Output")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The final record as one JSON line, last on stdout.", rich_help_panel="Output")
    ] = False,
) -> None:
    """Train a model as a recipe says, or on a text.

    A recipe that says only `corpus: FILE` is complete; `charlm train mine.txt` writes it for you.
    Ctrl-C finishes the step, saves, and prints how to resume; pressed twice it stops at once.

    Examples:
        charlm train quickstart
        charlm train mine.txt --cell gru --hidden 128
        charlm train mine.yaml --max-time 5m --resume auto
    """
    from charlm.config import load_recipe, time_limit
    from charlm.distributed import join

    world = join(device)
    quiet = quiet or not world.is_first
    overrides = _overrides(set_ or [], {"model.cell": cell, "model.hidden": hidden, "train.seed": seed})
    if recipe == "-":
        if world.size > 1:
            raise UsageError("standard input reaches one process only; give several processes a file")
        recipe = _stored_input(quiet)
    loaded = world.together(lambda: load_recipe(recipe, overrides))
    started_at = context.obj if isinstance(context.obj, float) else time.monotonic()
    seconds = time_limit(max_time)

    from charlm.checkpoint import RUNS
    from charlm.training.observers import make_loggers
    from charlm.training.plan import Limits
    from charlm.training.run import run
    from charlm.training.start import Options, start

    folder = out_dir or RUNS / loaded.name
    loggers = make_loggers(log or [], folder) if world.is_first else []
    with progress_bar("downloading") as fetching, progress_bar("encoding") as encoding:
        options = Options(
            out=folder,
            limits=Limits.of(loaded.recipe, started_at, max_steps, seconds),
            resume=resume.value,
            overwrite=overwrite,
            init=init,
            device=device,
            verify=verify,
            fetch_progress=None if quiet else fetching,
            encode_progress=None if quiet else encoding,
            world=world,
        )
        begun = start(loaded, options)
    trainer = begun.trainer
    if not quiet:
        _introduce(loaded, begun)
    options_again = {
        "cell": cell,
        "hidden": hidden,
        "seed": seed,
        "out": out_dir,
        "device": None if device == "auto" else device,
    }
    again = _resume_command(recipe, set_ or [], options_again, log or [])
    live = Live(trainer.plan.total_steps, quiet)
    watch = Watch(live)
    with closing(world), begun, closing(live), stop_on_signals(trainer, live, announces=world.is_first):
        finished = run(trainer, [watch, *loggers], watch.exact_evaluation, notice if quiet else live.say)
    interrupted = finished.record["stopped_because"] == "interrupted"
    if not world.is_first:  # the first process says how it ended: torchrun ends it when another one fails
        return
    stated = None if init else _stated(loaded, overrides)
    try:
        with delivery(f"The run is saved in {trainer.folder.path}; its metrics.jsonl ends with the result."):
            _conclude(finished, trainer, stated, quiet, as_json, again)
    except OutputError:
        if not interrupted:  # a terminal that was closed interrupts and takes no result
            raise
    if interrupted:
        raise typer.Exit(130)


def _overrides(given: Sequence[str], short_forms: Mapping[str, object]) -> list[str]:
    """The overrides of ``--set``, and those of the short forms: key → value, or ``None`` where it is not given.

    Raises:
        UsageError: a key is set in both ways.
    """
    from charlm.errors import UsageError

    overrides = list(given)
    for key, value in short_forms.items():
        if value is None:
            continue
        for override in given:
            if override.partition("=")[0].strip() == key:
                option = key.rpartition(".")[2]
                raise UsageError(f"{value} and --set {override} set the same key; give one of them", parameter=option)
        overrides.append(f"{key}={value}")
    return overrides


def _stored_input(quiet: bool) -> str:
    """Keep the text from standard input in a file, since a run reads its text again; the path is the same for the same text."""
    from charlm.data.stored_texts import store_text

    if sys.stdin.isatty() and not quiet:
        notice("reading a text from the terminal; Ctrl-D on an empty line ends it")
    path = store_text(sys.stdin.buffer.read(), "stdin")
    if not quiet:
        notice(f"the text from standard input is stored in {path}", wrap=False)
    return str(path)


def _resume_command(recipe: str, overrides: Sequence[str], options: Mapping[str, object], log: Sequence[str]) -> str:
    words = ["charlm", "train", f"./{recipe}" if recipe.startswith("-") else recipe]  # a name, not an option
    for override in overrides:
        words += ["--set", override]
    for name, value in options.items():
        words += [f"--{name}", str(value)] if value is not None else []
    for name in log:
        words += ["--log", name]
    return shell_words([*words, "--resume", "auto"])


def _introduce(loaded: LoadedRecipe, begun: Started) -> None:
    """What is about to happen, before it happens."""
    from charlm.run_files import CONFIG
    from charlm.runtime import device_name
    from charlm.training.memory import training_bytes

    trainer = begun.trainer
    recipe, dataset, resolved, plan = trainer.recipe, trainer.dataset, trainer.resolved, trainer.plan
    model, train_, shape = recipe.model, recipe.train, trainer.batches.shape
    splits = [f"{name} {start:,}–{stop:,}" for name, (start, stop) in dataset.splits.items() if stop > start]
    unknown = {name: number for name, number in dataset.unknown.items() if number}
    parameters = trainer.model.parameter_count()
    memory = training_bytes(recipe, len(dataset.vocabulary), shape, resolved.precision, resolved.engine, trainer.world.size)
    identity = f", {dataset.identity}" if dataset.identity else ""
    length = (
        f"{plan.total_steps:,} steps" if plan.total_steps is not None else f"until {duration(train_.time or 0)} have passed"
    )
    epoch = trainer.batches.epoch_length(0)
    if plan.total_steps is not None:
        length += f" ({plan.total_steps / epoch:.3g} epochs of {epoch:,})"
    skipped = trainer.batches.skipped(0)
    symbols = "bytes" if dataset.vocabulary.unit == "byte" else "symbols, <unk> among them"
    lines = [
        ("corpus", f"{dataset.name}{identity}: {dataset.encoded.characters:,} characters, {size(dataset.encoded.bytes)}, "
                   f"sha256 {dataset.encoded.sha256[:12]}…"),
        ("vocabulary", f"{len(dataset.vocabulary)} {symbols}"
                       + "".join(f"; {number:,} unknown in {name}" for name, number in unknown.items())),
        ("split", ", ".join(splits)),
        ("model", f"{model.layers} × {entry_of(model).label} of {model.hidden}, dropout {model.dropout:g}: "
                  f"{parameters:,} parameters"),
        ("engine", f"{resolved.engine} ({resolved.engine_reason})"),
        ("precision", f"{resolved.precision} ({resolved.precision_reason})"),
        ("device", device_name(resolved.device)),
        ("plan", length + (f"; {skipped:,} characters of the first epoch are skipped" if skipped else "")),
        ("update", f"{shape.batch} × {shape.seq_length} characters, {train_.optimizer}, rate {train_.lr:g}, {train_.schedule}"),
        ("memory", f"about {size(memory)} for weights, moments and activations"),
        ("folder", str(trainer.folder.path)),
    ]  # fmt: skip
    if trainer.world.size > 1:
        lines.append(("processes", f"{trainer.world.size}, each with {len(trainer.world.share(shape.batch))} or more streams"))
    if loaded.of_text:
        lines.insert(0, ("recipe", f"{trainer.folder.path / CONFIG}, written for {loaded.recipe.corpus}"))
    if trainer.resumed_from is not None:
        lines.append(("resumed from", f"step {trainer.resumed_from:,}"))
    facts(lines)
    for text in begun.notices:
        notice(f"note: {visible_word(text)}")


def _conclude(
    finished: Finished, trainer: Trainer, stated: ReportedSection | None, quiet: bool, as_json: bool, again: str
) -> None:
    """The end: one line as d2l prints it, the texts, a summary, and what to do next."""
    from charlm.cli.curve import draw, read_curve, write_png

    record = finished.record
    unknown = _unknown_share(record, trainer)
    curve = read_curve(trainer.folder.path)
    if not quiet:
        if is_terminal() and (drawing := draw(curve)):
            notice(drawing)
        picture = trainer.folder.path / PICTURE
        try:
            if write_png(curve, picture):
                notice(f"learning curve: {picture}")
        except (OSError, UsageError) as error:  # the run is complete without it
            notice(f"learning curve: {error}")
        facts(_summary(record, stated, again, trainer.plan.total_steps, unknown))
    show = notice if as_json else out
    if not quiet or not as_json:
        for sample in finished.samples:
            if not quiet:
                notice(sample_label(sample))
            text = sample.prompt + sample.text
            show(visible(text) if is_terminal(to_stderr=as_json) else text)
        if finished.samples and not quiet:
            show("")
        show(_headline(record, unknown))
    if as_json:
        json_line(record)


def _unknown_share(record: dict[str, Any], trainer: Trainer) -> float:
    """The share of the scored characters that are `<unk>`. A quick estimate does not count them; its whole text does."""
    if record["unknown_characters"] is not None:
        return float(record["unknown_characters"] / record["characters"])
    part = "validation" if record["measured_on"] == "validation" else "train"
    start, stop = trainer.dataset.splits[part]
    return trainer.dataset.unknown[part] / (stop - start)


def _headline(record: dict[str, Any], unknown: float) -> str:
    """``perplexity 1.0, 293,000.0 tokens/s on cuda:0`` is what d2l prints; here with decimals that tell more."""
    return (
        f"{record['measured_on']} perplexity {record['perplexity']:.3f}{unknown_note(unknown)}, "
        f"{record['characters_per_second']:,.1f} characters/s on {record['device']}"
    )


def _summary(
    record: dict[str, Any], stated: ReportedSection | None, again: str, planned: int | None, unknown: float
) -> list[tuple[str, str]]:
    of = f"; {planned:,} planned" if planned is not None and record["step"] < planned else ""
    lines = [
        ("stopped", f"{record['stopped_because']} at step {record['step']:,}, epoch {record['epoch']:.2f}, "
                    f"after {duration(record['seconds'])}{of}"),
    ]  # fmt: skip
    if record["step"] == 0:
        lines.append(("untrained", "no training steps: these are the initial weights"))
    if math.isfinite(record["train_nats"]):  # not without a step
        lines.append(
            ("training", f"{record['train_nats']:.4f} nats per character, perplexity {record['train_perplexity']:.3f}")
        )
    if record["measured_on"] == "validation":
        lines += _validation(record)
        lines += _overfitting(record)
    if note := unknown_note(unknown):
        lines.append(("unknown", f"{note.strip(' ()')}, so this result is not comparable with one that names every character"))
    lines += _comparison(record, stated, planned)
    checkpoint = shell_words([record["checkpoint"]])
    if record["stopped_because"] != "finished":
        lines.append(("resume with", again))
    lines.append(("sample", f"charlm sample {checkpoint}"))
    split = "" if record["measured_on"] == "validation" else " --split train"
    lines.append(("evaluate", f"charlm eval perplexity {checkpoint}{split}"))
    return lines


def _validation(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Which weights were measured, on which characters, and the quick result beside the exact one on the same characters."""
    step, own = record["best_step"], record["schedule_best_step"]
    weights = f"step {record['step'] if step is None else step:,}"
    weights += " (moving average)" if record["best_averaged"] else ""
    if own not in (None, step):
        weights += f"; the schedule's best, step {own:,}, is kept"
    quick, length, characters = record["validation_characters"], record["validation_length"], record["characters"]
    exact = record["context"] in _EXACT
    of_all = f"all {length:,} characters" if quick == length else f"{quick:,} of {length:,} characters, evenly spread"
    if exact:
        read = f"all {length:,}" if characters == length else f"the first {characters:,} of {length:,}"
        state = "state carried" if record["context"] == "carried" else "state reset at each record"
        how = f"exact: fp32, {state}, {read} characters"
    else:
        how = f"quick: {of_all}"
    lines = [
        ("best weights", weights),
        ("validation", f"{record['nats_per_character']:.4f} nats, {record['bits_per_character']:.4f} bits per character, "
                       f"perplexity {record['perplexity']:.3f}"),
        ("", how),
    ]  # fmt: skip
    if not exact:
        lines.append(("", "the exact evaluation was skipped"))
    if exact and record["best_validation_nats"] is not None:
        same = record["exact_nats_of_validation_characters"]
        lines.append(("quick", f"{record['best_validation_nats']:.4f} nats on {of_all}"))
        if same is not None and quick != length:
            lines.append(("", f"(exact on the same {quick:,} characters: {same:.4f} nats)"))
    return lines


def _overfitting(record: dict[str, Any]) -> list[tuple[str, str]]:
    best, now = record["best_validation_nats"], record["validation_nats"]
    if best is None or now is None or record["best_step"] is None or not now >= best * 1.01:
        return []
    return [
        ("overfitting", f"validation was best at step {record['best_step']:,} ({best:.4f}) and is {now:.4f} now, while "
                        "the training loss still fell: the best weights were kept; more dropout, a smaller model or more "
                        "text would help")
    ]  # fmt: skip


_NEUTRAL = ("train.seed", "train.threads", "model.engine", "sample.", "checkpoint.")
"""Keys that leave a run comparable with what its recipe states."""


def _stated(loaded: LoadedRecipe, overrides: Sequence[str]) -> ReportedSection | None:
    """What the recipe states that it reached, if this is the recipe that reached it.

    A copy of a shipped recipe must still equal it; another recipe states its own result, which no override may change.
    """
    from charlm.config import field_names, load_recipe, value_at
    from charlm.resources import shipped_files

    reported = loaded.recipe.reported
    if reported is None or not all(override.strip().startswith(_NEUTRAL) for override in overrides):
        return None
    shipped = [load_recipe(name).recipe for name in shipped_files("configs")]
    owners = [recipe for recipe in shipped if recipe.reported == reported]
    keys = [key for key in field_names() if not key.startswith(_NEUTRAL)]
    same = [all(value_at(owner, key) == value_at(loaded.recipe, key) for key in keys) for owner in owners]
    return reported if any(same) or not owners else None


def _comparison(record: dict[str, Any], stated: ReportedSection | None, planned: int | None) -> list[tuple[str, str]]:
    """How the run compares with what its recipe states; nothing where it is only a part of that run or was not measured so."""
    ends = ("finished", "early stopping") if planned is not None else ("max time",)
    if stated is None or record["stopped_because"] not in ends:
        return []
    if stated.metric != "train_perplexity" and record["context"] not in _EXACT:
        return []
    reached = {
        "train_perplexity": record["train_perplexity"],
        "validation_perplexity": record["perplexity"],
        "validation_nats": record["nats_per_character"],
        "validation_bits_per_character": record["bits_per_character"],
    }[stated.metric]
    note = f"; {stated.note}" if stated.note else ""
    name = stated.metric.replace("_", " ")
    difference = (reached / stated.value - 1) * 100
    return [("compare", f"{name} {reached:.4g}; this recipe states {stated.value:.4g} ({difference:+.1f} %){note}")]
