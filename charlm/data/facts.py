"""Statistics of a text for ``corpus show``: compressed sizes and names of its symbols."""

from __future__ import annotations

import lzma
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from charlm.data.encoded import Encoded

COMPRESSED_BYTES = 50_000_000  # compressed at most: xz -9 takes minutes for more

_BLOCK = 1 << 20  # characters compressed at a time

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
class CompressedSize:
    """Compressed size of a text.

    Attributes:
        bits_per_character: of ``gzip -9`` and ``xz -9``.
        characters: number of compressed characters: all, or those in the first :data:`COMPRESSED_BYTES`.
    """

    bits_per_character: dict[str, float]
    characters: int


def compressed_size(encoded: Encoded, unit: str) -> CompressedSize:
    """Compress the text as a model reads it (characters as UTF-8), block by block.

    Args:
        encoded: the text.
        unit: ``char`` or ``byte``.
    """
    size = min(encoded.characters * 4, COMPRESSED_BYTES)
    # xz -9 has a dictionary of 64 MiB, which takes ten times that in memory. One as large as the text compresses as well.
    dictionary = max(size, 1 << 12)
    xz = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}])
    gzip = zlib.compressobj(9, zlib.DEFLATED, 31)  # 31: the largest window, with gzip's header
    lengths = {"gzip": 0, "xz": 0}
    characters = done = 0
    for piece, length in _utf8(encoded, unit):
        lengths["gzip"] += len(gzip.compress(piece))
        lengths["xz"] += len(xz.compress(piece))
        characters += length
        done += len(piece)
        if done >= COMPRESSED_BYTES:
            break
    lengths["gzip"] += len(gzip.flush())
    lengths["xz"] += len(xz.flush())
    return CompressedSize({name: 8 * size / characters for name, size in lengths.items()}, characters)


def _utf8(encoded: Encoded, unit: str) -> Iterator[tuple[bytes, int]]:
    """Yield the text's bytes block by block, each with its number of characters."""
    text = encoded.symbols(0, encoded.characters)
    for start in range(0, encoded.characters, _BLOCK):
        stop = min(start + _BLOCK, encoded.characters)
        yield text.utf8(start, stop, unit), stop - start


def name_of(symbol: int, unit: str) -> str:
    """The unambiguous name of a symbol: ``U+000A LINE FEED``, or ``0x0A`` for a byte."""
    if unit == "byte":
        return f"0x{symbol:02X}"
    name = unicodedata.name(chr(symbol), None) or _CONTROL_NAMES.get(symbol, "without a name")
    return f"U+{symbol:04X} {name}"


def is_visible(symbol: int) -> bool:
    """Whether a character can be recognised when it is printed alone: not a space, control or combining mark."""
    return unicodedata.category(chr(symbol))[0] in "LNPS"
