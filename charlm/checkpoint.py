"""One file holds a model: weights, vocabulary, configuration; and, in ``last``, all that going on needs.

The file is in the safetensors format: tensors, and a JSON text under the metadata key ``charlm``. Nothing is ever
unpickled. A checksum covers metadata and tensors. No absolute path, user or host name and no time of day goes in.

It is written atomically (:mod:`charlm.files`): at any moment a reader, also after a power failure, finds either the old
file whole or the new one whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from charlm import __version__
from charlm.config import MAX_THREADS, Recipe, is_path, path_of, validate_recipe, with_present_names
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CharlmError, CheckpointError, UsageError
from charlm.files import is_utf8, to_json, whole_path
from charlm.model.cells import State
from charlm.model.engines import resolve_engine
from charlm.model.language_model import LanguageModel, parameter_shapes, state_shapes
from charlm.optimizers import OPTIMIZERS

FORMAT = 2
"""Version of the file's layout. Format 1 had other names for some of the recipe's keys, and is read too."""

RUNS = Path("checkpoints")
"""Where runs are written and looked for by name, from the current folder."""

_WEIGHTS, _OPTIMIZER, _STATE, _AVERAGE = "model.", "optimizer.", "state.", "average."


Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Described(BaseModel):
    """Part of what a checkpoint says of itself. Keys that a later release adds are left alone."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Corpus(_Described):
    name: str
    identity: str
    normalise: str
    sha256: str
    bytes: Count
    characters: Count
    splits: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]]


class _Resolved(_Described):
    engine: Literal["native", "torch", "reference"]
    precision: Literal["fp32", "bf16", "fp16"]
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)]
    device: str


class _Best(_Described):
    nats: float | None
    step: Count | None
    averaged: bool = False


class _Progress(_Described):
    """Counters that every checkpoint has."""

    step: Count
    epoch: Annotated[float, Field(ge=0)]
    characters: Count
    train_nats: float | None
    validation_nats: float | None
    evaluated_at: Count | None = None
    best: _Best


class _FullProgress(_Progress):
    """Those that a resumed run needs too."""

    position: Annotated[list[Count], Field(min_length=2, max_length=2)]
    recent: list[Annotated[tuple[float, Annotated[int, Field(ge=1, lt=2**63)]], Field(strict=False)]]  # JSON has no tuples
    worse_in_a_row: Count
    seconds: Annotated[float, Field(ge=0)]
    loss_scale: Annotated[tuple[Annotated[float, Field(ge=1, le=2.0**24)], Count], Field(strict=False)]
    logs: dict[str, Count]


class _Description(_Described):
    """The JSON text, but for recipe and vocabulary, which have readers of their own."""

    format: Literal[1, 2]
    charlm: str
    recipe: dict[str, Any]
    vocabulary: dict[str, Any]
    corpus: _Corpus
    resolved: _Resolved
    progress: _Progress


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
        CheckpointError: missing, not a checkpoint, truncated, damaged, of another format version, with tensors that are not
            those of its recipe, or with weights that are not finite.
    """
    text, sha256 = _metadata(path)
    described = _parse(path, text)
    with _opened(path) as file:
        recipe, vocabulary = _validate(path, described, _tensor_infos(file))
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    if _checksum(text, tensors) != sha256:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum; use another copy")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    weights, average = part(_WEIGHTS), part(_AVERAGE)
    if not all(bool(torch.isfinite(weight).all()) for weight in (*weights.values(), *average.values())):
        raise CheckpointError(
            f"the weights of {path} contain NaN or infinite values, so it predicts nothing; use an earlier checkpoint, or "
            "train again with a lower learning rate"
        )
    return Checkpoint(
        recipe=recipe,
        vocabulary=vocabulary,
        corpus=described["corpus"],
        resolved=described["resolved"],
        progress=described["progress"],
        weights=weights,
        optimizer=part(_OPTIMIZER),
        state=tuple(tensors[f"{_STATE}{index}"] for index in range(len(part(_STATE)))),
        average=average,
    )


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, with the shapes of its tensors, read without its weights.

    Raises:
        CheckpointError: as :func:`load`, but neither the checksum nor the weights' values are verified.
    """
    text, sha256 = _metadata(path)
    described = _parse(path, text)
    with _opened(path) as file:
        infos = _tensor_infos(file)
    _validate(path, described, infos)
    shapes = {name: list(shape) for name, (_, shape) in sorted(infos.items())}
    return {**described, "sha256": sha256, "bytes": path.stat().st_size, "tensors": shapes}


