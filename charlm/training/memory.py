"""The memory that training needs, and that a device has."""

from __future__ import annotations

import os

import torch

from charlm.config import Recipe
from charlm.data.dataset import Dataset
from charlm.data.streams import BatchShape, fit_batch
from charlm.distributed import ALONE, World
from charlm.errors import RecipeError
from charlm.model.language_model import activation_bytes, count_parameters
from charlm.optimizers import OPTIMIZERS
from charlm.training.resolve import Resolved


def training_bytes(
    recipe: Recipe, vocabulary_size: int, shape: BatchShape, precision: str, engine: str, processes: int = 1
) -> int:
    """An estimate of the memory for training in bytes, for each process: weights, gradients, moments, and activations of a part
    of a step."""
    train = recipe.train
    moments = len(OPTIMIZERS[train.optimizer].kept(train.momentum))
    streams = -(-shape.batch // (processes * train.accumulate))
    activations = activation_bytes(recipe.model, vocabulary_size, streams, shape.seq_length, precision, engine)
    return 4 * count_parameters(recipe.model, vocabulary_size) * (2 + moments) + activations


def check_memory(recipe: Recipe, dataset: Dataset, resolved: Resolved, world: World = ALONE) -> None:
    """Refuse a model that is too large for the device, before any of its memory is allocated.

    Raises:
        RecipeError: names the memory that is needed, and the memory of the device.
    """
    start, stop = dataset.splits["train"]
    shape = fit_batch(stop - start - 1, recipe.train.batch, recipe.train.seq_length)
    needed = training_bytes(recipe, len(dataset.vocabulary), shape, resolved.precision, resolved.engine, world.size)
    available = device_memory(resolved.device)
    if available is not None and needed > available:
        raise RecipeError(
            f"training this model takes about {needed / 1e9:,.1f} GB, but {resolved.device} has {available / 1e9:,.1f} GB; "
            "use a smaller model.hidden, model.layers, train.batch or train.seq_length, or a larger train.accumulate"
        )


def device_memory(device: torch.device) -> int | None:
    """The physical memory of a device in bytes; ``None``: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
