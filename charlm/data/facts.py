"""What can be said about a text without a model: how often each symbol occurs, and what compressors make of it."""

from __future__ import annotations

import lzma
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charlm.data.dataset import count
from charlm.data.encoding import Encoded, utf8

COMPRESSED_BYTES = 50_000_000  # a compressor sees at most so much; xz -9 needs minutes for more

_BLOCK = 1 << 20  # characters that are looked at at a time

# Unicode gives control characters no names.
_CONTROL_NAMES = {
    0x00: "NULL",
    0x07: "BELL",
    0x08: "BACKSPACE",
    0x09: "CHARACTER TABULATION",
    0x0A: "LINE FEED",
    0x0B: "LINE TABULATION",
    0x0C: "FORM FEED",
    0x0D: "CARRIAGE RETURN",
    0x1B: "ESCAPE",
    0x7F: "DELETE",
    0x85: "NEXT LINE",
}


@dataclass(frozen=True)
class Compressed:
    """What compressors need for a text.

    Attributes:
        bits_per_character: ``gzip`` and ``xz``, both at their strongest (-9).
        characters: how many were compressed: all, or those of the first :data:`COMPRESSED_BYTES`.
    """

    bits_per_character: dict[str, float]
    characters: int


def symbol_counts(encoded: Encoded) -> npt.NDArray[np.int64]:
    """How often each symbol of ``encoded.alphabet`` occurs, shape (symbols,)."""
    return count(encoded, 0, encoded.characters)


def compressed(encoded: Encoded, unit: str) -> Compressed:
    """Compress the text as a model would read it (characters as UTF-8), in pieces.

    Args:
        encoded: the text.
        unit: ``char`` or ``byte``, as it was encoded.
    """
    size = min(encoded.characters * 4, COMPRESSED_BYTES)
    # xz -9 has a dictionary of 64 MiB and needs ten times that in memory. One of the text's size finds all the same.
    dictionary = max(size, 1 << 12)
    xz = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}])
    gzip = zlib.compressobj(9, zlib.DEFLATED, 31)  # 31: the largest window, and gzip's header
    lengths = {"gzip": 0, "xz": 0}
    characters = done = 0
    for piece, held in _utf8(encoded, unit):
        lengths["gzip"] += len(gzip.compress(piece))
        lengths["xz"] += len(xz.compress(piece))
        characters += held
        done += len(piece)
        if done >= COMPRESSED_BYTES:
            break
    lengths["gzip"] += len(gzip.flush())
    lengths["xz"] += len(xz.flush())
    return Compressed({name: 8 * length / characters for name, length in lengths.items()}, characters)


def _utf8(encoded: Encoded, unit: str) -> Iterator[tuple[bytes, int]]:
    """Yield the text's bytes in pieces, each with the number of its characters."""
    for start in range(0, encoded.characters, _BLOCK):
        stop = min(start + _BLOCK, encoded.characters)
        yield utf8(encoded, start, stop, unit), stop - start


def name_of(symbol: int, unit: str) -> str:
    """Name a symbol unmistakably: ``U+000A LINE FEED``, or ``0x0A`` for a byte."""
    if unit == "byte":
        return f"0x{symbol:02X}"
    name = unicodedata.name(chr(symbol), None) or _CONTROL_NAMES.get(symbol, "without a name")
    return f"U+{symbol:04X} {name}"


def is_plain(symbol: int) -> bool:
    """Tell characters that show what they are from those that do not: spaces, controls, combining marks."""
    return unicodedata.category(chr(symbol))[0] in "LNPS"
