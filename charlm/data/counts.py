"""Counts the symbols of an encoded text; the counts of large texts are stored in the cache."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from charlm.data.encoded import Encoded
from charlm.errors import CorpusError
from charlm.files import whole_file

_BLOCK = 1 << 22  # characters counted at a time
_STORE_FROM = 1 << 24  # characters; shorter texts are counted faster than a file is read


def count_symbols(encoded: Encoded, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Count each symbol of ``encoded.alphabet`` in the characters start … stop − 1.

    Returns:
        Shape (symbols,).

    Raises:
        CorpusError: the cache entry is damaged.
    """
    stored: Path | None = None
    if stop - start >= _STORE_FROM and isinstance(encoded.ids, np.memmap) and encoded.ids.filename:
        stored = Path(encoded.ids.filename).with_name(f"counts-{start}-{stop}.npy")
        if (known := _read(stored, len(encoded.alphabet), stop - start)) is not None:
            return known
    total = np.zeros(len(encoded.alphabet), dtype=np.int64)
    for block in range(start, stop, _BLOCK):
        found = np.bincount(encoded.ids[block : min(stop, block + _BLOCK)], minlength=len(total))
        if len(found) > len(total):
            raise CorpusError("the encoded text in the cache is damaged; start again with verify, which rebuilds it")
        total += found
    if stored is not None and stored.parent.is_dir():  # the entry can have been pruned
        with suppress(OSError), whole_file(stored, mode=0o600) as file:  # read-only cache: count again next time
            file.write(_npy(total))
    return total


def _npy(counts: npt.NDArray[np.int64]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, counts)
    return buffer.getvalue()


def _read(path: Path, symbols: int, characters: int) -> npt.NDArray[np.int64] | None:
    """Read stored counts; ``None`` if there are none, or if their shape or sum is wrong."""
    expected = _npy(np.zeros(symbols, dtype=np.int64))
    header = expected[: len(expected) - 8 * symbols]
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) != len(expected) or not data.startswith(header):
        return None
    counts = np.frombuffer(data, dtype=np.int64, offset=len(header))
    return counts if counts.min() >= 0 and counts.sum() == characters else None
