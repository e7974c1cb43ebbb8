"""The schema of a checkpoint: its description (JSON), and the types and shapes of its tensors.

Everything is checked before a tensor is read or a model is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from charlm.checkpoint.contents import AVERAGE, OPTIMIZER, STATE, WEIGHTS
from charlm.config import MAX_THREADS, Recipe, validate_recipe
from charlm.data.records import separator_of
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CharlmError, CheckpointError
from charlm.model.language_model import parameter_shapes, state_shapes
from charlm.optimizers import OPTIMIZERS

Infos = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name → (type, shape)."""

Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Strict(BaseModel):
    """A part of the description. Keys of later versions are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Corpus(_Strict):
    name: str
    identity: str
    normalise: str
    sha256: str
    bytes: Count
    characters: Count
    splits: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]]


class _Resolved(_Strict):
    engine: Literal["native", "torch", "reference"]
    precision: Literal["fp32", "bf16", "fp16"]
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)]
    device: str


class _Best(_Strict):
    nats: float | None
    step: Count | None
    averaged: bool = False


class _Progress(_Strict):
    """The counters of every checkpoint."""

    step: Count
    epoch: Annotated[float, Field(ge=0)]
    characters: Count
    train_nats: float | None
    validation_nats: float | None
    evaluated_at: Count | None = None
    best: _Best


class _FullProgress(_Progress):
    """The counters of a resumable checkpoint."""

    position: Annotated[list[Count], Field(min_length=2, max_length=2)]
    recent: list[Annotated[tuple[float, Annotated[int, Field(ge=1, lt=2**63)]], Field(strict=False)]]  # JSON has no tuples
    worse_in_a_row: Count
    seconds: Annotated[float, Field(ge=0)]
    loss_scale: Annotated[tuple[Annotated[float, Field(ge=1, le=2.0**24)], Count], Field(strict=False)]
    logs: dict[str, Count]


class _Description(_Strict):
    """The JSON text. The recipe and the vocabulary are validated by their own modules."""

    format: Literal[1, 2]
    charlm: str
    recipe: dict[str, Any]
    vocabulary: dict[str, Any]
    corpus: _Corpus
    resolved: _Resolved
    progress: _Progress


def validate(path: Path, description: dict[str, Any], infos: Infos) -> tuple[Recipe, Vocabulary]:
    """Check a description, and the types and shapes of the tensors.

    Raises:
        CheckpointError: names the key or the tensor.
    """
    try:
        _Description.model_validate(description)
        resumable = "position" in description["progress"]
        if resumable:
            _FullProgress.model_validate(description["progress"])
        recipe = validate_recipe(description["recipe"], "the recipe inside")
        vocabulary = Vocabulary.from_json(description["vocabulary"]).with_separator(separator_of(recipe.data))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        raise CheckpointError(f"{path} was not written by this charlm: {place}: {found['msg']}") from None
    except CharlmError as error:
        raise CheckpointError(f"{path} was written by another version of charlm: {error}") from None
    if vocabulary.unit != recipe.data.unit:
        raise CheckpointError(f"{path}: its vocabulary has {vocabulary.unit}s, its recipe says data.unit: {recipe.data.unit}")
    _validate_tensors(path, recipe, vocabulary, infos, resumable)
    return recipe, vocabulary


def _validate_tensors(path: Path, recipe: Recipe, vocabulary: Vocabulary, infos: Infos, resumable: bool) -> None:
    def refuse(problem: str) -> NoReturn:
        raise CheckpointError(f"{path} does not hold the model of its recipe: {problem}")

    if len(infos) < recipe.model.layers:  # before the table of shapes is made: a damaged file can name billions of layers
        refuse(f"{recipe.model.layers:,} layers in {len(infos):,} tensors")
    weights = parameter_shapes(recipe.model, len(vocabulary))
    expected = {WEIGHTS + name: shape for name, shape in weights.items()}
    if any(name.startswith(AVERAGE) for name in infos):
        expected |= {AVERAGE + name: shape for name, shape in weights.items()}
    if resumable:
        _, shape = infos.get(f"{STATE}0", ("", ()))
        streams = shape[1] if len(shape) == 3 else 1
        expected |= {f"{STATE}{index}": shape for index, shape in enumerate(state_shapes(recipe.model, streams))}
    scalars = OPTIMIZERS[recipe.train.optimizer].scalars
    for name in infos:
        if name.startswith(OPTIMIZER):
            weight, _, slot = name.removeprefix(OPTIMIZER).rpartition("/")
            if weight in weights:
                expected[name] = () if slot in scalars else weights[weight]
    if stray := sorted(infos.keys() ^ expected.keys()):
        refuse(f"{stray[0]} is {'not expected' if stray[0] in infos else 'missing'}")
    for name, (kind, shape) in infos.items():
        if kind != "F32" or shape != expected[name]:
            refuse(f"{name} is {kind} {list(shape)}, expected F32 {list(expected[name])}")
