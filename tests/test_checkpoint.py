"""One file holds a model: bit for bit, verified, and never half written."""

from __future__ import annotations

import errno
import getpass
import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from charlm.checkpoint import Checkpoint, copy_weights, describe, find_checkpoint, load, reading, save, writing
from charlm.errors import CheckpointError, UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_run: Callable[..., Any], english_file: Path) -> Any:
    """A finished run, its corpus given by an absolute path."""
    return tiny_run(english_file, tmp_path_factory.mktemp("runs") / "first", "model.layers=2", max_steps=7)


@pytest.fixture
def file(run: Any, tmp_path: Path) -> Path:
    """A copy of its `last.safetensors`, to be damaged."""
    path = tmp_path / "copy.safetensors"
    path.write_bytes((run.folder / "last.safetensors").read_bytes())
    return path


def _same(one: Checkpoint, other: Checkpoint) -> None:
    for name in ("recipe", "vocabulary", "corpus", "resolved", "progress"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("weights", "optimizer"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
        assert all(mine[key].dtype == theirs[key].dtype for key in mine), name
    assert len(one.state) == len(other.state)
    assert all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return size, json.loads(data[8 : 8 + size])


def test_what_is_saved_is_loaded_bit_for_bit(run: Any, tmp_path: Path) -> None:
    """If this fails, a run resumed from a file does not continue from the moment when it was written."""
    first = load(run.folder / "last.safetensors")
    assert first.optimizer, "`last` holds no moments"
    assert len(first.state) == 2
    save(tmp_path / "again.safetensors", first)
    _same(load(tmp_path / "again.safetensors"), first)
    assert list(tmp_path.iterdir()) == [tmp_path / "again.safetensors"], "a temporary file remains"


def test_awkward_values_survive(run: Any, tmp_path: Path) -> None:
    """If this fails, some bit pattern (−0, NaN, infinities, denormals, scalars) is changed by saving."""
    first = load(run.folder / "last.safetensors")
    odd = torch.zeros_like(first.weights["output_bias"])
    odd[:5] = torch.tensor([-0.0, float("inf"), float("-inf"), 1e-42, float("nan")])
    changed = replace(first, optimizer={"output_bias/odd": odd, "output_bias/step": torch.tensor(3.0)})
    save(tmp_path / "odd.safetensors", changed)
    found = load(tmp_path / "odd.safetensors").optimizer
    assert torch.equal(found["output_bias/odd"].view(torch.int32), odd.view(torch.int32))
    assert found["output_bias/step"].shape == ()


def test_the_model_inside_computes_the_same(run: Any, tmp_path: Path) -> None:
    """If this fails, a sampled or evaluated model is not the one that was trained. Its memory must be its own."""
    stored = load(run.folder / "last.safetensors")
    cpu = torch.device("cpu")
    one, other = stored.model(cpu), load(run.folder / "last.safetensors").model(cpu, "reference")
    ids = torch.arange(6)[:, None]
    torch.testing.assert_close(one(ids, one.zero_state(1))[0], other(ids, other.zero_state(1))[0], rtol=0, atol=1e-5)
    for name, weight in one.named_parameters():
        assert weight.data_ptr() != stored.weights[name].data_ptr()


def test_weights_that_do_not_fit_are_refused(run: Any, network: Callable[..., Any]) -> None:
    """If this fails, another network's weights are squeezed into a model."""
    weights = load(run.folder / "last.safetensors").weights
    with pytest.raises(CheckpointError, match="the checkpoint has the weights"):
        copy_weights(network(30, hidden=16), weights)
    with pytest.raises(CheckpointError, match="the checkpoint has shape"):
        copy_weights(network(30, hidden=17, layers=2), weights)


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 7, 8, 9, 500, 0.5, 0.999])
def test_a_truncated_file_is_refused(file: Path, kept: float) -> None:
    """If this fails, half a file is loaded, or ends in a traceback."""
    data = file.read_bytes()
    file.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    with pytest.raises(CheckpointError, match=r"truncated|not a charlm checkpoint|damaged") as caught:
        load(file)
    assert file.name in str(caught.value)


