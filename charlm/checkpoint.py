"""One file holds a model: weights, vocabulary, configuration; and, in ``last``, all that going on needs.

The file is in the safetensors format: tensors, and a JSON text under the metadata key ``charlm``. Nothing is ever
unpickled. A checksum covers metadata and tensors. No absolute path, user or host name and no time of day goes in.

It is written atomically (:mod:`charlm.files`): at any moment a reader, also after a power failure, finds either the old
file whole or the new one whole.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from charlm import __version__
from charlm.config import Recipe, is_path, validate_recipe
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CharlmError, CheckpointError, UsageError
from charlm.files import is_utf8, to_json, whole_path
from charlm.model.cells import State
from charlm.model.engines import resolve_engine
from charlm.model.language_model import LanguageModel

FORMAT = 1
"""Version of the file's layout; a file of another version is refused."""

RUNS = Path("checkpoints")
"""Where runs are written and looked for by name, from the current folder."""

_WEIGHTS, _OPTIMIZER, _STATE, _AVERAGE = "model.", "optimizer.", "state.", "average."


@dataclass(frozen=True)
class Checkpoint:
    """A model at one moment.

    Attributes:
        recipe: as the run resolved it; a corpus given by an absolute path is reduced to its name.
        vocabulary: of the model.
        corpus: what identifies the text (:meth:`charlm.data.dataset.Dataset.fingerprint`).
        resolved: what ``auto`` became: engine, precision, threads.
        progress: counters: step, epoch, position, best figures.
        weights: parameter name → tensor.
        optimizer: ``parameter/slot`` → tensor; empty where the file is only to be used, not gone on from.
        state: the carried state of all B streams; empty likewise.
        average: the weights' moving average, parameter name → tensor; empty likewise, and where the recipe has none.
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
            engine: its name; ``None``: the fastest here, since all agree and what trained it may not be here.
        """
        fastest, _ = resolve_engine(self.recipe.model.model_copy(update={"engine": "auto"}), device)
        model = LanguageModel(self.recipe.model, len(self.vocabulary), engine or fastest)
        fill(model, self.weights)
        model.to(device)
        model.flatten_for_cudnn()
        return model


