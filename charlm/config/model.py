"""The section ``model`` of a recipe. The cells and their options come from :mod:`charlm.cells`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from charlm import cells
from charlm.config.values import FIXED, MAX_LAYERS, MAX_WIDTH, OneOf, Probability, Section


def _option(key: str) -> OneOf:
    return OneOf(tuple(map(str, cells.option_values(key))))


class ModelSection(Section):
    """The network: layers of one recurrent cell between an input lookup and an output layer."""

    cell: Annotated[str, OneOf(cells.cell_names()), Field(json_schema_extra=FIXED)] = "lstm"
    """The recurrent cell."""
    variant: Annotated[
        str,
        _option("variant"),
        Field(description=f"Form of {cells.option_help('variant')}.", json_schema_extra=FIXED),
    ] = "vanilla"
    hidden: Annotated[int, Field(ge=1, le=MAX_WIDTH, json_schema_extra=FIXED)] = 512
    """Hidden units H of each layer."""
    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS, json_schema_extra=FIXED)] = 1
    """Number of stacked recurrent layers L."""
    dropout: Probability = 0.3
    """Dropout probability on the output of each layer."""
    input_dropout: Probability = 0.0
    """Dropout probability on the embedding, with one mask per training step (Gal & Ghahramani 2016)."""
    locked_dropout: bool = False
    """`dropout` zeroes the same units at every time step of a stream (Gal & Ghahramani 2016), not new ones at each."""
    weight_drop: Probability = 0.0
    """Dropout probability on the recurrent weights, with one mask per training step (Wan et al. 2013; Merity et al. 2018)."""
    residual: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Each layer but the first adds its input to its output (He et al. 2016)."""
    attention: Annotated[int, Field(ge=0, le=MAX_WIDTH, json_schema_extra=FIXED)] = 0
    """Attention window: past outputs that the last layer attends to, with one head (Merity 2019); 0: no attention."""
    engine: Literal["auto", "reference", "torch", "native"] = "auto"
    """Implementation of the cell: `reference` (readable), `torch` (PyTorch's kernels), `native` (charlm's, CPU), or `auto`."""
    nonlinearity: Annotated[str, _option("nonlinearity"), Field(json_schema_extra=FIXED)] = "tanh"
    """Activation of the plain RNN."""
    reset_after: Annotated[bool, Field(json_schema_extra=FIXED)] = True
    """GRU: apply the reset gate after the recurrent product (PyTorch, cuDNN) or before it (Cho et al. 2014)."""
    input: Annotated[Literal["embedding", "one-hot"], Field(json_schema_extra=FIXED)] = "embedding"
    """Input representation: a learned embedding, which trains much faster, or a one-hot vector (width V)."""
    embedding: Annotated[int | None, Field(ge=1, le=MAX_WIDTH, json_schema_extra=FIXED)] = None
    """Width D of the embedding. Unset: `hidden`."""
    tied: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Share the embedding matrix with the output layer (Press & Wolf 2017); needs `embedding` = `hidden`."""
    forget_bias: Annotated[float | None, Field(ge=-1000, le=1000)] = 1.0
    """Initial bias of the LSTM's forget gate (Jozefowicz et al. 2015); null: set by `init`."""
    init: Literal["pytorch", "normal", "orthogonal"] = "pytorch"
    """Initial weights: uniform(±1/√H), normal(0, 0.01) with zero biases (d2l), or orthogonal recurrent matrices."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelSection:
        for key in cells.option_keys():
            owners, is_default = cells.cells_with(key), getattr(self, key) == cells.option_default(key)
            # Recipes and checkpoints of other cells have always been allowed to contain reset_after: false.
            if not is_default and self.cell not in owners and key != "reset_after":
                raise ValueError(f"{key} belongs to cell: {' or '.join(owners)}, not to cell: {self.cell}")
        entry = cells.entry_of(self)
        if self.engine not in ("auto", "reference", *entry.kernels):
            raise ValueError(f"engine: {self.engine} has no {entry.title}; use engine: auto or reference")
        if self.weight_drop and "weight_hh" not in entry.parameters:
            raise ValueError(f"weight_drop drops weights of weight_hh, which the {entry.title} does not have; remove it")
        if self.input == "one-hot" and (self.tied or self.embedding or self.input_dropout):
            raise ValueError("tied, embedding and input_dropout need an embedding; remove input: one-hot")
        if self.tied and self.embedding not in (None, self.hidden):
            raise ValueError(f"tied: true needs embedding = hidden, found {self.embedding} and {self.hidden}")
        return self
