"""Writes a checkpoint: equal contents give equal files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from charlm import __version__
from charlm.checkpoint.contents import AVERAGE, FORMAT, OPTIMIZER, STATE, WEIGHTS, Checkpoint, checksum
from charlm.errors import CheckpointError
from charlm.files import to_json, whole_path


def save(path: Path, checkpoint: Checkpoint, *, keep: Path | None = None) -> None:
    """Write a checkpoint atomically: ``path`` is always either the whole old file or the whole new one.

    Args:
        keep: a name in the same folder for the file that was at ``path``.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    tensors = {WEIGHTS + name: tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {OPTIMIZER + name: tensor for name, tensor in checkpoint.optimizer.items()}
    tensors |= {AVERAGE + name: tensor for name, tensor in checkpoint.average.items()}
    tensors |= {f"{STATE}{index}": tensor for index, tensor in enumerate(checkpoint.state)}
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    description = {
        "format": FORMAT,
        "charlm": __version__,
        "recipe": checkpoint.recipe.model_dump(mode="json"),
        "vocabulary": checkpoint.vocabulary.to_json(),
        "corpus": checkpoint.corpus,
        "resolved": checkpoint.resolved,
        "progress": checkpoint.progress,
    }
    text = to_json(description)
    metadata = {"charlm": text, "sha256": checksum(text, tensors)}
    try:
        with whole_path(path, keep=keep) as new:
            save_file(tensors, new, metadata=metadata)
            _order_metadata(new, metadata["sha256"])
            # safetensors creates files that only their owner can read; a checkpoint gets the permissions of its folder.
            new.chmod(path.parent.stat().st_mode & 0o666)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}; earlier files are unchanged") from None


def _order_metadata(path: Path, sha256: str) -> None:
    """Put the checksum after the description: safetensors orders the two at random, but equal runs must give equal files."""
    begin, first = '{"__metadata__":{', f'"sha256":"{sha256}",'
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = file.read(size).decode("utf-8")
        if header.startswith(begin + first):
            second = len(begin + first)
            _, end = json.JSONDecoder().raw_decode(header, second + len('"charlm":'))
            header = f"{begin}{header[second:end]},{first[:-1]}{header[end:]}"
            file.seek(8)
            file.write(header.encode())
