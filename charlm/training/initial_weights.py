"""Initial weights from another run's checkpoint."""

from __future__ import annotations

import torch

from charlm.cells import option_keys
from charlm.checkpoint import Checkpoint
from charlm.data.vocabulary import Vocabulary, describe_characters
from charlm.errors import CheckpointError
from charlm.model.language_model import LanguageModel, embedding_width


def transplant(model: LanguageModel, vocabulary: Vocabulary, initial: Checkpoint) -> str:
    """Copy the weights of another run into a model. Rows and columns of a symbol go to the same symbol.

    Symbols that the other run's vocabulary lacks keep their initial weights.

    Args:
        model: initialised.
        vocabulary: of the model.
        initial: the other run's checkpoint.

    Returns:
        A notice for the user: how many symbols were mapped, and which are new.

    Raises:
        CheckpointError: the networks differ in cell, width, layers or input.
    """
    here, there = model.section, initial.recipe.model
    differing = [
        f"model.{key}: {getattr(there, key)} there, {getattr(here, key)} here"
        for key in ("cell", "hidden", "layers", "tied", *option_keys(), "residual", "attention")
        if getattr(here, key) != getattr(there, key)
    ]
    widths = [embedding_width(section) or "one-hot" for section in (there, here)]
    if widths[0] != widths[1]:
        differing.append(f"model.input: {widths[0]} there, {widths[1]} here")
    if differing:
        raise CheckpointError("the initial weights are from another network: " + "; ".join(differing))

    shared = [symbol for symbol in vocabulary.symbols if initial.vocabulary.id_of(symbol) is not None]
    pairs = [(vocabulary.id_of(symbol), initial.vocabulary.id_of(symbol)) for symbol in shared]
    if vocabulary.unknown_id is not None:
        pairs.append((vocabulary.unknown_id, initial.vocabulary.unknown_id))
    ids, stored_ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    # Name → the dimension whose entries are symbols. With one-hot input that is also the first layer's D.
    symbol_dimensions = {"embedding": 0, "output_weight": 0, "output_bias": 0}
    if model.embedding is None:
        parameters = model.layers[0].entry.parameters
        symbol_dimensions |= {f"layers.0.{name}": shape.index("D") for name, shape in parameters.items() if "D" in shape}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            stored = initial.weights[name]
            if name in symbol_dimensions:
                dimension = symbol_dimensions[name]
                weight.index_copy_(dimension, ids, stored.index_select(dimension, stored_ids))
            elif weight.shape == stored.shape:
                weight.copy_(stored)
            else:
                raise CheckpointError(f"initial weights: {name} is {tuple(stored.shape)} there, {tuple(weight.shape)} here")
    new = [symbol for symbol in vocabulary.symbols if initial.vocabulary.id_of(symbol) is None]
    added = f"; new symbols: {describe_characters(''.join(map(chr, new)))}" if new else "; no new symbols"
    return f"initial weights from step {initial.progress['step']} of another run: {len(shared)} symbols mapped{added}"
