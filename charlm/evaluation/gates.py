"""What the gates of a model do while it reads a text, how long each unit remembers, and how fast its state changes.

A gate that keeps the old state, the LSTM's f or the GRU's z (:func:`charlm.model.cells.gru`: z near 1 keeps), multiplies it
by its value at each step. After k steps the part Π f ≈ f̄^k is left, which is 1/e after

    −1 / ln f̄    steps        f̄: the unit's mean gate over the text

This is the unit's memory length: the time constant of an exponential decay (Tallec & Ollivier 2018, "Can recurrent neural
networks warp time?"). The change of a state from one step to the next is ‖x_t − x_{t−1}‖ / ‖x_t‖, x: h or c of a layer.

The gates are computed by the equations that the reference engine runs (:data:`charlm.model.cells.GATES`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charlm.data.dataset import Text
from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.carried import states_before
from charlm.model.cells import CANDIDATES, GATES, KEEP_GATES
from charlm.model.language_model import LanguageModel, activation_bytes
from charlm.model.recording import Recorded, with_record
from charlm.progress import Progress
from charlm.threads import Tuner

BINS = 20
"""Of a histogram, from 0 to 1."""

LOW, HIGH = 0.1, 0.9
"""A gate below the one is nearly closed, above the other nearly open."""

_STREAMS = 64  # pieces of the text that are read side by side
_SHORTEST = 256  # characters of a piece
_BYTES = 128 << 20  # of states and gates at a time

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gate:
    """A gate of a layer: all its units at all steps.

    Attributes:
        layer: from 0, the lowest.
        name: as in the equations: ``i``, ``f``, ``o``; ``r``, ``z``.
        histogram: ``(20,)`` shares of the values, from 0 to 1 in steps of 0.05.
        below, above: shares of the values below 0.1 and above 0.9.
        unit_means: ``(H,)`` the mean of each unit.
        keeps: it multiplies the old state, so that the unit has a memory length.
    """

    layer: int
    name: str
    histogram: Vector = field(repr=False)
    below: float
    above: float
    unit_means: Vector = field(repr=False)
    keeps: bool

    @property
    def mean(self) -> float:
        """The mean of all values."""
        return float(self.unit_means.mean())

    @property
    def memory(self) -> Vector | None:
        """Memory length of each unit in steps, ``(H,)``; infinite where the gate never closed. ``None``: it keeps nothing."""
        if not self.keeps:
            return None
        with np.errstate(divide="ignore"):
            return np.asarray(1 / np.abs(np.log(self.unit_means)))

    def longest(self, count: int) -> list[int]:
        """The units with the longest memory, the longest first."""
        return [int(unit) for unit in np.argsort(-self.unit_means, kind="stable")[:count]]


@dataclass(frozen=True)
class Change:
    """Mean of ‖x_t − x_{t−1}‖ / ‖x_t‖ for one part of a layer's state; 0: it never changes. Steps with x_t = 0 do not count."""

    layer: int
    state: str
    mean: float


@dataclass(frozen=True)
class GateReport:
    """The gates of a model on a text.

    Attributes:
        steps: characters whose gates were counted.
        gates: for each layer, each of its gates; empty for a plain RNN, which has none.
        changes: for each layer, each part of its state.
    """

    steps: int
    gates: tuple[Gate, ...]
    changes: tuple[Change, ...]


class _GateSums:
    """A gate's histogram and sums, while the text is read."""

    def __init__(self, units: int) -> None:
        self.histogram = np.zeros(BINS)
        self.below = self.above = 0
        self.units = np.zeros(units)

    def add(self, values: Tensor) -> None:
        """Count ``(T, B, H)`` values."""
        self.histogram += torch.histc(values, BINS, 0, 1).cpu().numpy()
        self.below += int((values < LOW).sum())
        self.above += int((values > HIGH).sum())
        self.units += values.double().sum(dim=(0, 1)).cpu().numpy()


class _ChangeSums:
    """The relative changes of a part of the state, while the text is read."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, states: Tensor) -> None:
        """Count the changes between ``(T + 1, B, H)`` states."""
        sizes = torch.linalg.vector_norm(states[1:], dim=-1)
        counts = sizes != 0  # NaN counts, so that it is noticed
        changes = torch.linalg.vector_norm(states[1:] - states[:-1], dim=-1)[counts] / sizes[counts]
        self.sum += float(changes.double().sum())
        self.count += len(changes)


def gates(model: LanguageModel, text: Text, *, progress: Progress | None = None) -> GateReport:
    """Read a text, with the state carried from its first character, and watch the gates.

    The text is read twice: once with the model's own engine, which yields the states at the beginnings of 64 pieces, then
    the pieces side by side with the reference equations. At least the first character, at most the first 64, only set the
    state.

    Args:
        text: N characters.

    Raises:
        UsageError: the text has several records.
        CorpusError: the text has fewer than two characters.
        DivergedError: states or gates are NaN or infinite.
    """
    text.require_one_stream()
    N = len(text)
    if N < 2:
        raise CorpusError(f"the text has {N} characters; at least two are needed, the first only sets the state")
    S = max(1, min(_STREAMS, (N - 1) // _SHORTEST))
    length = (N - 1) // S
    starts = N - S * length + np.arange(S) * length
    warmed = int(starts[-1])

    def told(characters: int) -> None:
        if progress is not None:
            progress(characters, warmed + S * length)

    state = states_before(model, text, starts.tolist(), lambda done, _: told(done))
    H, entry = model.section.hidden, model.layers[0].entry
    counted = [gate for gate in entry.gates if gate not in CANDIDATES] if entry.name in GATES else []
    sums = {(layer, gate): _GateSums(H) for layer in range(len(model.layers)) for gate in counted}
    changes = {(layer, name): _ChangeSums() for layer in range(len(model.layers)) for name in entry.state}
    T = max(1, _BYTES // activation_bytes(model.section, model.vocabulary_size, S, 1, "fp32", "reference"))
    tuner = Tuner("evaluation", invariant=False)
    with torch.no_grad():
        for at in range(0, length, T):
            steps = min(T, length - at)
            ids = np.stack([text.ids(start + at, start + at + steps) for start in starts.tolist()], axis=1)
            recording, engine = with_record(model)
            with tuner.piece(ids.size):
                _, state = recording.features(torch.from_numpy(ids).to(state[0].device), state)
                for layer, record in enumerate(engine.recorded):
                    _add(layer, record, sums, changes)
            told(warmed + (at + steps) * S)
    values = S * length * H
    report = GateReport(
        S * length,
        tuple(
            Gate(layer, name, each.histogram / values, each.below / values, each.above / values,
                 each.units / (S * length), name in KEEP_GATES)
            for (layer, name), each in sums.items()
        ),
        tuple(Change(layer, name, each.sum / max(1, each.count)) for (layer, name), each in changes.items()),
    )  # fmt: skip
    if not np.isfinite([*(gate.mean for gate in report.gates), *(change.mean for change in report.changes)]).all():
        raise DivergedError("the model's states are NaN or infinite: its weights have grown too large")
    return report


def _add(
    layer: int, record: Recorded, sums: dict[tuple[int, str], _GateSums], changes: dict[tuple[int, str], _ChangeSums]
) -> None:
    """Count a layer's steps."""
    for part, name in enumerate(record.entry.state):
        changes[layer, name].add(torch.stack([state[part] for state in record.states]))
    for gate, values in record.gates().items():
        if gate not in CANDIDATES:
            sums[layer, gate].add(values)
