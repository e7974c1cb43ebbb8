"""Files from anywhere: whatever is in a checkpoint or a recipe, the answer is a model or a sentence, never another exception.

``CHARLM_FUZZ=5000 pytest tests/hostile`` tries more of them. The same number tries the same files.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from charlm.checkpoint import describe, load
from charlm.checkpoint.contents import checksum
from charlm.config import field_names, load_recipe, validate_recipe
from charlm.errors import CharlmError, CheckpointError, RecipeError
from charlm.resources import shipped_files
from charlm.training.run import observed
from charlm.yaml_text import parse_yaml

COUNT = int(os.environ.get("CHARLM_FUZZ", "0"))

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 3, 1.5, -0.0, 1e300, 10**22, 2**63, -(2**63), 10**400, float("nan"), float("inf"), "", "x",
    "\ud800", "\0", "~nouser/x", "../x", "é" * 300, "1", [], {}, [[]], [None], [1, 2], ["x"], {"x": 1}, {"": []}, [0.5] * 4,
]  # fmt: skip


PIECES = [
    "[", "]", "{", "}", ":", "- ", "&a ", "*a", "!!int ", "!!python/name:os ", "\t", "\n", '"', "'", "|", ">", "%", "@", "`",
    "\\ud800", "9" * 60, ".nan", ".inf", "1e999", "null", "? ", "#", "---\n", "\x07", "\0", "é", "\u2028", "<<: ",
]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside nested lists and mappings; of a long list only the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _mutated(value: Any, dice: random.Random) -> Any:
    """A copy with one to three changes: a value replaced, removed, added or nested."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        *parents, key = dice.choice(places)
        holder = value
        for parent in parents:
            holder = holder[parent]
        match dice.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[dice.choice(["x", "format", "step", "", "nats"])] = dice.choice(ODD)
            case 1 if isinstance(holder, list):
                holder.insert(dice.randrange(len(holder) + 1), dice.choice(ODD))
            case 2 if isinstance(holder, list):
                dice.shuffle(holder)
            case 3:
                holder[key] = copy.deepcopy(value)
            case 4 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = dice.choice([-1, 2, 10**9, 1e12]) * holder[key] + dice.choice([0, 1])
            case _:
                holder[key] = copy.deepcopy(dice.choice(ODD))
    return value


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_run: Callable[..., Any], english_file: Path) -> Path:
    """A whole checkpoint: moments, state and average included."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    overrides = ("model.hidden=4", "train.batch=2", "train.average=0.9", "evaluate.characters=200")
    return Path(tiny_run(english_file, folder, *overrides, max_steps=6).folder) / "last.safetensors"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        return json.loads(file.metadata()["charlm"]), tensors


def _write(path: Path, described: Any, tensors: dict[str, torch.Tensor]) -> None:
    """A checkpoint with a right checksum."""
    text = described if isinstance(described, str) else json.dumps(described)
    save_file(tensors, path, metadata={"charlm": text, "sha256": checksum(text, tensors)})


def _mutated_tensors(tensors: dict[str, torch.Tensor], dice: random.Random) -> dict[str, torch.Tensor]:
    tensors = dict(tensors)
    name = dice.choice(sorted(tensors))
    tensor = tensors.pop(name)
    match dice.randrange(7):
        case 0:
            pass
        case 1:
            tensors[name] = tensor.to(dice.choice([torch.float16, torch.float64, torch.int32, torch.bool]))
        case 2:
            tensors[name] = torch.zeros(dice.choice([(), (0,), (1,), (3, 5), (2, 2, 2), (*tensor.shape, 1)]))
        case 3:
            tensors[dice.choice([name + "x", "model.", "state.9", "optimizer.x/y", "x", name + "/step"])] = tensor
        case 4:
            tensors[name] = torch.full_like(tensor, dice.choice([float("nan"), float("inf"), -1.0, 3e38]))
        case 5:
            tensors[name] = (
                tensor.t().contiguous() if tensor.dim() == 2 else tensor[..., :1].clone() if tensor.dim() else tensor
            )
        case 6:
            tensors |= {name: tensor, "state.2": tensor.clone()}
    return tensors


def test_descriptions_and_tensors_that_are_wrong(
    original: Path, tmp_path: Path, begin: Callable[..., Any], english_file: Path, charlm_in_process: Callable[..., int]
) -> None:
    """If this fails, a checkpoint from a stranger ends in a traceback, or a wrong one is resumed from."""
    described, tensors = _read(original)
    dice, path = random.Random(1), tmp_path / "run" / "last.safetensors"
    path.parent.mkdir()
    accepted = 0
    for number in range(COUNT or 300):
        changed = _mutated(described, dice) if number % 4 else described
        _write(path, changed, tensors if number % 4 else _mutated_tensors(tensors, dice))
        try:
            found = describe(path)
            json.dumps(found, allow_nan=False)
            assert charlm_in_process("info", path) == 0, changed
        except CheckpointError:
            with pytest.raises(CheckpointError):
                load(path)
            continue
        try:
            stored = load(path)
        except CheckpointError:
            continue
        accepted += 1
        stored.model(torch.device("cpu"), "reference")
        if accepted % 5:
            continue
        try:
            begun = begin(
                english_file, path.parent, "model.hidden=4", "train.batch=2", "train.average=0.9", "evaluate.characters=200",
                resume="auto", max_steps=min(stored.progress["step"] + 1, 10**9),
            )  # fmt: skip
        except CharlmError:
            pass
        else:
            try:
                for _ in zip(range(4), observed(begun.trainer), strict=False):
                    pass
            except CharlmError:
                pass
            finally:
                begun.trainer.folder.close()
        for item in path.parent.iterdir():
            item.unlink() if item.is_file() else shutil.rmtree(item)
    assert accepted, "no changed file was accepted: nothing behind the schema was tried"


@pytest.fixture
def charlm_in_process(capfd: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Run a command in this process and return its exit code; what it writes is dropped."""

    def run(*arguments: str | Path) -> int:
        from charlm.cli.app import run

        code = run([str(argument) for argument in arguments])
        capfd.readouterr()
        return code

    return run


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": 1, "x": ' + "[" * 100_000, "9" * 5000, '{"format": ' + "9" * 5000 + "}", "[1]", "1", "null"],
    ids=range(7),
)
def test_descriptions_that_are_no_descriptions(original: Path, tmp_path: Path, text: str) -> None:
    """If this fails, JSON that is nested deeply or is something else ends in a traceback."""
    _write(tmp_path / "x.safetensors", text, _read(original)[1])
    for read in (load, describe):
        with pytest.raises(CheckpointError):
            read(tmp_path / "x.safetensors")


