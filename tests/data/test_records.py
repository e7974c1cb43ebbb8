"""Texts made of records: their canonical form, splits that cut no record, and a cache that keeps the forms apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import validate_recipe
from charlm.data.dataset import Dataset, open_dataset
from charlm.data.encoding import preprocess
from charlm.data.records import RecordForm, RecordReader
from charlm.errors import CorpusError, RecipeError, UsageError


def _naive(text: str, literal: str, mark: str) -> str:
    """The canonical form, written out once more."""
    records = [record for record in text.split(literal) if record]
    return mark + "".join(record + mark for record in records) if records else ""


def _open(recipe_for: Callable[..., Any], path: Path, *overrides: str) -> Dataset:
    return open_dataset(recipe_for(path, *overrides))


def _read(dataset: Dataset, part: str) -> str:
    text = dataset.text(part)
    return dataset.vocabulary.decode(text.ids(0, len(text)).tolist())


@given(
    text=st.text(alphabet="ab|-", max_size=40),
    literal=st.sampled_from(["|", "||", "|-|", "-"]),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_the_form_does_not_depend_on_the_blocks_of_the_file(text: str, literal: str, cuts: list[int]) -> None:
    """If this fails, a separator that is split across two blocks of a file is missed, or a record is lost or doubled."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    form = RecordForm.of(literal, "char")
    assert form is not None
    reader, whole = RecordReader(form), RecordReader(form)
    expected = _naive(text, literal, chr(form.symbol))
    assert "".join(reader.characters(pieces, "text", is_first=True)) == expected
    assert "".join(whole.characters([text], "text", is_first=True)) == expected
    assert reader.empty == whole.empty
    as_bytes = RecordReader(form).bytes([piece.encode() for piece in pieces], "text", is_first=True)
    assert b"".join(as_bytes).decode() == expected


@pytest.mark.parametrize(
    ("content", "records", "expected", "empty"),
    [
        (b"ann\nbob\ncy\n", "line", "\nann\nbob\ncy\n", 0),
        (b"ann\r\nbob\r\ncy", "line", "\nann\nbob\ncy\n", 0),
        (b"\n\nann\n\n\nb\nc", "line", "\nann\nb\nc\n", 4),
        (b"a, b\n\nc\n\n\n\nd\n\n", r"\n\n", "\0a, b\0c\0d\0", 1),
        (b"ann;bob;", ";", ";ann;bob;", 0),
        (b"x<|end|>y<|end|>", "<|end|>", "\0x\0y\0", 0),
    ],
)
def test_what_a_file_becomes(
    recipe_for: Callable[..., Any], tmp_path: Path, content: bytes, records: str, expected: str, empty: int
) -> None:
    """If this fails, records are cut at other places than the recipe says, or empty ones are trained on."""
    (tmp_path / "text.txt").write_bytes(content)
    dataset = _open(recipe_for, tmp_path / "text.txt", f'data.records="{records}"', "data.split=[1, 0, 0]")
    assert _read(dataset, "train") == expected
    assert dataset.encoded.empty_records == empty
    dropped = [notice for notice in dataset.notices if "empty record" in notice]
    assert len(dropped) == (empty > 0)