def test_a_flipped_bit_is_found_wherever_it_is(file: Path) -> None:
    """If this fails, a damaged file is loaded as if it were whole, or ends in a traceback."""
    data = file.read_bytes()
    size, _ = _header(file)
    places = [0, 1, 7, *range(8, 8 + size, 131), *range(8 + size, len(data), len(data) // 40), len(data) - 1]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 0x04
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            load(file)
        assert len(str(caught.value)) > 30


def test_damaged_tensors_are_told_from_damaged_headers(file: Path) -> None:
    """If this fails, the checksum does not cover the tensors."""
    data = bytearray(file.read_bytes())
    data[-5] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum; use another copy"):
        load(file)


def _rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON description and the header around it."""
    data = file.read_bytes()
    size, header = _header(file)
    described = json.loads(header["__metadata__"]["charlm"])
    change(described)
    header["__metadata__"]["charlm"] = json.dumps(described)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def test_another_format_version_is_refused(file: Path) -> None:
    """If this fails, a future charlm's file is misread; both versions must be named."""
    _rewrite(file, lambda described: described.update(format=99))
    for read in (load, describe):
        with pytest.raises(CheckpointError, match=r"format version 99, this charlm reads 1 to 2"):
            read(file)


def test_a_changed_description_is_found(file: Path) -> None:
    """If this fails, the checksum does not cover the description: a step counter could be changed unnoticed."""
    _rewrite(file, lambda described: described["progress"].update(step=1))
    with pytest.raises(CheckpointError, match="checksum"):
        load(file)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nonexistent/exploded").touch, ())


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_is_never_opened(tmp_path: Path, new_format: bool) -> None:
    """If this fails, a file from elsewhere can run code; the message must say what the file is."""
    path = tmp_path / "model.safetensors"
    torch.save({"weights": _Bomb()}, path, _use_new_zipfile_serialization=new_format)
    for read in (load, describe):
        with pytest.raises(CheckpointError, match=r"is a pickle \(torch.save\) file"):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors header in its 0 bytes"),
        (b"hello\n", "not a charlm checkpoint"),
        (b"\x00" * 100, "not a charlm checkpoint"),
        (b"corpus: x\nmodel: {hidden: 3}\n", "not a charlm checkpoint"),
        (struct.pack("<Q", 50) + b"{" * 50, "truncated or damaged"),
        (struct.pack("<Q", 2) + b"{}", "was not written by charlm"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """If this fails, a file that is no checkpoint ends in a traceback."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (load, describe):
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    """If this fails, another program's weights are taken for a charlm model."""
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="holds tensors, but was not written by charlm"):
        load(path)
    save_file({"w": torch.zeros(3)}, path, metadata={"charlm": "{}"})
    with pytest.raises(CheckpointError, match="description is not readable"):
        load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """If this fails, a misspelt path ends in a traceback."""
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path / "no.safetensors")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        load(tmp_path)


def test_every_header_length_is_readable(file: Path, tmp_path: Path) -> None:
    """If this fails, some checkpoints are taken for something else by their first bytes, which are the header's length.

    A length of 0x…80 begins like a pickle; each thirty-second file has one.
    """
    stored = load(file)
    first_bytes = set()
    for filler in range(0, 8 * 40, 8):
        path = tmp_path / "padded.safetensors"
        save(path, replace(stored, corpus={**stored.corpus, "filler": "x" * filler}))
        first_bytes.add(path.read_bytes()[0])
        assert load(path).corpus["filler"] == "x" * filler
        describe(path)
    assert 0x80 in first_bytes


# -- what is inside --------------------------------------------------------------------------------------------------


def test_no_path_user_or_host_goes_in(run: Any, english_file: Path) -> None:
    """If this fails, publishing a checkpoint tells where and by whom it was made."""
    for name in ("last", "best"):
        path = run.folder / f"{name}.safetensors"
        data = path.read_bytes()
        for secret in (str(english_file.parent), str(run.folder), str(Path.home()) + "/", "/tmp/", "/home/"):
            assert secret.encode() not in data, secret
        _, header = _header(path)
        text = json.dumps(header)
        for secret in (socket.gethostname(), getpass.getuser()):
            assert secret not in text
        assert '\\"corpus\\": \\"./english.txt\\"' in text, "the corpus is not named at all"


def test_paths_of_split_files_and_home_folders_stay_out(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, an absolute path enters by another door: data.split, `~`, a glob."""
    home = tmp_path / "mallory"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("a.txt", "v.txt"):
        (home / name).write_bytes(english_file.read_bytes()[:3000])
    for number, corpus in enumerate(("~/a.txt", str(home / "a*.txt"), str(home))):
        run = tiny_run(
            corpus, tmp_path / f"run-{number}", f"data.split={{validation: {home / 'v.txt'}}}", "train.total_steps=2"
        )
        assert b"mallory" not in (run.folder / "last.safetensors").read_bytes() or corpus == str(home)
        assert str(tmp_path).encode() not in (run.folder / "last.safetensors").read_bytes()


def test_tensors_hold_no_time_of_day(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, two equal runs write different weights, moments or states."""
    files = [tiny_run(english_file, tmp_path / name, max_steps=3).folder / "last.safetensors" for name in "ab"]
    tensors = []
    for path in files:
        size, _ = _header(path)
        tensors.append(path.read_bytes()[8 + size :])
    assert tensors[0] == tensors[1]


def test_best_is_only_a_model(run: Any) -> None:
    """If this fails, the file that people publish carries moments and states that nobody needs."""
    best = load(run.folder / "best.safetensors")
    assert (best.optimizer, best.state) == ({}, ())
    assert best.progress["step"] in (5, 7)


def test_describing_reads_no_weights(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, `charlm info` needs the memory and the time of loading."""

    class NoTensors:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._file = original(*arguments, **options)

        def __enter__(self) -> NoTensors:
            self._file.__enter__()
            return self

        def __exit__(self, *reason: Any) -> None:
            self._file.__exit__(*reason)

        def __getattr__(self, name: str) -> Any:
            assert not name.startswith("get_tensor"), "a tensor was read"
            return getattr(self._file, name)

    original = reading.safe_open
    monkeypatch.setattr(reading, "safe_open", NoTensors)
    found = describe(file)
    assert found["tensors"]["model.layers.0.weight_hh"] == [64, 16]
    assert found["progress"]["step"] == 7
    assert found["bytes"] == file.stat().st_size
    with pytest.raises(AssertionError, match="a tensor was read"):
        load(file)


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["writing", "flushing", "renaming"])
def test_a_failing_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """If this fails, a full disk destroys the checkpoint that was there."""
    before = file.read_bytes()
    stored = load(file)

    def half(tensors: Any, path: Path, **options: Any) -> None:
        Path(path).write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "No space left on device")

    match where:
        case "writing":
            monkeypatch.setattr(writing, "save_file", half)
        case "flushing":
            monkeypatch.setattr(os, "fsync", fails)
        case "renaming":
            monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier files are unchanged"):
        save(file, replace(stored, progress={**stored.progress, "step": 8}))
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file], "a temporary file remains"


def test_writing_where_there_is_no_folder(run: Any, tmp_path: Path) -> None:
    """If this fails, a folder that was removed during a run ends in a traceback."""
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "gone" / "x.safetensors", load(run.folder / "best.safetensors"))


# -- finding ---------------------------------------------------------------------------------------------------------


def test_finding_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a file, a run's folder (its best) or a run's name means another file than documented."""
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "checkpoints"
    for name in ("best", "last", "previous"):
        (runs / "full").mkdir(parents=True, exist_ok=True)
        (runs / "full" / f"{name}.safetensors").touch()
    (runs / "young").mkdir()
    (runs / "young" / "last.safetensors").touch()
    (runs / "empty").mkdir()
    assert find_checkpoint("full") == Path("checkpoints/full/best.safetensors")
    assert find_checkpoint("young") == Path("checkpoints/young/last.safetensors")
    assert find_checkpoint("./checkpoints/full") == Path("checkpoints/full/best.safetensors")
    assert find_checkpoint("checkpoints/full/last.safetensors") == Path("checkpoints/full/last.safetensors")
    assert find_checkpoint(str(runs / "young")) == runs / "young" / "last.safetensors"
    with pytest.raises(UsageError, match=r"checkpoints/empty holds no checkpoint"):
        find_checkpoint("empty")
    with pytest.raises(UsageError, match=r"checkpoints/fll does not exist; runs here: full, young"):
        find_checkpoint("fll")
    with pytest.raises(UsageError, match=r"no\.safetensors does not exist"):
        find_checkpoint("no.safetensors")
    monkeypatch.chdir(runs / "empty")
    with pytest.raises(UsageError, match="there are no runs in checkpoints/ here"):
        find_checkpoint("full")


def test_the_same_checkpoint_is_the_same_bytes(run: Any, tmp_path: Path) -> None:
    """If this fails, two runs that are equal to the bit leave different files, and nobody can compare them by checksum."""
    stored = load(run.folder / "last.safetensors")
    written = set()
    for _ in range(12):
        save(tmp_path / "x.safetensors", stored)
        written.add((tmp_path / "x.safetensors").read_bytes())
    assert len(written) == 1
    assert load(tmp_path / "x.safetensors").progress == stored.progress
