"""Encoding: the ids on disk give exactly the text of the files."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charlm.data import sources
from charlm.data.encoding import encode
from charlm.data.sources import SourceFile, Sources
from charlm.errors import CorpusError, RecipeError


@pytest.mark.parametrize(
    ("content", "text", "crlf", "marks"),
    [
        (b"plain ASCII\n", "plain ASCII\n", 0, 0),
        ("naïve – 漢字 \U0001f600e\u0301".encode(), "naïve – 漢字 \U0001f600e\u0301", 0, 0),
        (b"\xef\xbb\xbfwith a mark", "with a mark", 0, 1),
        (b"\xef\xbb\xbf\xef\xbb\xbfone mark only", "\ufeffone mark only", 0, 1),
        (b"a\r\nb\rc\nd\r\r\n\n\re\r", "a\nb\nc\nd\n\n\n\ne\n", 6, 0),
        ("é\r\né\ré\r".encode(), "é\né\né\n", 3, 0),
    ],
)
def test_the_text_comes_back(tmp_path: Path, texts: Any, block: int, content: bytes, text: str, crlf: int, marks: int) -> None:
    """If this fails, the encoded text differs from the file at some block size."""
    result = texts.encode(texts.write(tmp_path, content))
    assert texts.text_of(result) == text
    assert (result.converted_line_ends, result.byte_order_marks, result.bytes) == (crlf, marks, len(content))
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.file_lengths == (len(text),) == (result.characters,)
    assert list(result.alphabet) == [ord(character) for character in dict.fromkeys(text)]
    assert result.ids.dtype == np.uint8
    assert not result.ids.flags.writeable


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet=st.sampled_from("ab\r\n\ufeffé漢\U0001f600"), min_size=1, max_size=30),
    newlines=st.sampled_from(["unix", "keep"]),
    size=st.integers(1, 9),
)
def test_any_text_with_any_blocks(
    tmp_path: Path, texts: Any, monkeypatch: pytest.MonkeyPatch, text: str, newlines: str, size: int
) -> None:
    """If this fails, a block boundary changes the text."""
    monkeypatch.setattr(sources, "_BLOCK", size)
    expected = text.removeprefix("\ufeff")
    if newlines == "unix":
        expected = expected.replace("\r\n", "\n").replace("\r", "\n")
    path = texts.write(tmp_path / hashlib.sha256(f"{text}{newlines}{size}".encode()).hexdigest()[:16], text.encode())
    if not expected:
        with pytest.raises(CorpusError, match="contains no text"):
            texts.encode(path, newlines=newlines)
        return
    assert texts.text_of(texts.encode(path, newlines=newlines)) == expected


def test_bytes_stay_as_they_are(tmp_path: Path, texts: Any, block: int) -> None:
    """If this fails, `unit: byte` loses or changes bytes."""
    content = b"\xef\xbb\xbf\r\n\x00" + bytes(range(255, -1, -1))
    result = texts.encode(texts.write(tmp_path, content), unit="byte")
    assert bytes(result.alphabet[result.ids].astype(np.uint8)) == content
    assert list(result.alphabet) == list(dict.fromkeys(content))
    assert (result.ids.dtype, result.converted_line_ends, result.byte_order_marks) == (np.uint8, 0, 0)


@pytest.mark.parametrize(
    ("symbols", "dtype"), [(256, np.uint8), (257, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)]
)
def test_ids_have_the_smallest_width(
    tmp_path: Path, texts: Any, monkeypatch: pytest.MonkeyPatch, symbols: int, dtype: type
) -> None:
    """If this fails, ids are too wide, or wrong after widening."""
    monkeypatch.setattr(sources, "_BLOCK", 1000)
    points = [point for point in range(32, 0x20000) if not 0xD800 <= point < 0xE000][:symbols]
    text = "".join(map(chr, points)) + "and then plain ASCII again"
    result = texts.encode(texts.write(tmp_path, text.encode()), newlines="keep")
    assert result.ids.dtype == dtype
    assert len(result.alphabet) == symbols
    assert texts.text_of(result) == text


def test_normalised(tmp_path: Path, texts: Any, block: int) -> None:
    """If this fails, a normalisation is not applied to the text with LF line ends."""
    path = texts.write(tmp_path, b"The Time\r\nMachine, 1895\r\n")
    assert texts.text_of(texts.encode(path, normalise="d2l-lines")) == "the timemachine"
    assert texts.text_of(texts.encode(path, normalise="d2l-whole")) == "the time machine "


def test_bytes_cannot_be_normalised(tmp_path: Path, texts: Any) -> None:
    """If this fails, a contradiction in the recipe is ignored."""
    with pytest.raises(RecipeError, match="unit: char, or normalise: none"):
        texts.encode(texts.write(tmp_path, b"text"), unit="byte", normalise="d2l-lines")


def test_an_empty_file(tmp_path: Path, texts: Any) -> None:
    """If this fails, an empty text is accepted or badly explained."""
    with pytest.raises(CorpusError, match="is empty; expected a text"):
        texts.encode(texts.write(tmp_path, b""))
    with pytest.raises(CorpusError, match="contains no text; expected a text"):
        texts.encode(texts.write(tmp_path, b"1, 2, 3"), normalise="d2l-lines")


def test_one_character_is_a_text(tmp_path: Path, texts: Any) -> None:
    """If this fails, the encoder refuses a text that only training must refuse."""
    assert texts.encode(texts.write(tmp_path, b"x")).characters == 1


def test_a_collection_skips_and_names_what_is_not_text(tmp_path: Path, texts: Any, block: int) -> None:
    """If this fails, a skipped file leaves traces in the text, its alphabet or its hash, or is skipped silently."""
    folder = tmp_path / "texts"
    foreign = "".join(map(chr, range(0x4E00, 0x4F40))).encode()  # would need two bytes per id
    contents = {"1.txt": b"one\r", "2.txt": foreign + b"\xff", "3.txt": b"\n\0", "4.txt": b"", "5.txt": "\ntwo丅".encode()}
    for name, content in contents.items():
        texts.write(folder, content, name)
    result = texts.encode(folder)
    assert texts.text_of(result) == "one\n\ntwo丅"
    assert result.skipped == ("2.txt", "3.txt", "4.txt")
    assert result.file_lengths == (4, 0, 0, 0, 5)
    assert result.sha256 == hashlib.sha256("one\r\ntwo丅".encode()).hexdigest()
    assert result.bytes == 11
    assert result.ids.dtype == np.uint8
    assert list(result.alphabet) == [ord(character) for character in "one\ntw丅"]


def test_a_collection_without_any_text(tmp_path: Path, texts: Any) -> None:
    """If this fails, a folder of pictures becomes an empty corpus."""
    texts.write(tmp_path / "pictures", b"\x89PNG\0", "a.png")
    with pytest.raises(CorpusError, match="contains no text: all 1 files"):
        texts.encode(tmp_path / "pictures")


def test_the_text_of_a_card_needs_no_encoding(texts: Any) -> None:
    """If this fails, a recipe's encoding is applied to the text inside a card."""
    sources = Sources("word", (SourceFile("word", None, "é\n"),))
    result = encode(sources, unit="char", encoding="utf-16", newlines="unix", normalise="none")
    assert texts.text_of(result) == "é\n"
    assert result.sha256 == hashlib.sha256("é\n".encode()).hexdigest()


def test_a_failure_leaves_nothing_behind(tmp_path: Path, texts: Any) -> None:
    """If this fails, every refused file leaves half an encoding in the cache."""
    with pytest.raises(CorpusError):
        texts.encode(texts.write(tmp_path, b"text \xff"))
    assert texts.entries() == []


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, texts: Any) -> None:
    """If this fails, a file that is still being written is accepted as complete."""
    path = texts.write(tmp_path, b"text")

    def grow(done: int, in_all: int) -> None:
        path.write_bytes(b"text, longer")

    with pytest.raises(CorpusError, match="changed while it was read"):
        texts.encode(path, progress=grow)


def test_progress_reaches_the_end(tmp_path: Path, texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, the progress bar does not move or never fills."""
    monkeypatch.setattr(sources, "_BLOCK", 10)
    seen: list[tuple[int, int]] = []
    texts.encode(texts.write(tmp_path, b"x" * 25), progress=lambda done, in_all: seen.append((done, in_all)))
    assert seen == [(10, 25), (20, 25), (25, 25)]