def fill(model: LanguageModel, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model's own memory.

    Copied, not adopted: tensors that lie in a memory-mapped file are aligned differently, and other alignments can take
    other kernels and give other last bits.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = dict(model.named_parameters())
    if own.keys() != weights.keys():
        raise CheckpointError(f"the checkpoint's weights {sorted(weights)} are not this model's {sorted(own)}")
    with torch.no_grad():
        for name, weight in own.items():
            if weight.shape != weights[name].shape:
                raise CheckpointError(
                    f"{name}: the checkpoint has shape {tuple(weights[name].shape)}, the model {tuple(weight.shape)}"
                )
            weight.copy_(weights[name])


def save(path: Path, checkpoint: Checkpoint, *, keep: Path | None = None) -> None:
    """Write a checkpoint so that ``path`` is at every moment either the old file or the new one, whole.

    Args:
        keep: a name in the same folder for the file that was at ``path``.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    tensors = {_WEIGHTS + name: tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {_OPTIMIZER + name: tensor for name, tensor in checkpoint.optimizer.items()}
    tensors |= {_AVERAGE + name: tensor for name, tensor in checkpoint.average.items()}
    tensors |= {f"{_STATE}{index}": tensor for index, tensor in enumerate(checkpoint.state)}
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    described = {
        "format": FORMAT,
        "charlm": __version__,
        "recipe": checkpoint.recipe.model_dump(mode="json"),
        "vocabulary": checkpoint.vocabulary.to_json(),
        "corpus": checkpoint.corpus,
        "resolved": checkpoint.resolved,
        "progress": checkpoint.progress,
    }
    text = to_json(described)
    metadata = {"charlm": text, "sha256": _checksum(text, tensors)}
    try:
        with whole_path(path, keep=keep) as new:
            save_file(tensors, new, metadata=metadata)
            _order_metadata(new, metadata["sha256"])
            # safetensors makes files that only their owner can read; a checkpoint is as open as its folder.
            new.chmod(path.parent.stat().st_mode & 0o666)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}; what was there before is untouched") from None


def _order_metadata(path: Path, sha256: str) -> None:
    """Put the checksum behind the description: safetensors' order is random, and equal runs shall end in equal files."""
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


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: missing, not a checkpoint, truncated, damaged, or of another format version.
    """
    text, sha256 = _metadata(path)
    described = _described(path, text)
    try:
        with _opened(path) as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if _checksum(text, tensors) != sha256:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum; use another copy")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    try:
        return Checkpoint(
            recipe=validate_recipe(described["recipe"], f"the recipe inside {path}"),
            vocabulary=Vocabulary.from_json(described["vocabulary"]),
            corpus=described["corpus"],
            resolved=described["resolved"],
            progress=described["progress"],
            weights=part(_WEIGHTS),
            optimizer=part(_OPTIMIZER),
            state=tuple(tensor for _, tensor in sorted(part(_STATE).items())),
            average=part(_AVERAGE),
        )
    except (KeyError, CharlmError) as error:
        raise CheckpointError(f"{path} was written by another version of charlm: {error}") from None


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, with the shapes of its tensors, read without its weights.

    Raises:
        CheckpointError: as :func:`load`, but the checksum is not verified.
    """
    text, sha256 = _metadata(path)
    with _opened(path) as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    return {**_described(path, text), "sha256": sha256, "bytes": path.stat().st_size, "tensors": shapes}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """``safe_open``, which takes only paths that are UTF-8, for any path."""
    with path.open("rb") as file:
        name = path if is_utf8(str(path)) else Path(f"/proc/self/fd/{file.fileno()}")
        with safe_open(name, framework="pt") as opened:
            yield opened


def _metadata(path: Path) -> tuple[str, str]:
    """The JSON text and the checksum, read from the file's head alone; says plainly what else the file is."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    # A safetensors file begins with its header's length, whose first byte can be anything, and then `{`.
    if head[8:] != b"{" and (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"):
        raise CheckpointError(f"{path} is a pickle (torch.save) file; charlm reads safetensors only and never unpickles")
    size = path.stat().st_size
    if len(head) < 9 or not 2 <= struct.unpack("<Q", head[:8])[0] <= 100_000_000:
        raise CheckpointError(f"{path} is not a charlm checkpoint: no safetensors header in its {size} bytes")
    try:
        with _opened(path) as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({size:,} bytes): {error}") from None
    if "charlm" not in metadata:
        raise CheckpointError(f"{path} holds tensors, but was not written by charlm")
    return metadata["charlm"], metadata.get("sha256", "")


def _described(path: Path, text: str) -> dict[str, Any]:
    try:
        described = json.loads(text)
        found = described["format"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is damaged: its description is not readable") from None
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has format version {found}, this charlm reads version {FORMAT}; use the charlm that wrote it"
        )
    assert isinstance(described, dict)
    return described


def find_checkpoint(name: str) -> Path:
    """Turn what a user typed into a checkpoint's file: a file, a run's folder (its best), or a run's name.

    Raises:
        UsageError: none of these; says where was looked.
    """
    path = Path(name).expanduser()
    by_name = not is_path(name) and ((RUNS / name).is_dir() or not path.is_dir())
    folder = RUNS / name if by_name else path
    if folder.is_file():
        return folder
    for candidate in ("best.safetensors", "last.safetensors", "previous.safetensors"):
        if (folder / candidate).is_file():
            return folder / candidate
    if folder.is_dir():
        raise UsageError(f"the folder {folder} holds no checkpoint (best.safetensors or last.safetensors)")
    runs = sorted(found.parent.name for found in RUNS.glob("*/last.safetensors")) if RUNS.is_dir() else []
    known = f"; runs here: {', '.join(runs)}" if runs else f"; there are no runs in {RUNS}/ here"
    raise UsageError(f"no checkpoint: {folder} does not exist{known}")
