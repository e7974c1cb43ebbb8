"""What a report knows of a run: its model, its log and its samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from charlm.comparison.results import learning_curve, records
from charlm.evaluation.texts import EvaluationText, read_part
from charlm.loaded import Model, load
from charlm.report.charts import Series
from charlm.run_files import SAMPLES

_HEADING = re.compile(r"^━━━ step (\d{1,15}), (.*) ━━━\n", re.MULTILINE)

_RESULTS = (
    "measured_on", "nats_per_character", "bits_per_character", "perplexity", "train_nats", "parameters", "step", "seconds",
    "stopped_because", "device", "engine", "precision",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: its folder's.
        model: its best weights.
        log: the lines of ``metrics.jsonl``.
    """

    name: str
    model: Model = field(repr=False)
    log: Sequence[dict[str, Any]] = field(repr=False)

    @cached_property
    def validation(self) -> EvaluationText:
        """The validation text, opened once.

        Raises:
            CharlmError: it is not available, or too short.
        """
        return read_part(self.model.checkpoint, self.model.path, "validation")

    @property
    def final(self) -> dict[str, Any]:
        """The last final record with all of its results; empty if the run has not ended."""
        found = [line for line in self.log if line["kind"] == "finished"]
        return found[-1] if found and all(found[-1].get(key) is not None for key in _RESULTS) else {}

    def curves(self, prefix: str = "") -> list[Series]:
        """Nats per character against steps: training and validation."""
        found = []
        for kind in ("training", "validation"):
            points = [(float(point.step), point.nats) for point in learning_curve(self.log, kind)]
            found.append(Series(f"{prefix}{kind}", points, dots=kind == "validation"))
        return [series for series in found if series.points]

    def logged(self, key: str) -> list[tuple[float, float]]:
        """A number of every step's record against the step, thinned to about 400 points."""
        steps = [line for line in self.log if line["kind"] == "step" and line.get(key) is not None]
        return [(float(line["step"]), float(line[key])) for line in steps[:: max(1, len(steps) // 400)]]

    def samples(self) -> list[tuple[int, str, str]]:
        """The texts written during training: (step, the rest of the heading, text)."""
        path = self.model.path.parent / SAMPLES
        if not path.is_file():
            return []
        content = path.read_text(encoding="utf-8", errors="replace")
        parts = _HEADING.split(content)[1:]
        return [(int(step), rest, text.rstrip("\n")) for step, rest, text in zip(*[iter(parts)] * 3, strict=True)]


def open_run(name: str) -> Run:
    """Open a run, or a checkpoint alone.

    Args:
        name: as :func:`charlm.load` takes it.

    Raises:
        CharlmError: there is none, or it cannot be read.
    """
    model = load(name, "cpu")
    folder = model.path.resolve().parent
    return Run(folder.name or "run", model, records(folder))
