"""A text that a checkpoint names: verified before anything is stored or reported."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.data.encoded import TextDigest
from charlm.data.folders import cache_folder
from charlm.data.verification import TextMismatchError


def kept() -> list[Path]:
    """Everything in the cache."""
    return [path for path in cache_folder().rglob("*") if path.is_file()]


def recorded_of(content: bytes) -> TextDigest:
    return TextDigest(len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("content", [b"a secret!", b"secret", b"secret \xff text", b""])
def test_another_text_is_neither_stored_nor_described(tmp_path: Path, texts: Any, content: bytes) -> None:
    """If this fails, a stranger's checkpoint makes charlm copy a private file into the cache, or reveals part of it."""
    with pytest.raises(TextMismatchError) as raised:
        texts.encode(texts.write(tmp_path, content), recorded=recorded_of(b"the text!"))
    assert kept() == []
    assert "secret" not in str(raised.value)
    assert "0xFF" not in str(raised.value)
    assert hashlib.sha256(content).hexdigest()[:12] not in str(raised.value)


def test_another_size_is_refused_without_reading(tmp_path: Path, texts: Any, reads: Callable[[], int]) -> None:
    """If this fails, a stranger's checkpoint can make charlm read any file."""
    with pytest.raises(TextMismatchError):
        texts.encode(texts.write(tmp_path, b"a secret"), recorded=recorded_of(b"the text"[:-1]))
    assert reads() == 0


def test_the_recorded_text_is_used(tmp_path: Path, texts: Any) -> None:
    """If this fails, a model cannot be evaluated on its own text, or on a folder with files that are not text."""
    content = b"the text"
    path = texts.write(tmp_path, content)
    for _ in range(2):
        assert texts.text_of(texts.encode(path, recorded=recorded_of(content))) == "the text"
    for name, each in (("1.txt", b"one "), ("2.png", b"\x89PNG\0 binary"), ("3.txt", b"two")):
        texts.write(tmp_path / "folder", each, name)
    assert texts.text_of(texts.encode(tmp_path / "folder", recorded=recorded_of(b"one two"))) == "one two"


def test_a_folder_that_is_another_text_leaves_nothing(tmp_path: Path, texts: Any, reads: Callable[[], int]) -> None:
    """If this fails, a folder named by a stranger is copied, or is read completely although it is too large."""
    for number in range(9):
        texts.write(tmp_path / "folder", b"private text", f"{number}.txt")
    with pytest.raises(TextMismatchError):
        texts.encode(tmp_path / "folder", recorded=recorded_of(b"some text"))
    assert kept() == []
    assert reads() == 1


def test_an_encoded_text_is_not_accepted_as_another(tmp_path: Path, texts: Any) -> None:
    """If this fails, a text in the cache is accepted for a checkpoint that was trained on another."""
    path = texts.write(tmp_path, b"some text")
    texts.encode(path)
    with pytest.raises(TextMismatchError):
        texts.encode(path, recorded=recorded_of(b"text some"))


def test_files_of_the_kernel_are_not_read(reads: Callable[[], int], texts: Any) -> None:
    """If this fails, a stranger's checkpoint makes charlm wait forever on a file in /proc."""
    if not Path("/proc/version").exists():
        return
    with pytest.raises(TextMismatchError, match="not a regular file"):
        texts.encode(Path("/proc/version"), recorded=TextDigest(0, hashlib.sha256(b"").hexdigest()))
    assert reads() == 0
