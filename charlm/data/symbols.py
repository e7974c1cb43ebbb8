"""The symbols of a text, as code points or byte values, whether it is in memory or encoded on disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charlm.data.vocabulary import utf8_bytes

CodePoints = npt.NDArray[np.uint32]


def to_code_points(text: str) -> CodePoints:
    """A string as code points. Rare encodings can contain lone surrogates, which are ordinary code points here."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32, copy=False)


def to_text(points: CodePoints) -> str:
    """Code points as a string."""
    return points.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")


@dataclass(frozen=True)
class Symbols:
    """The symbols of a text that may be larger than memory: code points, or byte values. Nothing is copied until it is read.

    Attributes:
        indices: ``(N,)`` indices into ``alphabet``, usually a memory map.
        alphabet: code points or byte values.
    """

    indices: npt.NDArray[np.unsignedinteger]
    alphabet: CodePoints

    @classmethod
    def of_text(cls, text: str, unit: str) -> Symbols:
        """A text in memory, for a vocabulary of this unit (``char`` or ``byte``)."""
        symbols = np.frombuffer(utf8_bytes(text), np.uint8).astype(np.uint32) if unit == "byte" else to_code_points(text)
        alphabet, indices = np.unique(symbols, return_inverse=True)
        return cls(indices.astype(np.uint32), alphabet)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, start: int, stop: int) -> CodePoints:
        """The symbols start … stop − 1."""
        return np.asarray(self.alphabet[self.indices[start:stop]], dtype=np.uint32)

    def characters(self, start: int, stop: int) -> str:
        """The same as a string with one character per symbol; a byte becomes the code point of its value."""
        return to_text(self.read(start, stop))

    def utf8(self, start: int, stop: int, unit: str) -> bytes:
        """The same as UTF-8; with the unit ``byte``, the bytes themselves."""
        if unit == "byte":
            return self.read(start, stop).astype(np.uint8).tobytes()
        return self.characters(start, stop).encode("utf-8", "surrogatepass")
