"""Statistics of a text: compressed sizes, names of symbols."""

import gzip
import lzma

import pytest

from charlm.data import facts
from charlm.data.encoded import Encoded
from charlm.data.encoding import encode
from charlm.data.sources import SourceFile, Sources

TEXT = "Häuser, Häfen und 漢字\n" * 50


def encoded(text: str, unit: str = "char") -> Encoded:
    sources = Sources("text", (SourceFile("text", None, text),))
    return encode(sources, unit=unit, encoding="utf-8", newlines="unix", normalise="none")


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_compressors_see_the_whole_text(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """If this fails, the compressed sizes are those of another text."""
    monkeypatch.setattr(facts, "_BLOCK", 13)
    result = facts.compressed_size(encoded(TEXT, unit), unit)
    content = TEXT.encode()
    symbols = len(TEXT) if unit == "char" else len(content)
    assert result.characters == symbols
    assert result.bits_per_character["gzip"] == 8 * len(gzip.compress(content, 9)) / symbols
    assert result.bits_per_character["xz"] == pytest.approx(8 * len(lzma.compress(content, preset=9)) / symbols, rel=0.01)


def test_a_long_text_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a large text takes minutes, or bits are divided by characters that were not compressed."""
    monkeypatch.setattr(facts, "_BLOCK", 10)
    monkeypatch.setattr(facts, "COMPRESSED_BYTES", 100)
    result = facts.compressed_size(encoded("x" * 1000), "char")
    assert result.characters == 100
    assert result.bits_per_character["gzip"] == 8 * len(gzip.compress(b"x" * 100, 9)) / 100


def test_names() -> None:
    """If this fails, a stray character cannot be distinguished from similar ones."""
    assert facts.name_of(0x0A, "char") == "U+000A LINE FEED"
    assert facts.name_of(0xE9, "char") == "U+00E9 LATIN SMALL LETTER E WITH ACUTE"
    assert facts.name_of(0x81, "char") == "U+0081 without a name"
    assert facts.name_of(0x0A, "byte") == "0x0A"


@pytest.mark.parametrize(("character", "plain"), [("a", True), ("漢", True), ("€", True), ("!", True), (" ", False)])
def test_visible_characters(character: str, plain: bool) -> None:
    """If this fails, visible characters are shown by name, or invisible ones are printed."""
    assert facts.is_visible(ord(character)) is plain


@pytest.mark.parametrize("character", ["\n", "\x1b", "\u0301", "\u200b", "\u202e", "\xa0", "\ue000"])
def test_invisible_characters(character: str) -> None:
    """If this fails, a control character reaches the terminal."""
    assert not facts.is_visible(ord(character))
