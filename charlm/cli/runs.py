"""``charlm runs``: list the runs of a folder, remove runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cells import entry_of
from charlm.cli.console import columns, json_line, notice, out, shell_words, size, table, visible_word
from charlm.cli.help import App
from charlm.errors import RunFolderError, UsageError

if TYPE_CHECKING:
    from charlm.training.runs import RunSummary

runs_app = App(no_args_is_help=False)

_WIDE = 110  # columns, for all facts about a run

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@runs_app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    """Runs: list them with their results, remove them. Without a command: list."""
    if context.invoked_subcommand is None:
        list_(None)


@runs_app.command("list")
def list_(
    folder: Annotated[
        str | None, typer.Argument(metavar="FOLDER", help="The folder of the runs' folders.", show_default="checkpoints")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the runs in a folder: text, model, step, validation in nats per character, age, size, state.

    A stopped run can be resumed with `charlm train … --resume auto`; one with weights only cannot. Of a damaged run, the
    newest checkpoint is unreadable.

    Examples:
        charlm runs list
        charlm runs list experiments --json
    """
    from charlm.checkpoint import RUNS
    from charlm.config import path_of
    from charlm.training.runs import list_runs

    where = RUNS if folder is None else path_of(folder)
    found = [] if folder is None and not where.exists() else list_runs(where)
    if as_json:
        json_line({"folder": str(where), "bytes": sum(run.bytes for run in found), "runs": [_record(run) for run in found]})
        return
    if not found:
        notice(f"no runs in {where}/; `charlm train mine.txt` starts one")
        return
    _show(found)
    for run in found:
        if run.problem:
            notice(visible_word(run.problem))
    old = [run for run in found if run.moved_aside]
    total = f"{_count(found)}, {size(sum(run.bytes for run in found))}"
    if old:
        total += f"; {len(old)} of them moved aside by --overwrite, {size(sum(run.bytes for run in old))}"
        total += " (charlm runs rm --old removes them)" if folder is None else ""
    notice(total)


def _count(runs: Sequence[object]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def _show(runs: Sequence[RunSummary]) -> None:
    """A row for each run; in a narrow terminal two, with the text and the size in the second."""
    is_wide, now = columns() >= _WIDE, time.time()
    rows = []
    for run in runs:
        nats = run.nats_per_character if run.nats_per_character is not None else run.best_validation_nats
        facts = [_model(run), _step(run), "–" if nats is None else f"{nats:.3f}"]
        age, count = _age(now - run.modified), size(run.bytes)
        if is_wide:
            rows.append([run.name, run.corpus, *facts, age, count, run.state])
        else:
            rows += [[run.name, *facts, age, run.state], [f"  {run.corpus}", "", "", "", count, ""]]
    wide, narrow = (
        ["run", "text", "model", "step", "nats", "age", "size", "state"],
        ["run", "model", "step", "nats", "age", "state"],
    )
    table(None, wide if is_wide else narrow, rows)


def _model(run: RunSummary) -> str:
    if run.recipe is None:
        return ""
    model = run.recipe.model
    return f"{f'{model.layers} × ' * (model.layers > 1)}{entry_of(model).label} {model.hidden}"


def _step(run: RunSummary) -> str:
    if run.step is None:
        return "–"
    is_complete = run.planned_steps is None or run.step >= run.planned_steps
    return f"{run.step:,}" if is_complete else f"{run.step:,}/{run.planned_steps:,}"


def _age(seconds: float) -> str:
    """``5 min``, ``3 h``, ``12 d``."""
    if seconds < 3600:
        return f"{max(0, seconds) // 60:.0f} min"
    return f"{seconds // 3600:.0f} h" if seconds < 86400 else f"{seconds // 86400:.0f} d"


def _record(run: RunSummary) -> dict[str, Any]:
    model = run.recipe.model if run.recipe is not None else None
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": run.state,
        "corpus": run.corpus,
        "cell": model.cell if model is not None else None,
        "hidden": model.hidden if model is not None else None,
        "layers": model.layers if model is not None else None,
        "step": run.step,
        "planned_steps": run.planned_steps,
        "best_validation_nats": run.best_validation_nats,
        "nats_per_character": run.nats_per_character,
        "modified": datetime.fromtimestamp(run.modified, UTC).isoformat(timespec="seconds"),
        "bytes": run.bytes,
        "moved_aside": run.moved_aside,
        "problem": run.problem or None,
    }


@runs_app.command()
def rm(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Names or folders of runs.")] = None,
    old: Annotated[
        bool,
        typer.Option("--old", help="Remove the runs that --overwrite moved aside: those of the named runs, or else all."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove runs: the files that charlm wrote, and the folder if nothing else is in it.

    Other files stay, and so does a config.yaml that you edited. A run in training is refused.

    Examples:
        charlm runs rm mine
        charlm runs rm --old
    """
    from charlm.training.lock import is_locked
    from charlm.training.runs import disk_size, own_names, remove_run

    folders = _moved_aside(names or []) if old else _named(names or [])
    if running := [str(folder) for folder in folders if is_locked(folder)]:
        raise RunFolderError(f"a process is training in {', '.join(running)}; nothing was removed. Stop it first")
    sizes = {folder: disk_size(folder, own_names(folder)) for folder in folders}
    if not folders:
        notice("no runs were moved aside; nothing to remove")
    elif not yes:
        _ask(sizes)
    removed: list[dict[str, Any]] = []
    for folder, freed in sizes.items():
        left = remove_run(folder)
        removed.append({"folder": str(folder), "bytes": freed, "left": left})
        if not as_json:
            kept = f"; left, since charlm did not write it or you edited it: {', '.join(left)}" if left else ""
            out(visible_word(f"removed {folder} ({size(freed)}){kept}"))
    if as_json:
        json_line({"bytes": sum(sizes.values()), "removed": removed})


def _named(names: Sequence[str]) -> list[Path]:
    """The folders of these runs.

    Raises:
        UsageError: none is named, or one is no run.
    """
    from charlm.checkpoint import find_run
    from charlm.training.runs import list_runs, own_names

    if not names:
        raise UsageError("expected the names of runs to remove, or --old; `charlm runs` lists them")
    folders = list(dict.fromkeys(find_run(name) for name in names))
    for folder in folders:
        if not own_names(folder):
            inner = [str(run.folder) for run in list_runs(folder)]
            holds = f"but folders of runs: {shell_words(inner)}" if inner else "no file of a run"
            raise UsageError(f"{folder} holds {holds}; nothing was removed")
    return folders


def _moved_aside(names: Sequence[str]) -> list[Path]:
    """The folders of the runs that were moved aside: of these runs, or of all in the default folder."""
    from charlm.checkpoint import RUNS
    from charlm.config import is_path, path_of
    from charlm.training.runs import list_runs, moved_aside, own_names

    if not names:
        return [run.folder for run in list_runs(RUNS) if run.moved_aside] if RUNS.exists() else []
    runs = [path_of(name) if is_path(name) else RUNS / name for name in names]
    return list(dict.fromkeys(path for run in runs for path in moved_aside(run) if own_names(path)))


def _ask(sizes: dict[Path, int]) -> None:
    """Ask on the terminal before runs are removed.

    Raises:
        UsageError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; with --yes, the runs are removed without a question")
    for folder, count in sizes.items():
        notice(visible_word(f"{folder}  {size(count)}"))
    if not typer.confirm(f"Remove {_count(list(sizes))}, {size(sum(sizes.values()))}?", err=True):
        notice("nothing was removed")
        raise typer.Exit(1)
