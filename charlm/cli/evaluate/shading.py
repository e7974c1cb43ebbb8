"""Text with a number at each character: as background colours on a terminal, as digits below each line elsewhere."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence

from charlm.cli.console import columns, is_terminal, out, visible_word

_BLUE = (16, 17, 18, 19, 20)
_GREEN = (16, 22, 28, 34, 40)
"""Colours of the 256-colour palette, from near 0 to the largest value."""

_LIGHT, _DARK, _PLAIN = "\x1b[38;5;231m", "\x1b[38;5;16m", "\x1b[0m"
_MOST_COLUMNS = 80


def decode_symbols(text: bytes, unit: str) -> list[tuple[str, int]]:
    """A text as characters, each with the index of its last symbol.

    Args:
        text: UTF-8.
        unit: ``char``: a symbol is a character; ``byte``: it is a byte, and a byte that is not UTF-8 is shown as ``\\xNN``.
    """
    if unit == "char":
        return [(character, index) for index, character in enumerate(text.decode("utf-8", "surrogatepass"))]
    found, at = [], 0
    for character in text.decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        at += size
        shown = f"\\x{text[at - 1]:02x}" if 0xDC80 <= ord(character) <= 0xDCFF else character
        found.append((shown, at - 1))
    return found


def show_shaded(characters: Sequence[tuple[str, int]], values: Sequence[float]) -> None:
    """Write a text to stdout, each character with its value.

    On a terminal with colour the background is green above 0 and blue below. Otherwise a line of digits follows each line:
    0 for the lowest value, 9 for the highest.

    Args:
        characters: from :func:`decode_symbols`.
        values: one per symbol.
    """
    coloured = is_terminal(False) and not os.environ.get("NO_COLOR")
    lowest, highest = (min(values), max(values)) if len(values) else (0.0, 0.0)
    largest = max(abs(lowest), abs(highest)) or 1.0
    width = min(columns(), _MOST_COLUMNS)
    line, digits, used = "", "", 0
    for character, index in characters:
        shown = "\u23ce" if character == "\n" else character if character.startswith("\\x") else visible_word(character)
        size = sum(map(_width, shown))
        if used + size > width:
            _write(line, digits, coloured)
            line, digits, used = "", "", 0
        value = values[index]
        line += _coloured(shown, value / largest) if coloured else shown
        digit = round(9 * (value - lowest) / (highest - lowest)) if highest > lowest else 0
        digits += str(digit) * size
        used += size
        if character == "\n":
            _write(line, digits, coloured)
            line, digits, used = "", "", 0
    if used:
        _write(line, digits, coloured)


def _write(line: str, digits: str, coloured: bool) -> None:
    out(line if coloured else f"{line}\n{digits}")


def _coloured(shown: str, share: float) -> str:
    colour = (_GREEN if share >= 0 else _BLUE)[min(4, int(abs(share) * 5))]
    text = _DARK if colour in _GREEN[3:] else _LIGHT  # bright green needs dark letters
    return f"\x1b[48;5;{colour}m{text}{shown}{_PLAIN}"


def _width(character: str) -> int:
    """Terminal columns of a character."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
