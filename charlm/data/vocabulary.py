"""Vocabularies: conversion between text and ids 0 … V−1.

A vocabulary of characters has ``<unk>`` as id 0, for every character outside it. A vocabulary of bytes is 0 … 255 and has
no ``<unk>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from charlm.errors import CharlmError, UsageError

UNKNOWN = "<unk>"
UNICODE_CODE_POINTS = 0x110000 - 0x800  # without the surrogates, which are not characters


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of symbols.

    Attributes:
        unit: ``char`` (symbols are code points) or ``byte``.
        symbols: code points in ascending order, without ``<unk>``; for ``byte``: 0 … 255.
        separator: the symbol before and after each record of the text, one of ``symbols``; ``None``: the text is one stream.
    """

    unit: str
    symbols: tuple[int, ...]
    separator: int | None = None

    @classmethod
    def of_bytes(cls) -> Vocabulary:
        """The vocabulary of all 256 byte values."""
        return cls("byte", tuple(range(256)))

    @classmethod
    def from_counts(cls, alphabet: Sequence[int], counts: Sequence[int], min_count: int) -> Vocabulary:
        """The characters of ``alphabet`` that occur at least ``min_count`` times (and at least once)."""
        kept = (int(c) for c, count in zip(alphabet, counts, strict=True) if count >= max(1, min_count))
        return cls("char", tuple(sorted(kept)))

    def union(self, other: Vocabulary) -> Vocabulary:
        """The symbols of this vocabulary and of ``other``."""
        return Vocabulary(self.unit, tuple(sorted({*self.symbols, *other.symbols})))

    def with_separator(self, separator: int | None) -> Vocabulary:
        """The same for a text of records (see :mod:`charlm.data.records`); the separator is added if it is missing."""
        symbols = self.symbols if separator is None else tuple(sorted({*self.symbols, separator}))
        return Vocabulary(self.unit, symbols, separator)

    def __len__(self) -> int:
        """V: the number of ids, ``<unk>`` included."""
        return len(self.symbols) + self._first

    @property
    def _first(self) -> int:
        return 1 if self.unit == "char" else 0

    @property
    def unknown_id(self) -> int | None:
        """The id of ``<unk>``; ``None`` for bytes."""
        return 0 if self.unit == "char" else None

    @property
    def separator_id(self) -> int | None:
        """The id of the separator; ``None``: the text is one stream."""
        return None if self.separator is None else self._ids[self.separator]

    @cached_property
    def _ids(self) -> dict[int, int]:
        return {symbol: index + self._first for index, symbol in enumerate(self.symbols)}

    def id_of(self, symbol: int) -> int | None:
        """The id of a code point or byte value, or ``None``."""
        return self._ids.get(symbol)

    def symbol_of(self, index: int) -> int | None:
        """The code point or byte value of an id; ``None`` for ``<unk>``."""
        return None if index < self._first else self.symbols[index - self._first]

    def lookup(self, alphabet: Iterable[int]) -> npt.NDArray[np.int64]:
        """A table from the indices of an encoded text (see :mod:`charlm.data.encoding`) to ids; unknown → ``<unk>``."""
        unknown = self.unknown_id if self.unknown_id is not None else -1
        return np.array([self._ids.get(int(symbol), unknown) for symbol in alphabet], dtype=np.int64)

    @property
    def unknown_nats(self) -> float:
        """Cost in nats of naming an unknown character, added to that of ``<unk>``: uniform over all other code points."""
        return math.log(UNICODE_CODE_POINTS - len(self.symbols)) if self.unit == "char" else 0.0

    def encode(self, text: str, unknown: str = "error") -> list[int]:
        """Convert text to ids.

        Args:
            text: the text.
            unknown: characters outside the vocabulary: ``error`` refuses them, ``skip`` removes them, ``map`` maps them to
                ``<unk>``.

        Raises:
            UsageError: there are unknown characters and ``unknown="error"``; the message names them.
        """
        if self.unit == "byte":
            return list(utf8_bytes(text))
        ids = [self._ids.get(ord(character), 0) for character in text]
        if unknown == "map" or 0 not in ids:
            return ids
        if unknown == "skip":
            return [index for index in ids if index != 0]
        outside = "".join(dict.fromkeys(c for c, index in zip(text, ids, strict=True) if index == 0))
        raise UsageError(f"characters outside the model's vocabulary: {describe_characters(outside)}")

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text; ``<unk>`` and bytes that are not UTF-8 become U+FFFD."""
        if self.unit == "byte":
            return bytes(ids).decode("utf-8", "replace")
        return "".join("\ufffd" if (symbol := self.symbol_of(i)) is None else chr(symbol) for i in ids)

    def bytes_of(self, index: int) -> bytes:
        """A character in UTF-8, or a byte; the id is not that of ``<unk>``."""
        symbol = self.symbol_of(index)
        assert symbol is not None, "<unk> is no character"
        return bytes([symbol]) if self.unit == "byte" else chr(symbol).encode()

    def shown(self, index: int) -> str:
        """A readable form of an id: the character, ``<unk>``, or a byte (``\\xNN`` if it is not printable ASCII)."""
        symbol = self.symbol_of(index)
        if symbol is None:
            return UNKNOWN
        if self.unit == "byte" and not 32 <= symbol < 127:
            return f"\\x{symbol:02x}"
        return chr(symbol)

    def to_json(self) -> dict[str, object]:
        """The form that a checkpoint stores."""
        return {"unit": self.unit, "symbols": list(self.symbols) if self.unit == "char" else []}

    @classmethod
    def from_json(cls, stored: object) -> Vocabulary:
        """Read the form that :meth:`to_json` writes.

        Raises:
            CharlmError: ``stored`` does not have this form.
        """
        match stored:
            case {"unit": "byte", "symbols": []}:
                return cls.of_bytes()
            case {"unit": "char", "symbols": [*symbols]} if all(
                type(symbol) is int and _is_code_point(symbol) for symbol in symbols
            ) and all(one < next_one for one, next_one in pairwise(symbols)):
                return cls("char", tuple(symbols))
        raise CharlmError("invalid vocabulary: expected all bytes, or a list of code points in ascending order")


def _is_code_point(number: int) -> bool:
    return 0 <= number < 0xD800 or 0xE000 <= number < 0x110000


def utf8_bytes(text: str, name: str = "the text") -> bytes:
    """Encode a string as UTF-8. Command-line bytes that are not UTF-8, which Python passes as lone surrogates, are restored.

    Args:
        text: the string.
        name: what it is, for the message.

    Raises:
        UsageError: it contains any other lone surrogate.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} contains half of a surrogate pair (character {error.start + 1}); expected valid Unicode"
        ) from None


def describe_characters(characters: str, most: int = 8) -> str:
    """Unambiguous names of characters: ``'é' (U+00E9)``; of at most ``most`` of them."""
    names = [f"{c!r} (U+{ord(c):04X})" for c in characters[:most]]
    more = len(characters) - most
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
