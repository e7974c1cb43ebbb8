"""The parameters of a recurrent layer and of a network, as engines use them.

D input width    H hidden units    V symbols
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from charlm.cells import entry_of
from charlm.config import ModelSection


class RecurrentLayer(nn.Module):
    """One layer's parameters: as declared in the cell's entry, in PyTorch's layout if PyTorch has the cell.

    Args:
        model: the recipe's section, which chooses the cell.
        width: D.
    """

    # For the type checker; cells without one of these have no kernel that needs it.
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    weight_peephole: Tensor

    def __init__(self, model: ModelSection, width: int) -> None:
        super().__init__()
        self.entry = entry_of(model)
        self.width = width
        for name, shape in self.entry.shapes(model.hidden, width).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))


class Network(Protocol):
    """The parameters of :class:`charlm.model.language_model.LanguageModel`."""

    section: ModelSection

    @property
    def layers(self) -> Sequence[RecurrentLayer]:
        """The recurrent layers, the lowest first."""

    @property
    def embedding(self) -> Tensor | None:
        """``(V, D)``; ``None``: one-hot input."""

    @property
    def output_bias(self) -> Tensor:
        """``(V,)``."""

    def parameters(self) -> Iterator[Tensor]:
        """All parameters."""

    def output_matrix(self) -> Tensor:
        """``(V, H)``."""
