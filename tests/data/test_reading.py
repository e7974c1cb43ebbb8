"""Reading: the text in any encoding and at any block size; files that are not text are refused with advice."""

from pathlib import Path
from typing import Any

import pytest

from charlm.errors import CorpusError, RecipeError


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "gb18030"])
def test_other_encodings(tmp_path: Path, texts: Any, block: int, name: str) -> None:
    """If this fails, a text in a stated encoding is misread at some block length."""
    text = "café\r\nnoir\n"
    assert texts.text_of(texts.encode(texts.write(tmp_path, text.encode(name)), encoding=name)) == "café\nnoir\n"


def test_keeping_line_ends(tmp_path: Path, texts: Any) -> None:
    """If this fails, `newlines: keep` converts line ends, or counts them as converted."""
    result = texts.encode(texts.write(tmp_path, b"a\r\nb"), newlines="keep")
    assert (texts.text_of(result), result.converted_line_ends) == ("a\r\nb", 0)


@pytest.mark.parametrize("name", ["klingon", "zlib", "hex", "", "utf\0"])
def test_an_encoding_that_does_not_exist(tmp_path: Path, texts: Any, name: str) -> None:
    """If this fails, a wrong `data.encoding` causes a traceback or an unclear error."""
    with pytest.raises(RecipeError, match="expected one such as utf-8"):
        texts.encode(texts.write(tmp_path, b"text"), encoding=name)


@pytest.mark.parametrize(
    ("content", "offset", "byte"),
    [
        (b"good text\xff", 9, "0xFF"),
        ("é".encode() * 5 + b"\xc3(", 10, "0xC3"),
        (b"cut in the middle \xe6\xbc", 18, "0xE6"),
        (b"a" * 13 + b"\xe9tude", 13, "0xE9"),
    ],
)
def test_a_wrong_byte_is_found_exactly(tmp_path: Path, texts: Any, block: int, content: bytes, offset: int, byte: str) -> None:
    """If this fails, the error names the wrong offset or byte."""
    with pytest.raises(CorpusError) as raised:
        texts.encode(texts.write(tmp_path, content))
    message = str(raised.value)
    assert message.startswith(f"text.txt: byte {byte} at offset {offset} is not utf-8 text")
    assert "data.encoding: latin-1" in message
    assert "data.unit: byte" in message


@pytest.mark.parametrize(
    ("content", "offset", "advice"),
    [
        (b"ELF\0\1\2\3", 3, "data.unit: byte"),
        ("wide text".encode("utf-16-le"), 1, "data.encoding: utf-16-le"),
        ("wide text".encode("utf-16-be"), 0, "data.encoding: utf-16-be"),
    ],
)
def test_a_nul_looks_binary(tmp_path: Path, texts: Any, content: bytes, offset: int, advice: str) -> None:
    """If this fails, a binary file is accepted as text, or UTF-16 is not recognised."""
    with pytest.raises(CorpusError, match=f"looks binary .NUL at offset {offset}.") as raised:
        texts.encode(texts.write(tmp_path, content))
    assert advice in str(raised.value)


@pytest.mark.parametrize("name", ["utf-16", "utf-32"])
def test_a_byte_order_mark_reveals_utf_16(tmp_path: Path, texts: Any, name: str) -> None:
    """If this fails, the error does not suggest the encoding that the byte-order mark shows."""
    with pytest.raises(CorpusError, match=f"probably data.encoding: {name}"):
        texts.encode(texts.write(tmp_path, "text".encode(name)))
