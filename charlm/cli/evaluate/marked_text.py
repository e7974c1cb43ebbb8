"""A text in rows that fit the terminal, with a mark or a digit below each character, or a colour behind it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from charlm.cli.console import columns, has_colour, out, styled, visible_word

if TYPE_CHECKING:
    from charlm.data.vocabulary import Vocabulary
    from charlm.evaluation.texts import EvaluationText

LINE_END = "↵"
_WIDTH = 80
_LIGHT, _DARK = "color(231)", "color(16)"  # of the text
_GREENS = [*(f"{_LIGHT} on color({colour})" for colour in (16, 22, 28)), *(f"{_DARK} on color({c})" for c in (34, 40))]
_BLUES = [f"{_LIGHT} on color({colour})" for colour in range(16, 21)]
"""Styles from near 0 to the largest value."""


def shown_symbols(evaluated: EvaluationText, start: int, stop: int, unit: str) -> list[str]:
    """Each symbol ``start … stop − 1`` of a text as people read it: line ends are ``↵``, control characters visible."""
    data = evaluated.symbols.utf8(start, stop, unit)
    symbols = (
        [chr(byte) if byte < 128 else f"\\x{byte:02x}" for byte in data]
        if unit == "byte"
        else list(data.decode("utf-8", "surrogatepass"))
    )
    return [_shown(symbol) for symbol in symbols]


def shown_characters(evaluated: EvaluationText, start: int, stop: int, unit: str) -> list[tuple[str, int]]:
    """Like :func:`shown_symbols`, but a character of several bytes is one entry, also if each byte is a symbol.

    Returns:
        Each character, with the index of its last symbol, counted from ``start``.
    """
    if unit == "char":
        return [(symbol, index) for index, symbol in enumerate(shown_symbols(evaluated, start, stop, unit))]
    found, at = [], -1
    for character in evaluated.symbols.utf8(start, stop, unit).decode("utf-8", "surrogateescape"):
        data = character.encode("utf-8", "surrogateescape")
        at += len(data)
        is_utf8 = not 0xDC80 <= ord(character) <= 0xDCFF
        found.append((_shown(character) if is_utf8 else f"\\x{data[0]:02x}", at))
    return found


def _shown(character: str) -> str:
    return LINE_END if character == "\n" else visible_word(character)


def shown_names(vocabulary: Vocabulary) -> list[str]:
    """Each symbol of a vocabulary as :func:`shown_symbols` shows it, in quotes."""
    shown = [vocabulary.shown(index) for index in range(len(vocabulary))]
    return [name if name == "<unk>" else quoted(LINE_END if name in ("\n", "\\x0a") else visible_word(name)) for name in shown]


def quoted(symbol: str) -> str:
    """A symbol within a sentence."""
    return f"‘{symbol}’"


def percent(probability: float) -> str:
    """A probability for people."""
    return f"{100 * probability:.2g} %" if probability < 0.995 else f"{100 * probability:.4g} %"


def listed(names: Sequence[str], ids: Sequence[int], probabilities: Sequence[float]) -> str:
    """Symbols with their probabilities; the names are of :func:`shown_names`."""
    return ", ".join(f"{names[index]} {percent(share)}" for index, share in zip(ids, probabilities, strict=True))


def show_marked(
    symbols: Sequence[str], marks: Sequence[tuple[str, Sequence[str]]], styles: Sequence[str] | None = None
) -> None:
    """Write a text to stdout, with rows of marks below each row of text.

    Args:
        symbols: of :func:`shown_symbols`.
        marks: the name of a row, and one character for each symbol; rows without any mark are left out.
        styles: Rich styles of the symbols; on a terminal with colours they replace the marks.
    """
    margin = max(len(name) for name, _ in marks)
    margin += 2 if margin else 0
    for first, last in _rows(symbols, margin):
        if styles is not None and has_colour():
            styled(list(zip(symbols[first:last], styles[first:last], strict=True)))
            continue
        out(" " * margin + "".join(symbols[first:last]))
        for name, row in marks:
            pairs = zip(symbols[first:last], row[first:last], strict=True)
            below = "".join(mark * columns_of(symbol) for symbol, mark in pairs)
            if below.strip():
                out(f"{name:<{margin}}{below.rstrip()}")


def show_values(characters: Sequence[tuple[str, int]], values: Sequence[float]) -> None:
    """Write a text to stdout, each character with its value.

    On a terminal with colour the background is green above 0 and blue below. Otherwise a line of digits follows each line:
    0 for the lowest value, 9 for the highest.

    Args:
        characters: of :func:`shown_characters`.
        values: one per symbol.
    """
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    largest, span = max(abs(lowest), abs(highest)) or 1.0, (highest - lowest) or 1.0
    shown = [values[index] for _, index in characters]
    digits = [str(round(9 * (value - lowest) / span)) for value in shown]
    styles = [(_GREENS if value >= 0 else _BLUES)[min(4, int(5 * abs(value) / largest))] for value in shown]
    show_marked([character for character, _ in characters], [("", digits)], styles)


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def cut(symbols: Sequence[str], width: int = _WIDTH) -> int:
    """How many of the symbols fit into ``width`` columns."""
    used = 0
    for count, symbol in enumerate(symbols):
        used += columns_of(symbol)
        if used > width:
            return count
    return len(symbols)


def _rows(symbols: Sequence[str], margin: int) -> Iterator[tuple[int, int]]:
    width, first = max(10, min(_WIDTH, columns()) - margin), 0
    while first < len(symbols):
        last = first + max(1, cut(symbols[first : first + width], width))
        if LINE_END in symbols[first:last]:
            last = first + symbols[first:last].index(LINE_END) + 1
        yield first, last
        first = last
