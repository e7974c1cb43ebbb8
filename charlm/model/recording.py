"""The reference engine with a record: every state that a layer passes through, as the graph's own tensors.

Gradients with respect to a state, and gates, need what the other engines do not return.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from charlm.cells import CellEntry
from charlm.model.cells import EQUATIONS, GATES, State
from charlm.model.engines import ReferenceEngine
from charlm.model.language_model import LanguageModel
from charlm.model.layers import RecurrentLayer


@dataclass(frozen=True)
class Recorded:
    """A layer's T steps.

    Attributes:
        entry: of its cell.
        x: ``(T, B, …)`` what each step received from below.
        states: T + 1 of them, each part ``(B, H)``: before the first step, and after each one.
        parameters: what each step received besides.
    """

    entry: CellEntry
    x: Tensor
    states: list[State]
    parameters: tuple[Tensor, ...]

    def gates(self) -> dict[str, Tensor]:
        """Gates and candidates by name, each ``(T, B, H)``, by the cell's own equations; empty for a cell that has none."""
        if self.entry.name not in GATES:
            return {}
        # A step sees nothing but its input and the state before it, so all steps are computed at once.
        before = tuple(torch.stack(parts).flatten(0, 1) for parts in zip(*self.states[:-1], strict=True))
        found = GATES[self.entry.name](self.x.flatten(0, 1), before, *self.parameters)
        return {name: part.view(*self.x.shape[:2], -1) for name, part in zip(self.entry.gates, found, strict=True)}


class RecordingEngine(ReferenceEngine):
    """The reference engine; ``recorded`` grows by one entry for each call of a layer, in the order of the layers."""

    def __init__(self) -> None:
        self.recorded: list[Recorded] = []

    def run(
        self, layer: RecurrentLayer, inputs: Tensor, state: State, embedding: Tensor | None, weight_hh: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See :class:`charlm.model.engines.Engine`."""
        entry = layer.entry
        received = self._input_gates if "weight_ih" in entry.parameters else self._vectors
        x = received(layer, inputs, embedding).to(state[0].dtype)
        parameters = tuple(getattr(layer, name) for name in entry.step_parameters)
        states = [state]
        for x_t in x.unbind(0):
            states.append(EQUATIONS[entry.name](x_t, states[-1], *parameters))
        self.recorded.append(Recorded(entry, x, states, parameters))
        return torch.stack([after[0] for after in states[1:]]), states[-1]


def with_record(model: LanguageModel) -> tuple[LanguageModel, RecordingEngine]:
    """The same weights (not copies), executed by an engine that keeps a record."""
    engine = RecordingEngine()
    other = copy.copy(model)
    other.engine = engine
    return other, engine
