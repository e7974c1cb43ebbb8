"""``charlm compare``: train recipes, cells and settings side by side, and print one table."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cells import cell_names
from charlm.cli.console import (
    Live,
    columns,
    duration,
    json_line,
    notice,
    out,
    progress_bar,
    shell_words,
    table,
    visible_word,
    wrapped,
)
from charlm.cli.options import ResumeChoice, parse_folder
from charlm.cli.streams import delivery
from charlm.cli.watch import Watch, stop_on_signals
from charlm.errors import DivergedError, UsageError

if TYPE_CHECKING:
    from charlm.comparison.candidates import Candidate
    from charlm.comparison.equal import EqualTime
    from charlm.comparison.figures import Comparison, Row, Run
    from charlm.config import LoadedRecipe


_WIDE = 120  # columns, for the whole table


class Equal(StrEnum):
    """Values of ``--equal``."""

    characters = "characters"
    parameters = "parameters"
    time = "time"


def compare(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Shipped recipes, YAML files, or texts.")],
    cells: Annotated[
        str | None,
        typer.Option(metavar="CELLS", help=f"{','.join(cell_names())} or some of them.", show_default="each recipe's own"),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2,…", help="Try each value, such as model.hidden=64,256,512. Repeatable: all pairs."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Runs of each candidate, from the recipe's seed on.")] = 1,
    equal: Annotated[
        Equal, typer.Option(help="What is the same for all: characters read, number of parameters, or training time.")
    ] = Equal.characters,
    max_time: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Of --equal time: of each run.", show_default="that of the first run"),
    ] = None,
    to: Annotated[
        float | None,
        typer.Option(min=1, max=1e12, metavar="PERPLEXITY", help="Tell the time to it.", show_default="the worst run's best"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key for all candidates. Repeatable.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=parse_folder,
            help="Folder of the runs' folders.",
            show_default="checkpoints/compare-<recipes>",
        ),
    ] = None,
    resume: Annotated[
        ResumeChoice,
        typer.Option(help="Finished runs are kept and unfinished ones go on: if there are any, never, or must be."),
    ] = ResumeChoice.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move earlier runs aside and start anew.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """Train recipes, cells and settings side by side, and print one table.

    Each run is an ordinary one, in a folder of its own. The same command again goes on where it was stopped, and trains
    nothing that is finished.
    """
    from charlm.config import time_limit

    seconds = time_limit(max_time)
    if to is not None and math.isnan(to):
        raise UsageError("--to nan: expected a perplexity of 1 or more")
    if seconds is not None and equal is not Equal.time:
        raise UsageError("--max-time is the training time of --equal time; to limit each run: --set train.time=90s")
    names = cells.split(",") if cells is not None else []
    given = _Given(recipes, [name.strip() for name in names], vary or [], seeds, equal, set_ or [])

    from charlm.comparison import figures
    from charlm.comparison.candidates import candidates
    from charlm.comparison.equal import equal_parameters, with_its_width

    planned = candidates(recipes, given.cells, given.vary, given.overrides)
    folder = out_dir or _default_folder(recipes, equal)
    work = _Work(folder, ResumeChoice.never if overwrite else resume, overwrite, device, quiet)
    if equal is Equal.parameters:
        if any(text.partition("=")[0].strip() == "model.hidden" for text in given.vary):
            raise UsageError("--equal parameters chooses model.hidden; it cannot be varied too")
        planned = [with_its_width(candidate, device) for candidate in planned]
        planned, sentences = equal_parameters(planned, [work.symbols(candidate) for candidate in planned])
        work.say(*sentences)
    again = _again(given, max_time, to, out_dir, device)
    try:
        results = _results(planned, given, seconds, work)
    except KeyboardInterrupt:
        notice(f"resume with: {again}", wrap=False)
        raise
    if results is None:
        notice(f"resume with: {again}", wrap=False)
        raise typer.Exit(130)
    found = figures.compare(results, to)
    with delivery(f"The runs are saved in {folder}; the same command prints the comparison without training again."):
        _conclude(found, work, equal, as_json)


@dataclass(frozen=True)
class _Given:
    """What defines the candidates and their runs."""

    recipes: list[str]
    cells: list[str]
    vary: list[str]
    seeds: int
    equal: Equal
    overrides: list[str]


def _default_folder(recipes: Sequence[str], equal: Equal) -> Path:
    from charlm.checkpoint import RUNS
    from charlm.config import recipe_name

    suffix = [] if equal is Equal.characters else [f"equal-{equal.value}"]
    return RUNS / "-".join(["compare", *map(recipe_name, recipes), *suffix])


def _again(given: _Given, max_time: str | None, to: float | None, out_dir: Path | None, device: str) -> str:
    """The command that resumes."""
    words = ["charlm", "compare", *given.recipes]
    words += ["--cells", ",".join(given.cells)] if given.cells else []
    words += [word for text in given.vary for word in ("--vary", text)]
    words += [word for text in given.overrides for word in ("--set", text)]
    words += ["--seeds", str(given.seeds)] if given.seeds > 1 else []
    words += ["--equal", given.equal.value] if given.equal is not Equal.characters else []
    words += ["--max-time", max_time] if max_time is not None else []
    words += ["--to", f"{to:g}"] if to is not None else []
    words += ["--out", str(out_dir)] if out_dir is not None else []
    words += ["--device", device] if device != "auto" else []
    return shell_words(words)


def _results(
    planned: Sequence[Candidate], given: _Given, seconds: float | None, work: _Work
) -> dict[Candidate, list[Run]] | None:
    """Train what is not yet trained: the first seed of every candidate, then the second, … ``None``: interrupted."""
    from charlm.comparison.figures import Run

    results: dict[Candidate, list[Run]] = {candidate: [] for candidate in planned}
    lengths = work.lengths(seconds) if seconds is not None else None
    for number in range(given.seeds):
        for candidate in planned:
            sets_the_time = given.equal is Equal.time and seconds is None and candidate is planned[0]
            seed = candidate.load().recipe.train.seed + number
            name = f"{candidate.name}-seed{seed}"
            about = f"run {number * len(planned) + planned.index(candidate) + 1} of {len(planned) * given.seeds}: {name}"
            try:
                more = [] if lengths is None or sets_the_time else lengths.overrides(candidate)
                record = work.run(name, candidate.load(*more, f"train.seed={seed}"), about)
            except DivergedError as error:
                if sets_the_time and lengths is None:
                    raise
                work.problems.append(f"{name} is left out: {error}")
                continue
            if record is None:
                return None
            results[candidate].append(Run(work.folder / name, record))
            if sets_the_time and lengths is None:
                lengths = work.lengths(record["training_seconds"], as_the_first=True)
    if not any(results.values()):
        raise UsageError("no run has figures to compare:\n" + "\n".join(work.problems))
    return {candidate: runs for candidate, runs in results.items() if runs}


class _Work:
    """Trains runs, one after the other, and says how it goes.

    Args:
        folder: of the runs' folders.
        resume, overwrite: what to do with a run that is there already.
        device: as ``--device`` gives it.
        quiet: say nothing.

    Attributes:
        problems: a sentence for each run that is left out.
    """

    def __init__(self, folder: Path, resume: ResumeChoice, overwrite: bool, device: str, quiet: bool) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self._resume, self._overwrite, self._device, self._quiet = resume, overwrite, device, quiet
        self._said: set[str] = set()

    def say(self, *sentences: str) -> None:
        """Write notices, each once."""
        for text in sentences:
            if not self._quiet and text not in self._said:
                notice(visible_word(text))
            self._said.add(text)

    def symbols(self, candidate: Candidate) -> int:
        """V, for which the text is needed."""
        from charlm.data.dataset import open_dataset

        with progress_bar("downloading") as fetching, progress_bar("encoding") as encoding:
            return len(open_dataset(candidate.load(), fetch_progress=fetching, encode_progress=encoding).vocabulary)

    def lengths(self, seconds: float, *, as_the_first: bool = False) -> EqualTime:
        """Plans for so many seconds of training, which may be those of the first run."""
        from charlm.comparison.equal import EqualTime, remove_plans

        path = self.folder / "equal-time.json"
        if self._overwrite:
            remove_plans(path)
        return EqualTime(path, seconds, self._device, as_the_first=as_the_first)

    def run(self, name: str, loaded: LoadedRecipe, about: str) -> dict[str, Any] | None:
        """Train a run to its end, unless it is there already.

        Returns:
            Its final record; ``None``: it was interrupted, and saved.

        Raises:
            DivergedError: it has no figures.
        """
        from charlm.comparison.figures import final_record

        record = final_record(self.folder / name, loaded) if self._resume is not ResumeChoice.never else None
        already = record is not None
        self.say(f"{about}: trained already" if already else about)
        if record is None:
            if self._train(self.folder / name, loaded) == "interrupted":
                return None
            record = final_record(self.folder / name, loaded)
            assert record is not None
        if record["train_nats"] is None or record["nats_per_character"] is None:
            raise DivergedError("it made no step, or its figures are not finite")
        if not already:
            reached = f"{record['measured_on']} perplexity {record['perplexity']:.3f}"
            self.say(f"{name}: {reached} after {duration(record['training_seconds'])} of training")
        return record

    def _train(self, folder: Path, loaded: LoadedRecipe) -> str:
        """Why the run stopped."""
        from charlm.training.plan import Limits
        from charlm.training.run import run
        from charlm.training.start import Options, start

        with progress_bar("downloading") as fetching, progress_bar("encoding") as encoding:
            options = Options(
                out=folder,
                limits=Limits.of(loaded.recipe, time.monotonic()),
                resume=self._resume.value,
                overwrite=self._overwrite,
                device=self._device,
                fetch_progress=None if self._quiet else fetching,
                encode_progress=None if self._quiet else encoding,
            )
            begun = start(loaded, options)
        self.say(*(f"note: {text}" for text in begun.notices))
        trainer = begun.trainer
        live = Live(trainer.plan.total_steps, self._quiet)
        watch = Watch(live, brief=True)
        with begun, closing(live), stop_on_signals(trainer, live):
            return str(run(trainer, [watch], watch.exact_evaluation).record["stopped_because"])


def _conclude(found: Comparison, work: _Work, equal: Equal, as_json: bool) -> None:
    from charlm.cli.curve import write_comparison_png

    picture = work.folder / "compare.png"
    drawn = write_comparison_png(found.curves, found.measured_on, picture)
    notices = found.notices + work.problems
    if not drawn and picture.exists():
        notices.append(f"{picture} was not drawn by this charlm and stays as it is; no picture of this comparison was written")
    if as_json:
        json_line(
            {"candidates": [asdict(row) for row in found.rows], "to_perplexity": found.to_perplexity, "equal": equal.value,
             "measured_on": found.measured_on, "notices": notices, "picture": str(picture) if drawn else None}
        )  # fmt: skip
        return
    _print(found)
    seeds = max(len(row.runs) for row in found.rows)
    read = [row.training_characters for row in found.rows]
    as_they_are = equal is Equal.characters and max(read) > 1.01 * min(read)
    same = "each recipe as it is" if as_they_are else f"equal {equal.value}"
    exact = "exact, with carried state" if found.measured_on == "validation" else "of the last epoch or 100 steps"
    mean = f"; means of {seeds} seeds (lowest–highest)" if seeds > 1 else ""
    out(f"{same}; nats are {exact}; seconds (s) are of training, without evaluations{mean}")
    for text in notices:
        out(wrapped(f"note: {visible_word(text)}", to_stderr=False))
    if drawn:
        work.say(f"learning curves: {picture}")
    work.say(f"runs: {work.folder}; charlm info, sample and eval take their folders")


def _print(found: Comparison) -> None:
    """One table; on a narrow terminal its left and its right half, one below the other."""
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
    """Mean, and lowest and highest where there are several."""
    mean = f"{math.fsum(values) / len(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