def test_damaged_files(original: Path, tmp_path: Path) -> None:
    """If this fails, a flipped bit, a missing or an inserted piece ends in a traceback, or is loaded as something else."""
    whole, dice, path = original.read_bytes(), random.Random(2), tmp_path / "x.safetensors"
    for _ in range(COUNT or 200):
        data, place = bytearray(whole), dice.randrange(len(whole))
        if dice.random() < 0.5:
            place = dice.randrange(12_000)  # the header, in which more can go wrong
        match dice.randrange(4):
            case 0:
                data[place] ^= 1 << dice.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = dice.randbytes(dice.choice((1, 8, 100)))
            case 3:
                del data[place : place + dice.choice((1, 8, 100))]
        path.write_bytes(data)
        if bytes(data) == whole:
            continue
        with pytest.raises(CheckpointError):
            load(path)
        with contextlib.suppress(CheckpointError):
            describe(path)


def test_recipes_of_wrong_text(tmp_path: Path) -> None:
    """If this fails, a typing error in a recipe ends in a traceback."""
    texts = [path.read_text(encoding="utf-8") for path in shipped_files("configs").values()]
    dice, path = random.Random(3), tmp_path / "r.yaml"
    for _ in range(COUNT or 150):
        text = dice.choice(texts)
        for _ in range(dice.choice((1, 1, 2, 5))):
            place = dice.randrange(len(text))
            stop = place + dice.choice((0, 0, 1, 10))
            text = text[:place] + dice.choice([*PIECES, text[place : place + 30]]) + text[stop:]
        path.write_text(text, encoding="utf-8")
        try:
            load_recipe(str(path))
        except RecipeError as error:
            assert len(str(error)) > 10


def test_recipes_of_wrong_values() -> None:
    """If this fails, a value of the wrong type or size is another exception than an error of the recipe."""
    recipes = [parse_yaml(path.read_text(encoding="utf-8"), "x") for path in shipped_files("configs").values()]
    dice = random.Random(4)
    for _ in range(COUNT or 300):
        raw = _mutated(dice.choice(recipes), dice)
        try:
            validate_recipe(raw, "x")
        except RecipeError as error:
            assert len(str(error)) > 10


@pytest.mark.parametrize("key", sorted(field_names()))
def test_every_field_with_every_odd_value(key: str) -> None:
    """If this fails, a field has no bound, or its refusal is not a sentence."""
    section, _, name = key.rpartition(".")
    for value in ODD:
        own = {"metric": "validation_nats", "value": 1.0} if section == "figure" else {}
        raw = {"corpus": "x", section: {**own, name: value}} if section else {"corpus": "x", name: value}
        if raw.get("corpus") is None:
            continue
        try:
            recipe = validate_recipe(raw, "x")
        except RecipeError as error:
            assert key in str(error) or name in str(error) or section in str(error)
            continue
        stored = json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
        assert "e+300" not in stored and str(10**22) not in stored, f"{key} accepts {value!r}"