Infos = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name → (type, shape)."""


def _tensor_infos(file: Any) -> Infos:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}


def _validate(path: Path, described: dict[str, Any], infos: Infos) -> tuple[Recipe, Vocabulary]:
    """Check a description and the tensors' types and shapes, before any of them is read or a model is built."""
    try:
        _Description.model_validate(described)
        resumable = "position" in described["progress"]
        if resumable:
            _FullProgress.model_validate(described["progress"])
        recipe = validate_recipe(described["recipe"], "the recipe inside")
        vocabulary = Vocabulary.from_json(described["vocabulary"])
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        raise CheckpointError(f"{path} was not written by this charlm: {place}: {found['msg']}") from None
    except CharlmError as error:
        raise CheckpointError(f"{path} was written by another version of charlm: {error}") from None
    if vocabulary.unit != recipe.data.unit:
        raise CheckpointError(f"{path}: its vocabulary is of {vocabulary.unit}s, its recipe says data.unit: {recipe.data.unit}")
    _validate_tensors(path, recipe, vocabulary, infos, resumable)
    return recipe, vocabulary


def _validate_tensors(path: Path, recipe: Recipe, vocabulary: Vocabulary, infos: Infos, resumable: bool) -> None:
    def refuse(problem: str) -> NoReturn:
        raise CheckpointError(f"{path} does not hold the model of its recipe: {problem}")

    if len(infos) < recipe.model.layers:  # before a table of their shapes is made
        refuse(f"{recipe.model.layers:,} layers in {len(infos):,} tensors")
    weights = parameter_shapes(recipe.model, len(vocabulary))
    expected = {_WEIGHTS + name: shape for name, shape in weights.items()}
    if any(name.startswith(_AVERAGE) for name in infos):
        expected |= {_AVERAGE + name: shape for name, shape in weights.items()}
    if resumable:
        _, shape = infos.get(f"{_STATE}0", ("", ()))
        streams = shape[1] if len(shape) == 3 else 1
        expected |= {f"{_STATE}{index}": shape for index, shape in enumerate(state_shapes(recipe.model, streams))}
    scalars = OPTIMIZERS[recipe.train.optimizer].scalars
    for name in infos:
        if name.startswith(_OPTIMIZER):
            weight, _, slot = name.removeprefix(_OPTIMIZER).rpartition("/")
            if weight in weights:
                expected[name] = () if slot in scalars else weights[weight]
    if stray := sorted(infos.keys() ^ expected.keys()):
        refuse(f"{stray[0]} is {'not expected' if stray[0] in infos else 'missing'}")
    for name, (kind, shape) in infos.items():
        if kind != "F32" or shape != expected[name]:
            refuse(f"{name} is {kind} {list(shape)}, expected F32 {list(expected[name])}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """``safe_open``, which takes only paths that are UTF-8, for any path.

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
    """The JSON text and the checksum, read from the file's head alone; says plainly what else the file is."""
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
        described = json.loads(text, parse_float=_finite, parse_constant=_finite)
        found = described["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is damaged: its description is not readable") from None
    assert isinstance(described, dict)
    if found == 1 and isinstance(described.get("recipe"), dict):
        described["recipe"] = with_present_names(described["recipe"])
    elif found != FORMAT:
        raise CheckpointError(
            f"{path} has format version {str(found)[:60]}, this charlm reads 1 to {FORMAT}; use the charlm that wrote it"
        )
    return described


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def find_checkpoint(name: str) -> Path:
    """Turn what a user typed into a checkpoint's file: a file, a run's folder (its best), or a run's name.

    Raises:
        UsageError: none of these; says where was looked.
    """
    path = path_of(name)
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
