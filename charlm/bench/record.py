"""The cases of a benchmark and its results."""

from __future__ import annotations

import math
from dataclasses import dataclass

from charlm.cells import cell_names, entry_of
from charlm.config import ModelSection

KINDS = ("train", "evaluate", "sample")
CELLS = cell_names()
TORCH_NN = "torch.nn"
"""In place of an engine's name: the same program without charlm."""


@dataclass(frozen=True)
class Shape:
    """The size of the network and of a training step; by default that of d2l's experiment on The Time Machine.

    Attributes:
        hidden: H units of each layer.
        symbols: V.
        seq_length: T time steps of a training step.
        batch: B streams of a training step.
        layers: L.
    """

    hidden: int = 256
    symbols: int = 28
    seq_length: int = 35
    batch: int = 32
    layers: int = 1

    def flop_per_character(self, cell: str) -> int:
        """Minimum floating-point operations to train on one character: 6 per weight in a product (2 forward, 4 backward).

        The input weights of the first layer are in no product: a one-hot vector selects one column of them.
        """
        entry, H = entry_of(section_of(cell, self)), self.hidden
        matrices = {name: math.prod(shape) for name, shape in entry.shapes(H, H).items() if len(shape) > 1}
        looked_up = sum(size for name, size in matrices.items() if "D" in entry.parameters[name])
        return 6 * (sum(matrices.values()) * self.layers - looked_up + H * self.symbols)


def section_of(cell: str, shape: Shape) -> ModelSection:
    """The network of a case: one-hot input, no dropout."""
    return ModelSection.model_validate(
        {"cell": cell, "hidden": shape.hidden, "layers": shape.layers, "input": "one-hot", "dropout": 0.0}
    )


@dataclass(frozen=True)
class Configuration:
    """One case: a row of the result."""

    kind: str
    cell: str
    engine: str
    precision: str


@dataclass(frozen=True)
class NotRun:
    """A case that is left out, and why."""

    cell: str
    engine: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Speed:
    """Work per second: median, lowest and highest over the turns."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row(Configuration):
    """The result of one case.

    Attributes:
        characters_per_second: the median over the repetitions.
        low, high: the slowest and the fastest repetition.
        share_of_ceiling: training only: its operations per second ÷ those of the fastest matrix product.
        ratio_to_torch_nn: speed ÷ that of torch.nn in fp32; ``None``: torch.nn does not have the cell.
        peak_memory_bytes: see :func:`charlm.bench.memory.peak_memory`; ``None``: not measured.
    """

    characters_per_second: float
    low: float
    high: float
    repetitions: int
    share_of_ceiling: float | None
    ratio_to_torch_nn: float | None
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Report:
    """The result of a sweep.

    Attributes:
        machine: the processor's or GPU's name.
        native: the instruction set that the native engine uses here, or why it cannot be used.
        gemm_gflops: precision → 10⁹ operations per second of the fastest matrix product; ``None``: not measured.
        other_cores: processor cores that other processes used meanwhile; ``None``: unknown on this system.
        warnings: reasons why the results may be too low.
    """

    machine: str
    device: str
    threads: int
    torch: str
    native: str
    gemm_gflops: dict[str, float | None]
    shape: Shape
    rows: list[Row]
    not_run: list[NotRun]
    other_cores: float | None
    warnings: list[str]
