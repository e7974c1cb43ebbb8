"""Writes the metrics of a run for TensorBoard: ``tensorboard --logdir RUN`` shows them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from charlm.errors import UsageError
from charlm.evaluation.perplexity import perplexity
from charlm.run_files import EVENTS_SUFFIX, TENSORBOARD
from charlm.training.events import Evaluated, Event, RunStarted, Sampled, StepDone


class TensorBoard:
    """Writes losses, learning rate, gradient norm, speed and samples to event files in a run's folder, against the step.

    A resumed run adds a file. It makes TensorBoard forget what was written after the checkpoint, and writes nothing for the
    checkpoint's own step, so every step is shown once.

    Args:
        run: the run's folder, which may not exist yet.

    Raises:
        UsageError: the package ``tensorboard`` is not installed, or the place of the event files is not a folder.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "tensorboard: the package is not installed; pip install 'charlm[tensorboard]'", parameter="log"
            ) from None
        self._folder = run / TENSORBOARD
        if self._folder.is_symlink() or (self._folder.exists() and not self._folder.is_dir()):
            raise UsageError(f"tensorboard: {self._folder} is not a folder; remove it, or use another folder", parameter="log")
        self._make_writer = SummaryWriter
        self._writer: Any = None
        self._resumed_from = -1

    def __call__(self, event: Event) -> None:
        """Log one event."""
        match event:
            case RunStarted():
                self._resumed_from = -1 if event.resumed_from is None else event.resumed_from
                self._writer = self._make_writer(
                    str(self._folder), purge_step=self._resumed_from + 1, filename_suffix=EVENTS_SUFFIX
                )
            case StepDone() if event.step > self._resumed_from:
                self._add_scalars(
                    "training",
                    event.step,
                    nats_per_character=event.nats,
                    perplexity=perplexity(event.nats),
                    learning_rate=event.learning_rate,
                    gradient_norm=event.gradient_norm,
                    characters_per_second=event.characters_per_second,
                )
            case Evaluated() if event.step > self._resumed_from:
                scores = {"nats_per_character": event.nats, "perplexity": perplexity(event.nats)}
                self._add_scalars("validation", event.step, **scores)
                self._writer.flush()
            case Sampled() if event.step > self._resumed_from:
                weights = "" if event.best_step is None else ", best weights"
                text = (event.prompt + event.text).encode("utf-8", "backslashreplace").decode("utf-8")
                verbatim = textwrap.indent(text, "    ", lambda line: True)  # TensorBoard renders Markdown
                self._writer.add_text(f"sample/prompt {event.prompt!r}{weights}", verbatim, event.step)
            case _:
                pass

    def _add_scalars(self, group: str, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Write what is pending."""
        if self._writer is not None:
            self._writer.close()
