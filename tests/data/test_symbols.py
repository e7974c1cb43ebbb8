"""The symbols of a text, in memory and encoded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from charlm.data.symbols import Symbols, to_code_points, to_text


@given(st.text(max_size=30))
def test_symbols_are_those_of_the_text(text: str) -> None:
    """If this fails, features and states are of different characters."""
    assert Symbols.of_text(text, "char").characters(0, len(text)) == text
    assert bytes(Symbols.of_text(text, "byte").read(0, 999).tolist()) == text.encode()
    assert (
        Symbols.of_text(text, "byte").utf8(0, 999, "byte")
        == Symbols.of_text(text, "char").utf8(0, 999, "char")
        == text.encode()
    )


def test_lone_surrogates_are_code_points() -> None:
    """If this fails, a text in a rare encoding ends in a traceback."""
    assert to_text(to_code_points("a\udc80b")) == "a\udc80b"
    assert to_code_points("a\udc80b").tolist() == [97, 0xDC80, 98]
