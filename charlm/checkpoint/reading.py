"""Reads and verifies a checkpoint. A file can come from a stranger, so nothing in it is trusted."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from charlm.checkpoint.contents import AVERAGE, FORMAT, OPTIMIZER, STATE, WEIGHTS, Checkpoint, checksum
from charlm.checkpoint.schema import Infos, validate
from charlm.config import with_present_names
from charlm.errors import CheckpointError
from charlm.files import is_utf8


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: it is missing, not a checkpoint, truncated, damaged, or of another format version; its tensors do
            not fit its recipe; or its weights are not finite.
    """
    text, sha256 = _metadata(path)
    description = _parse(path, text)
    with _opened(path) as file:
        recipe, vocabulary = validate(path, description, _tensor_infos(file))
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    if checksum(text, tensors) != sha256:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum; use another copy")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    weights, average = part(WEIGHTS), part(AVERAGE)
    if not all(bool(torch.isfinite(weight).all()) for weight in (*weights.values(), *average.values())):
        raise CheckpointError(
            f"the weights of {path} contain NaN or infinite values; use an earlier checkpoint, or train again with a lower "
            "learning rate"
        )
    return Checkpoint(
        recipe=recipe,
        vocabulary=vocabulary,
        corpus=description["corpus"],
        resolved=description["resolved"],
        progress=description["progress"],
        weights=weights,
        optimizer=part(OPTIMIZER),
        state=tuple(tensors[f"{STATE}{index}"] for index in range(len(part(STATE)))),
        average=average,
    )


def describe(path: Path) -> dict[str, Any]:
    """The description of a checkpoint, with the shapes of its tensors; the weights are not read.

    Raises:
        CheckpointError: as for :func:`load`, but neither the checksum nor the values of the weights are verified.
    """
    text, sha256 = _metadata(path)
    description = _parse(path, text)
    with _opened(path) as file:
        infos = _tensor_infos(file)
    validate(path, description, infos)
    shapes = {name: list(shape) for name, (_, shape) in sorted(infos.items())}
    return {**description, "sha256": sha256, "bytes": path.stat().st_size, "tensors": shapes}


def _tensor_infos(file: Any) -> Infos:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """``safe_open`` for any path; by itself, it takes UTF-8 paths only.

    Raises:
        CheckpointError: the file is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            name = path if is_utf8(str(path)) else Path(f"/proc/self/fd/{file.fileno()}")
            with safe_open(name, framework="pt") as opened:
                yield opened
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({path.stat().st_size:,} bytes): {error}") from None


def _metadata(path: Path) -> tuple[str, str]:
    """The JSON text and the checksum, from the header alone.

    Raises:
        CheckpointError: the file is missing or of another kind, which the message names.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    # A safetensors file begins with its header's length, whose first byte can be anything, and then `{`.
    if len(head) == 9 and head[8:] != b"{" and (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"):
        raise CheckpointError(f"{path} is a pickle (torch.save) file; charlm reads safetensors only and never unpickles")
    size = path.stat().st_size
    if len(head) < 9 or not 2 <= struct.unpack("<Q", head[:8])[0] <= 100_000_000:
        raise CheckpointError(f"{path} is not a charlm checkpoint: no safetensors header in its {size} bytes")
    with _opened(path) as opened:
        metadata = opened.metadata() or {}
    if "charlm" not in metadata:
        raise CheckpointError(f"{path} holds tensors, but was not written by charlm")
    return metadata["charlm"], metadata.get("sha256", "")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        description = json.loads(text, parse_float=_finite, parse_constant=_finite)
        version = description["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is damaged: its description is not readable") from None
    assert isinstance(description, dict)
    if version == 1 and isinstance(description.get("recipe"), dict):
        description["recipe"] = with_present_names(description["recipe"])
    elif version != FORMAT:
        raise CheckpointError(
            f"{path} has format version {str(version)[:60]}, this charlm reads 1 to {FORMAT}; use the charlm that wrote it"
        )
    return description


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number
