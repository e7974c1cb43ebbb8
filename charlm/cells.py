"""The recurrent cells: one entry for each form, without torch and without equations.

The recipe's schema, the help, the engines, ``compare``, ``bench`` and the native engine read these entries. The equations are
in the function of the same name in :mod:`charlm.model.cells`. To add a cell, write both; CONTRIBUTING.md lists the rest.

    H hidden units    D input width    G gates
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

OptionValue = str | bool
"""A value of an option, as in a recipe."""

PYTORCH: Mapping[str, tuple[str, ...]] = {
    "weight_ih": ("G·H", "D"),
    "weight_hh": ("G·H", "H"),
    "bias_ih": ("G·H",),
    "bias_hh": ("G·H",),
}
"""The parameters of PyTorch's cells."""


@dataclass(frozen=True)
class CellEntry:
    """One form of a cell.

    Attributes:
        name: name of this form, and of the function with its equations.
        cell: ``model.cell`` in a recipe.
        options: other keys of ``model`` that choose this form. The first entry of a cell is its default form.
        summary: how this form differs from the others, for the help.
        gates: the blocks of H rows in ``weight_ih``, ``weight_hh`` and the biases, in order. A block called ``f`` is a forget
            gate: ``model.forget_bias`` is the initial bias of its rows.
        state: names of the state tensors. The first, h, is the output.
        parameters: name → shape, each dimension as a multiple of H or D such as ``H``, ``3·H`` or ``G·H``. Some names have the
            same meaning in every cell. With ``weight_ih``, a step receives W_ih·input, plus ``bias_ih``; without it, the input
            itself. ``weight_drop`` and ``init: orthogonal`` apply to ``weight_hh``. The initial bias of the forget gate is in
            the first parameter whose name begins with ``bias``.
        kernels: engine → its kernel for this form. The engine ``reference`` needs none.
    """

    name: str
    cell: str
    options: Mapping[str, OptionValue]
    summary: str
    gates: tuple[str, ...]
    state: tuple[str, ...] = ("h",)
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PYTORCH)
    kernels: Mapping[str, str] = field(default_factory=dict)

    def shapes(self, H: int, D: int) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of a layer."""
        return {name: tuple(self._size(part, H, D) for part in shape) for name, shape in self.parameters.items()}

    def _size(self, dimension: str, H: int, D: int) -> int:
        count, _, unit = dimension.rpartition("·")
        return (len(self.gates) if count == "G" else int(count or 1)) * {"H": H, "D": D}[unit]

    def rows(self, gate: str, H: int) -> slice:
        """The rows of a gate in ``weight_ih``, ``weight_hh`` and the biases."""
        start = self.gates.index(gate) * H
        return slice(start, start + H)

    @property
    def step_parameters(self) -> tuple[str, ...]:
        """The parameters that a step receives, in order: all but those of W_ih·input + b_ih."""
        applied = ("weight_ih", "bias_ih") if "weight_ih" in self.parameters else ()
        return tuple(name for name in self.parameters if name not in applied)

    @property
    def options_text(self) -> str:
        """The options with another value than the default, such as ``reset_after: false``; empty for a default form."""
        return ", ".join(f"{key}: {option_text(value)}" for key, value in self.options.items() if value != option_default(key))

    @property
    def label(self) -> str:
        """The form in a table, such as ``gru (reset_after: false)``."""
        return self.cell + (f" ({self.options_text})" if self.options_text else "")

    @property
    def title(self) -> str:
        """The form in a sentence, such as ``GRU with reset_after: false``."""
        return self.cell.upper() + (f" with {self.options_text}" if self.options_text else "")


CELLS: tuple[CellEntry, ...] = (
    CellEntry(
        name="rnn_tanh",
        cell="rnn",
        options={"nonlinearity": "tanh"},
        summary="Elman 1990",
        gates=("h",),
        kernels={"torch": "rnn_tanh", "native": "rnn_tanh"},
    ),
    CellEntry(
        name="rnn_relu",
        cell="rnn",
        options={"nonlinearity": "relu"},
        summary="Le et al. 2015",
        gates=("h",),
        kernels={"torch": "rnn_relu", "native": "rnn_relu"},
    ),
    CellEntry(
        name="gru",
        cell="gru",
        options={"reset_after": True},
        summary="reset gate after the recurrent product, as in PyTorch and cuDNN",
        gates=("r", "z", "n"),
        kernels={"torch": "gru", "native": "gru"},
    ),
    CellEntry(
        name="gru_reset_before",
        cell="gru",
        options={"reset_after": False},
        summary="reset gate before it, Cho et al. 2014",
        gates=("r", "z", "n"),
        kernels={"native": "gru_reset_before"},
    ),
    CellEntry(
        name="lstm",
        cell="lstm",
        options={"variant": "vanilla"},
        summary="gates i, f and o see the input and h",
        gates=("i", "f", "g", "o"),
        state=("h", "c"),
        kernels={"torch": "lstm", "native": "lstm"},
    ),
    CellEntry(
        name="lstm_peephole",
        cell="lstm",
        options={"variant": "peephole"},
        summary="i, f and o also see the cell state, Gers & Schmidhuber 2000",
        gates=("i", "f", "g", "o"),
        state=("h", "c"),
        parameters={**PYTORCH, "weight_peephole": ("3·H",)},
        kernels={"native": "lstm_peephole"},
    ),
    CellEntry(
        name="lstm_coupled",
        cell="lstm",
        options={"variant": "coupled"},
        summary="input gate = 1 − forget gate, Greff et al. 2017",
        gates=("f", "g", "o"),
        state=("h", "c"),
        kernels={"native": "lstm_coupled"},
    ),
)
"""Every form of every cell."""


class ChoosesCell(Protocol):
    """The section ``model`` of a recipe: ``cell`` and all options."""

    @property
    def cell(self) -> str: ...


def entry_of(model: ChoosesCell) -> CellEntry:
    """The entry of the cell that a recipe chooses.

    Raises:
        ValueError: there is no such form of the cell.
    """
    forms = [entry for entry in CELLS if entry.cell == model.cell]
    for entry in forms:
        if all(getattr(model, key) == value for key, value in entry.options.items()):
            return entry
    keys = dict.fromkeys(key for entry in forms for key in entry.options)
    found = ", ".join(f"{key}: {option_text(getattr(model, key))}" for key in keys)
    raise ValueError(f"there is no cell: {model.cell} with {found}" if found else f"there is no cell: {model.cell}")


def cell_names() -> tuple[str, ...]:
    """The values of ``model.cell``."""
    return tuple(dict.fromkeys(entry.cell for entry in CELLS))


def option_keys() -> tuple[str, ...]:
    """The keys of ``model`` that choose a form."""
    return tuple(dict.fromkeys(key for entry in CELLS for key in entry.options))


def option_values(key: str) -> tuple[OptionValue, ...]:
    """The values of an option, the default first."""
    return tuple(dict.fromkeys(entry.options[key] for entry in CELLS if key in entry.options))


def option_default(key: str) -> OptionValue:
    """The default of an option."""
    return option_values(key)[0]


def cells_with(key: str) -> tuple[str, ...]:
    """The cells that have an option."""
    return tuple(dict.fromkeys(entry.cell for entry in CELLS if key in entry.options))


def option_text(value: OptionValue) -> str:
    """An option's value as in YAML."""
    return str(value).lower() if isinstance(value, bool) else value


def option_help(key: str) -> str:
    """The forms that an option chooses, to follow "Form of": ``cell: lstm``, then each value with its meaning."""
    forms = {
        cell: [
            f"`{option_text(entry.options[key])}` ({entry.summary})"
            for entry in CELLS
            if entry.cell == cell and key in entry.options
        ]
        for cell in cells_with(key)
    }
    return "; of ".join(f"`cell: {cell}`: {', '.join(texts)}" for cell, texts in forms.items())