def test_each_file_of_a_folder_is_a_record(recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, the text of one file is read as the continuation of another, or an empty file becomes a record."""
    (folder := tmp_path / "folder").mkdir()
    for name, content in {"a": b"one\n", "b": b"", "c": b"two\nlines", "d": b"x"}.items():
        (folder / f"{name}.txt").write_bytes(content)
    dataset = _open(recipe_for, folder, "data.records=file", "data.split=[1, 0, 0]")
    assert _read(dataset, "train") == "\0one\n\0two\nlines\0x\0"
    lines = _open(recipe_for, folder, "data.records=line", "data.split=[1, 0, 0]")
    assert _read(lines, "train") == "\none\ntwo\nlines\nx\n", "the end of a file ends a record"


def test_bytes_have_records_too(recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, `data.unit: byte` cuts elsewhere than its bytes say, or a separator of several bytes is not one symbol."""
    (tmp_path / "text.txt").write_bytes("éa→b→".encode() + b"\xff")
    dataset = _open(recipe_for, tmp_path / "text.txt", "data.unit=byte", "data.records=→", "data.split=[1, 0, 0]")
    symbols = dataset.encoded.symbols(0, dataset.encoded.characters)
    assert symbols.utf8(0, len(symbols), "byte") == b"\0\xc3\xa9a\0b\0\xff\0"
    assert (dataset.vocabulary.separator_id, len(dataset.vocabulary)) == (0, 256)


def test_a_record_cannot_contain_the_separator_symbol(recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, a NUL in a file of bytes silently ends a record."""
    (tmp_path / "text.bin").write_bytes(b"a\0b\n\nc")
    with pytest.raises(CorpusError, match=r"text.bin contains NUL.*data.records"):
        _open(recipe_for, tmp_path / "text.bin", "data.unit=byte", r'data.records="\n\n"')


@pytest.mark.parametrize(("content", "records"), [(b"no line end", "line"), (b"only one\n", "line"), (b"a\nb\n", "file")])
def test_a_single_record_is_refused(recipe_for: Callable[..., Any], tmp_path: Path, content: bytes, records: str) -> None:
    """If this fails, a wrong separator trains a model that never sees the end of a record."""
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"single record.*remove data.records"):
        _open(recipe_for, tmp_path / "text.txt", f"data.records={records}")


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=30), first=st.floats(0.01, 0.98), second=st.floats(0, 1))
def test_a_split_cuts_no_record(lengths: list[int], first: float, second: float) -> None:
    """If this fails, a part begins in the middle of a record, or a record is in two parts or in none."""
    from charlm.data.splits import split_offsets, split_records

    bounds = np.cumsum([0, *(length + 1 for length in lengths)])
    total = int(bounds[-1]) + 1
    validation = round((1 - first) * second, 3)
    wanted = split_offsets(total, [first, validation, max(0.0, 1 - first - validation - 0.001)])
    moved = split_records(wanted, bounds)
    covered: list[int] = []
    for part, (start, stop) in moved.items():
        if stop > start:
            assert start in bounds
            assert stop - 1 in bounds
            covered += range(start + 1, stop)
        else:
            assert part != "train" or wanted[part][1] == 0
    assert covered == list(range(1, len(covered) + 1)), "neighbours share one separator and no target"
    assert len(covered) + 1 >= max(stop for _, stop in wanted.values())


def test_files_of_a_split_are_whole(recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, a validation file loses its first or last record."""
    for name, content in {"train": "ann\nbob\n", "valid": "cy\ndan\n", "test": "eve"}.items():
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    split = f"data.split={{validation: {tmp_path / 'valid.txt'}, test: {tmp_path / 'test.txt'}}}"
    dataset = _open(recipe_for, tmp_path / "train.txt", "data.records=line", split)
    assert _read(dataset, "train") == "\nann\nbob\n"
    assert _read(dataset, "validation").replace("\ufffd", "?") == "\n??\n?an\n"
    assert len(dataset.text("test")) == len("\neve\n")


def test_the_cache_keeps_the_forms_apart(recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, a run reads the text that another setting of `data.records` left in the cache."""
    path = tmp_path / "text.txt"
    path.write_text("a\n\nb\nc\n\nd\n", encoding="utf-8")
    whole = ["data.split=[1, 0, 0]"]
    for _ in range(2):  # written, then found
        assert _read(_open(recipe_for, path, *whole), "train") == "a\n\nb\nc\n\nd\n"
        assert _read(_open(recipe_for, path, "data.records=line", *whole), "train") == "\na\nb\nc\nd\n"
        assert _read(_open(recipe_for, path, r'data.records="\n\n"', *whole), "train") == "\0a\0b\nc\0d\n\0"


def test_rare_separators_stay_in_the_vocabulary(recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, `data.min_count` turns the end of a record into <unk>, which is never drawn: a sample does not end."""
    (tmp_path / "text.txt").write_text("aaaaaaaa\naaaaaaaaaa\n", encoding="utf-8")
    dataset = _open(recipe_for, tmp_path / "text.txt", "data.records=line", "data.min_count=5", "data.split=[1, 0, 0]")
    assert dataset.vocabulary.separator_id == dataset.vocabulary.id_of(10) == 1
    assert dataset.unknown["train"] == 0


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"data": {"records": ""}}, "data.records"),
        ({"data": {"records": "\r\n"}}, "newlines: unix"),
        ({"data": {"records": "line"}, "train": {"batching": "windows"}}, "batching"),
        ({"data": {"records": "line"}, "train": {"random_offset": True}}, "random_offset"),
        ({"data": {"records": "line"}, "train": {"drop_last": True}}, "drop_last"),
        ({"data": {"records": "line"}, "sample": {"prompt": ["ab", "a\nb"]}}, "sample.prompt"),
        ({"data": {"records": "||"}, "sample": {"prompt": "a||b"}}, "sample.prompt"),
    ],
)
def test_settings_that_exclude_each_other(overrides: dict[str, Any], problem: str) -> None:
    """If this fails, a setting that has no effect on records is accepted in silence."""
    with pytest.raises(RecipeError, match=problem):
        validate_recipe({"corpus": "x.txt", **overrides}, "recipe")


def test_a_normalisation_that_removes_line_ends_is_refused(recipe_for: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, the whole text becomes one record."""
    (tmp_path / "text.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"normalise: d2l-lines.*data.records"):
        _open(recipe_for, tmp_path / "text.txt", "data.records=line", "data.normalise=d2l-lines")


def test_a_string_is_read_as_a_file_is() -> None:
    """If this fails, `model.perplexity(text)` and `charlm eval perplexity FILE` read different records."""
    options: dict[str, Any] = {"unit": "char", "newlines": "unix", "normalise": "none"}
    assert preprocess("ann\r\nbob", **options, records="line") == "\nann\nbob\n"
    assert preprocess("ann\r\nbob", **options, records="file") == "\0ann\nbob\0"
    assert preprocess("ann\r\nbob", **options) == "ann\nbob"
