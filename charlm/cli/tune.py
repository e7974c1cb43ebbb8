"""``charlm tune``: search the settings of a recipe, print a table, and write the best recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import completion
from charlm.cli.console import columns, json_line, notice, out, shell_words, table, visible_word, wrapped
from charlm.cli.jobs import DeviceOption, JobsConsole, JobsOption, JsonOption, QuietOption, SetForAllOption, runs_folder_option
from charlm.cli.options import MAX_SEED, MAX_STEPS
from charlm.cli.streams import delivery

if TYPE_CHECKING:
    from charlm.tuning import Trial, Tuned


def tune(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", autocompletion=completion.recipes_and_texts, help="A shipped recipe, a YAML file, or a text."
        ),
    ],
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            autocompletion=completion.overrides,
            help="Search KEY=LOW..HIGH or KEY=V1,V2,… Repeatable.",
            show_default="learning rate, dropout; with --time also sizes",
            rich_help_panel="Candidates",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="Settings to draw.", rich_help_panel="Candidates")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Determines what is drawn.", rich_help_panel="Candidates")] = 1,
    set_: SetForAllOption = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Training time of a candidate in the last rung, planned from its speed.",
            show_default="the recipe's length, or 60s",
            rich_help_panel="Budget",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_STEPS, metavar="N", help="Steps instead of a time.", rich_help_panel="Budget"),
    ] = None,
    rungs: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=20,
            help="Rounds: each keeps the better half and trains it twice as long.",
            rich_help_panel="Budget",
        ),
    ] = 3,
    out_dir: Annotated[Path | None, runs_folder_option("checkpoints/tune-<recipe>")] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the best recipe to this file.", rich_help_panel="Output"),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search the settings of a recipe that give the lowest validation loss.

    Draws settings at random, trains all of them for a short time, the better half twice as long, and so on. The recipe as it is
    takes part in every rung. Repeat the command to resume an interrupted search.

    Examples:
        charlm tune mine.txt --time 60s -o best.yaml
        charlm tune shakespeare-fast --search train.lr=0.001..0.01 --jobs 2
        charlm tune mine.txt --search model.cell=lstm,gru --candidates 8
    """
    from charlm import tuning
    from charlm.config import path_of
    from charlm.tuning.search import check_recipe_path, write_recipe

    path = path_of(output) if output is not None else None
    if path is not None:
        check_recipe_path(path)
    console = JobsConsole(quiet)
    try:
        found = tuning.tune(
            recipe, search or [], set_ or [], candidates=candidates, rungs=rungs, steps=steps, time=time, seed=seed, jobs=jobs,
            out=out_dir, device=device, reporter=console,
        )  # fmt: skip
    except KeyboardInterrupt:
        given = {
            "time": time, "steps": steps, "out": out_dir, "candidates": candidates if candidates != 16 else None,
            "rungs": rungs if rungs != 3 else None, "seed": seed if seed != 1 else None,
            "device": device if device != "auto" else None, "jobs": jobs if jobs > 1 else None, "output": output,
        }  # fmt: skip
        words = ["charlm", "tune", recipe]
        words += [word for text in search or [] for word in ("--search", text)]
        words += [word for text in set_ or [] for word in ("--set", text)]
        words += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
        notice(f"resume with: {shell_words(words)}", wrap=False)
        raise
    if path is not None:
        write_recipe(path, found)
    with delivery(f"The runs are saved in {found.folder}; the same command prints the results without training again."):
        if as_json:
            json_line(found.as_json())
        else:
            _print(found)
    train = ["charlm", "train", str(path)] if path is not None else ["charlm", "train", recipe]
    train += [word for text in found.overrides for word in ("--set", text)] if path is None else []
    console.notice(f"train the best candidate: {shell_words(train)}", wrap=False)
    console.notice(f"its last run: {found.best.folder}; charlm info, sample and eval take it")


def _print(found: Tuned) -> None:
    keys = list(dict.fromkeys(key for trial in found.trials for key in trial.settings))
    results = [["#", "rung", "steps", "nats", "change"], *map(_cells, found.trials)]
    settings = [[key.rpartition(".")[2] for key in keys], *([_value(trial, key) for key in keys] for trial in found.trials)]
    whole = [[*left, *right] for left, right in zip(results, settings, strict=True)]
    numbered = [[left[0], *right] for left, right in zip(results, settings, strict=True)]
    for headers, *rows in [whole] if _width(whole) <= columns() else [results, numbered]:
        table(None, headers, rows)
    out(wrapped(
        f"best: candidate {found.best.number}; nats: validation, exact; change: from the recipe as it is (candidate 0) "
        f"in the same rung. The validation part chose the best: measure it on the test part.", to_stderr=False,
    ))  # fmt: skip
    for text in found.notices:
        out(wrapped(f"note: {visible_word(text)}", to_stderr=False))


def _width(rows: Sequence[Sequence[str]]) -> int:
    """The columns that a table takes, with three between two of its own."""
    return sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True)) - 3


def _cells(trial: Trial) -> list[str]:
    if trial.validation_nats is None or trial.steps is None:
        return [str(trial.number), str(trial.rung), "–", "–", "–"]
    change = "–" if trial.change is None else f"{trial.change:+.4f}"
    return [str(trial.number), str(trial.rung), f"{trial.steps:,}", f"{trial.validation_nats:.4f}", change]


def _value(trial: Trial, key: str) -> str:
    return str(trial.settings[key]) if key in trial.settings else "–"
