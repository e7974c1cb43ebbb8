"""``charlm compare``: train recipes, cells and settings side by side, and print one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cells import cell_names
from charlm.cli import completion
from charlm.cli.console import columns, json_line, notice, out, shell_words, table, visible_word, wrapped
from charlm.cli.jobs import DeviceOption, JobsConsole, JobsOption, JsonOption, QuietOption, SetForAllOption, runs_folder_option
from charlm.cli.options import ResumeChoice
from charlm.cli.streams import delivery

if TYPE_CHECKING:
    from charlm.comparison.results import Comparison, Row


_WIDE = 120  # columns, for the whole table


class EqualChoice(StrEnum):
    """Values of ``--equal``."""

    characters = "characters"
    parameters = "parameters"
    time = "time"


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...", autocompletion=completion.recipes_and_texts, help="Shipped recipes, YAML files, or texts."
        ),
    ],
    cells: Annotated[
        str | None,
        typer.Option(
            metavar="CELLS",
            autocompletion=completion.cells,
            help=f"Comma-separated: {','.join(cell_names())} or some of them.",
            show_default="each recipe's own",
            rich_help_panel="Candidates",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,…",
            autocompletion=completion.overrides,
            help="Try each value, such as model.hidden=64,256,512. Repeatable: all pairs.",
            rich_help_panel="Candidates",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=10_000,
            help="Runs of each candidate; the first has the recipe's seed.",
            rich_help_panel="Candidates",
        ),
    ] = 1,
    equal: Annotated[
        EqualChoice,
        typer.Option(
            metavar="WHAT",
            help="Equal for all candidates: characters (read), parameters, or time (of training).",
            rich_help_panel="Fairness",
        ),
    ] = EqualChoice.characters,
    max_time: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Training time of each run, with --equal time.",
            show_default="that of the first run",
            rich_help_panel="Fairness",
        ),
    ] = None,
    to: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=1e12,
            metavar="PERPLEXITY",
            help="Show the time to this perplexity.",
            show_default="the worst run's best",
            rich_help_panel="Output",
        ),
    ] = None,
    set_: SetForAllOption = None,
    out_dir: Annotated[Path | None, runs_folder_option("checkpoints/compare-<recipes>")] = None,
    resume: Annotated[
        ResumeChoice,
        typer.Option(
            metavar="never|auto|must",
            help="Keep finished runs and resume unfinished ones: auto (if any exist), never, or must (they exist).",
            rich_help_panel="Run",
        ),
    ] = ResumeChoice.auto,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move earlier runs aside and start again.", rich_help_panel="Run")
    ] = False,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train recipes, cells and settings side by side, and print one table.

    Each run is an ordinary run in its own folder. Repeat the command to resume an interrupted comparison; finished runs are
    not trained again.

    Examples:
        charlm compare time-machine-rnn --cells rnn,gru,lstm
        charlm compare mine.txt --vary model.hidden=64,256 --seeds 3
        charlm compare mine.txt --cells gru,lstm --equal time --max-time 2m
    """
    from charlm import comparison

    names = [name.strip() for name in cells.split(",")] if cells is not None else []
    console = JobsConsole(quiet)
    try:
        found = comparison.compare(
            recipes,
            cells=names,
            vary=vary or [],
            overrides=set_ or [],
            seeds=seeds,
            equal=equal.value,
            max_time=max_time,
            to=to,
            out=out_dir,
            resume=resume.value,
            overwrite=overwrite,
            device=device,
            jobs=jobs,
            reporter=console,
        )
    except KeyboardInterrupt:
        words = ["charlm", "compare", *recipes]
        words += ["--cells", ",".join(names)] if names else []
        words += [word for text in vary or [] for word in ("--vary", text)]
        words += [word for text in set_ or [] for word in ("--set", text)]
        words += ["--seeds", str(seeds)] if seeds > 1 else []
        words += ["--equal", equal.value] if equal is not EqualChoice.characters else []
        words += ["--max-time", max_time] if max_time is not None else []
        words += ["--to", f"{to:g}"] if to is not None else []
        words += ["--out", str(out_dir)] if out_dir is not None else []
        words += ["--device", device] if device != "auto" else []
        words += ["--jobs", str(jobs)] if jobs > 1 else []
        notice(f"resume with: {shell_words(words)}", wrap=False)
        raise
    with delivery(f"The runs are saved in {found.folder}; the same command prints the comparison without training again."):
        _present(found, console, equal, as_json)


def _present(found: Comparison, console: JobsConsole, equal: EqualChoice, as_json: bool) -> None:
    from charlm.cli.curve import write_comparison_png

    picture = found.folder / "compare.png"
    drawn = write_comparison_png(found.curves, found.measured_on, picture)
    notices = list(found.notices)
    if not drawn and picture.exists():
        notices.append(f"{picture} was not drawn by charlm and is left unchanged; no picture of this comparison was written")
    if as_json:
        json_line(
            {"candidates": [asdict(row) for row in found.rows], "to_perplexity": found.to_perplexity, "equal": equal.value,
             "measured_on": found.measured_on, "notices": notices, "picture": str(picture) if drawn else None}
        )  # fmt: skip
        return
    _print(found)
    seeds = max(len(row.runs) for row in found.rows)
    read = [row.training_characters for row in found.rows]
    unequal = equal is EqualChoice.characters and max(read) > 1.01 * min(read)
    same = "each recipe as it is" if unequal else f"equal {equal.value}"
    exact = "exact" if found.measured_on == "validation" else "mean over the last epoch or 100 steps"
    mean = f"; means of {seeds} seeds (lowest–highest)" if seeds > 1 else ""
    out(wrapped(f"{same}; nats: {exact}; seconds (s): training without evaluations{mean}", to_stderr=False))
    for text in notices:
        out(wrapped(f"note: {visible_word(text)}", to_stderr=False))
    if drawn:
        console.notice(f"learning curves: {picture}")
    console.notice(f"runs: {found.folder}; charlm info, sample and eval take their folders")


def _print(found: Comparison) -> None:
    """One table; on a narrow terminal its left half and, below it, its right half."""
    names = [row.name for row in found.rows]
    recipes = {row.recipe for row in found.rows}
    title = None
    if len(recipes) == 1 and len(names) > 1:
        (title,) = recipes
        names = [name.removeprefix(f"{title}-") for name in names]
    good = ["parameters", f"{found.measured_on} nats", "bits", "perplexity"]
    fast = ["char/s", "characters", f"s to {found.to_perplexity:.4g}", "s"]
    cells = [_cells(row) for row in found.rows]
    if columns() >= _WIDE:
        table(title, ["candidate", *good, *fast], [[name, *row] for name, row in zip(names, cells, strict=True)])
        return
    table(title, ["candidate", *good], [[name, *row[: len(good)]] for name, row in zip(names, cells, strict=True)])
    table(None, ["candidate", *fast], [[name, *row[len(good) :]] for name, row in zip(names, cells, strict=True)])


def _cells(row: Row) -> list[str]:
    reached = [run["seconds_to"] for run in row.runs]
    return [
        f"{row.parameters:,}",
        _spread(row.validation_nats_by_seed or row.train_nats_by_seed, 4),
        f"{row.bits_per_character:.3f}",
        f"{row.perplexity:.3f}",
        f"{row.characters_per_second:,.0f}",
        f"{row.training_characters:,.0f}",
        "–" if row.seconds_to is None else _spread(reached, 1),
        f"{row.seconds:,.1f}",
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean and, for several values, the lowest and the highest."""
    mean = f"{math.fsum(values) / len(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
