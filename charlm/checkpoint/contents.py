"""What a checkpoint contains, as a value; it knows nothing of files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from charlm.config import Recipe
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CheckpointError
from charlm.model.cells import State
from charlm.model.engines import resolve_engine
from charlm.model.language_model import LanguageModel

FORMAT = 2
"""Version of the file's layout. Format 1 has other names for some keys of the recipe, and can be read too."""

WEIGHTS, OPTIMIZER, STATE, AVERAGE = "model.", "optimizer.", "state.", "average."
"""Prefixes of the tensors' names in the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A model, and the training state that produced it.

    Attributes:
        recipe: with the run's defaults filled in; absolute paths are reduced to names.
        vocabulary: of the model.
        corpus: identifies the text (:meth:`charlm.data.dataset.Dataset.fingerprint`).
        resolved: the values of ``auto``: engine, precision, threads.
        progress: counters: step, epoch, position, best losses.
        weights: parameter name → tensor.
        optimizer: ``parameter/slot`` → tensor; empty in a file that holds weights only.
        state: the carried state of all B streams; empty in a file that holds weights only.
        average: moving average of the weights, parameter name → tensor; empty in a file that holds weights only, and if the
            recipe has no average.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    corpus: dict[str, Any]
    resolved: dict[str, Any]
    progress: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    optimizer: dict[str, Tensor] = field(default_factory=dict, repr=False)
    state: State = field(default=(), repr=False)
    average: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def model(self, device: torch.device, engine: str | None = None) -> LanguageModel:
        """Build the network with these weights, on a device.

        Args:
            engine: its name; ``None``: the fastest engine here. (All engines agree, and the one that trained these weights
                may not be available.)
        """
        fastest, _ = resolve_engine(self.recipe.model.model_copy(update={"engine": "auto"}), device)
        model = LanguageModel(self.recipe.model, len(self.vocabulary), engine or fastest)
        copy_weights(model, self.weights)
        model.to(device)
        model.flatten_for_cudnn()
        return model


def copy_weights(model: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model's own memory.

    Memory-mapped tensors are aligned differently. Using them directly could select other kernels, which round differently.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = dict(model.named_parameters())
    if own.keys() != weights.keys():
        raise CheckpointError(f"the checkpoint has the weights {sorted(weights)}, the model {sorted(own)}")
    with torch.no_grad():
        for name, weight in own.items():
            if weight.shape != weights[name].shape:
                raise CheckpointError(
                    f"{name}: the checkpoint has shape {tuple(weights[name].shape)}, the model {tuple(weight.shape)}"
                )
            weight.copy_(weights[name])


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the JSON text and of every tensor: name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
