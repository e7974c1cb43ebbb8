"""What a comparison and a search share: their options, and the progress of their runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import completion
from charlm.cli.console import duration, notice, progress_bar, visible_word
from charlm.cli.live import Live, LiveRuns
from charlm.cli.options import parse_folder
from charlm.cli.watch import Watch, stop_on_signals

if TYPE_CHECKING:
    from charlm.comparison.jobs import Board, JobProgress
    from charlm.progress import Progress
    from charlm.training.observers import Observer
    from charlm.training.run import CanStop
    from charlm.training.trainer import Trainer

JobsOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        max=1000,
        help="Runs side by side. They share the machine: each makes fewer steps in a given time.",
        rich_help_panel="Run",
    ),
]
"""``--jobs``."""

SetForAllOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.overrides,
        help="Override a key for all candidates. Repeatable.",
        rich_help_panel="Candidates",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Run")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.", rich_help_panel="Output")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON line.", rich_help_panel="Output")]


def runs_folder_option(default: str) -> Any:
    """``--out``; ``default`` is shown in the help."""
    return typer.Option(
        "--out",
        metavar="DIR",
        parser=parse_folder,
        help="Folder of the runs' folders.",
        show_default=default,
        rich_help_panel="Run",
    )


class JobsConsole:
    """Shows the progress of several runs on stderr (:class:`charlm.comparison.Reporter`).

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._shown: set[str] = set()
        self._board: LiveRuns | None = None

    def notice(self, text: str, wrap: bool = True) -> None:
        """Write a notice, once."""
        if not self._quiet and text not in self._shown:
            if self._board is None:
                notice(visible_word(text), wrap=wrap)
            else:
                self._board.say(visible_word(text))
        self._shown.add(text)

    def run_begins(self, name: str, number: int, total: int, is_finished: bool) -> None:
        """Write the name of the run."""
        self.notice(f"run {number} of {total}: {name}{': trained already' if is_finished else ''}")

    def run_ended(self, name: str, record: dict[str, Any]) -> None:
        """Write its result."""
        reached = f"{record['measured_on']} perplexity {record['perplexity']:.3f}"
        self.notice(f"{name}: {reached} after {duration(record['training_seconds'])} of training")

    @contextmanager
    def reading(self) -> Iterator[tuple[Progress | None, Progress | None]]:
        """Draw bars for download and encoding."""
        if self._quiet:
            yield None, None
            return
        with progress_bar("downloading") as fetching, progress_bar("encoding") as encoding:
            yield fetching, encoding

    @contextmanager
    def training(self, trainer: Trainer) -> Iterator[tuple[Sequence[Observer], Progress | None]]:
        """Draw the status line of a training; the first signal requests a stop."""
        live = Live(trainer.plan.total_steps, self._quiet)
        watch = Watch(live, brief=True)
        with closing(live), stop_on_signals(trainer, live):
            yield [watch], watch.exact_evaluation

    @contextmanager
    def side_by_side(self, workers: CanStop) -> Iterator[Board]:
        """Draw a line for each run; the first signal requests a stop."""
        self._board = live = LiveRuns(self._quiet)

        def show(name: str, progress: JobProgress | None) -> None:
            if progress is None:
                live.remove(name)
                return
            of = "" if progress.total is None else f"/{progress.total:,}"
            live.update(name, progress.step, progress.total, f"{progress.step:,}{of}  loss {progress.nats:.3f}")

        try:
            with closing(live), stop_on_signals(workers, live):
                yield show
        finally:
            self._board = None
