"""Writes symbols to disk as small integers, numbered in order of first appearance.

The file has one byte per symbol up to 256 distinct symbols, then two, then four. To widen it, it is copied block by block,
so memory use is constant.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.data.symbols import to_code_points
from charlm.files import temporary_sibling

_CODE_POINTS = 0x110000
_COPY = 1 << 20  # symbols widened at a time

Ids = npt.NDArray[np.unsignedinteger[Any]]


def width_for(symbols: int) -> int:
    """Bytes per id for this number of distinct symbols: 1, 2 or 4."""
    return 1 if symbols <= 1 << 8 else 2 if symbols <= 1 << 16 else 4


def dtype_of(width: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The type of ids on disk: little-endian on every machine."""
    return np.dtype(f"<u{width}")


class IdsWriter:
    """Appends symbols to a new file. Use it in a ``with`` block.

    Attributes:
        alphabet: the distinct symbols (code points or byte values), in order of first appearance.
        characters: symbols written so far.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` for writing."""
        self.alphabet: list[int] = []
        self.characters = 0
        self._path = path
        self._file = path.open("w+b", buffering=0)
        self._width = 1
        self._index = np.full(_CODE_POINTS, -1, dtype=np.int32)  # code point → id; -1: unknown
        self._translation = bytes(256)  # byte → id, a table for bytes.translate
        self._known_bytes = b""

    def __enter__(self) -> IdsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, piece: bytes | str) -> None:
        """Write symbols: bytes (of any value, or ASCII characters), or characters."""
        if isinstance(piece, bytes):
            # bytes.translate runs at memory speed, which makes ASCII text fast.
            if new := piece.translate(None, self._known_bytes):
                self._add(list(dict.fromkeys(new)))
            if self._width == 1:
                self._write(piece.translate(self._translation))
            else:
                self._write(self._index[np.frombuffer(piece, np.uint8)].astype(dtype_of(self._width)))
        else:
            points = to_code_points(piece)
            ids = self._index[points]
            if ids.size and ids.min() < 0:
                new_points = points[ids < 0]
                symbols, first = np.unique(new_points, return_index=True)
                self._add([int(symbol) for symbol in symbols[np.argsort(first)]])
                ids = self._index[points]
            self._write(ids.astype(dtype_of(self._width)))
        self.characters += len(piece)

    def mark(self) -> tuple[int, int]:
        """The current position, for :meth:`rewind`."""
        return self.characters, len(self.alphabet)

    def rewind(self, mark: tuple[int, int]) -> None:
        """Remove everything written since ``mark``."""
        self.characters, known = mark
        self._index[self.alphabet[known:]] = -1
        del self.alphabet[known:]
        self._update_tables()
        self._file.truncate(self._file.seek(self.characters * self._width))

    def finish(self) -> int:
        """Change the file to the smallest width and return it, in bytes. Nothing can be written afterwards."""
        # It can become narrower only if symbols were rewound.
        self._change_width(width_for(len(self.alphabet)))
        return self._width

    def digest(self) -> str:
        """The sha256 of the file, read from disk."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def fileno(self) -> int:
        """The descriptor of the open file."""
        return self._file.fileno()

    def _add(self, symbols: list[int]) -> None:
        start = len(self.alphabet)
        self.alphabet += symbols
        self._index[symbols] = np.arange(start, len(self.alphabet), dtype=np.int32)
        self._change_width(max(self._width, width_for(len(self.alphabet))))
        self._update_tables()

    def _update_tables(self) -> None:
        self._known_bytes = bytes(np.flatnonzero(self._index[:256] >= 0).tolist())
        if self._width == 1:
            self._translation = self._index[:256].astype(np.uint8).tobytes()  # entries of unknown bytes are never used

    def _write(self, data: bytes | Ids) -> None:
        rest = memoryview(data if isinstance(data, bytes) else data.view(np.uint8).data)
        while rest:  # an unbuffered write can be partial
            rest = rest[self._file.write(rest) :]

    def _change_width(self, width: int) -> None:
        if width == self._width:
            return
        copy = temporary_sibling(self._path)
        file = copy.open("w+b", buffering=0)
        old, self._file = self._file, file
        with old:
            old.seek(0)
            while block := old.read(_COPY * self._width):
                # A short read can cut an id; read the rest of it.
                while len(block) % self._width:
                    block += old.read(self._width - len(block) % self._width)
                self._write(np.frombuffer(block, dtype_of(self._width)).astype(dtype_of(width)))
        self._width = width
        copy.replace(self._path)
