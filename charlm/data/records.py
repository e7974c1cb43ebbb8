"""Texts made of records: independent samples such as names, poems or molecules.

A text of records is encoded in one canonical form, whatever separates the records in its files. S is one symbol::

    S record S record S … record S

Each record is read after the S before it, and its last target is the S after it. So every symbol but the first S is scored
exactly once, as in any other text. Empty records are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from charlm.config import DataSection
from charlm.data.vocabulary import utf8_bytes
from charlm.errors import CorpusError

_BLOCK = 1 << 24  # characters searched at a time


@dataclass(frozen=True)
class RecordForm:
    """How the files of a corpus contain records.

    Attributes:
        literal: the text between two records; ``None``: each file is a record.
        symbol: S, as a code point or byte value. It is ``literal`` if that is one symbol, else NUL, which no record contains.
    """

    literal: str | None
    symbol: int

    @classmethod
    def of(cls, records: str | None, unit: str) -> RecordForm | None:
        """The form that ``data.records`` names; ``None``: the text is one stream."""
        if records is None or records == "file":
            return None if records is None else cls(None, 0)
        literal = "\n" if records == "line" else records
        is_one_symbol = len(literal) == 1 and (unit == "char" or literal.isascii())
        return cls(literal, ord(literal) if is_one_symbol else 0)

    @property
    def written(self) -> str:
        """What ends a record in a file of samples: the separator, or a line end if each record is a file."""
        return "\n" if self.literal is None else self.literal


def separator_of(section: DataSection) -> int | None:
    """S of a text with these settings, as a code point or byte value; ``None``: the text is one stream."""
    form = RecordForm.of(section.records, section.unit)
    return None if form is None else form.symbol


class RecordReader:
    """Brings the files of a corpus to the canonical form, one after the other.

    Attributes:
        empty: number of empty records that were dropped.
    """

    def __init__(self, form: RecordForm) -> None:
        self.empty = 0
        self._form = form

    def characters(self, pieces: Iterable[str], label: str, *, is_first: bool) -> Iterator[str]:
        """One file of characters in the canonical form. The end of the file ends a record.

        Args:
            pieces: its text; where it is cut does not matter.
            label: its name in messages.
            is_first: whether S comes first; after another file it is there already.

        Raises:
            CorpusError: S is NUL, and the file contains one.
        """
        literal, mark = self._form.literal, chr(self._form.symbol)
        held, is_open = "", False  # the end of the last piece, which may begin a separator; a record has begun
        for piece in pieces:
            if mark != literal and mark in piece:
                raise CorpusError(
                    f"{label} contains NUL, the separator between records; remove it from the text, or set "
                    "data.records to a single character that separates the records"
                )
            text = held + piece
            *ended, rest = [text] if literal is None else text.split(literal)
            begun = len(rest) - (0 if literal is None else min(len(literal) - 1, len(rest)))
            records = [record for number, record in enumerate(ended) if record or (is_open and number == 0)]
            self.empty += len(ended) - len(records)
            if found := "".join(f"{record}{mark}" for record in records) + rest[:begun]:
                yield f"{mark}{found}" if is_first else found
                is_first = False
            is_open, held = begun > 0 or (is_open and not ended), rest[begun:]
        if held or is_open:
            yield f"{mark}{held}{mark}" if is_first else f"{held}{mark}"

    def bytes(self, pieces: Iterable[bytes], label: str, *, is_first: bool) -> Iterator[bytes]:
        """As :meth:`characters`, for a file of bytes."""
        literal, symbol = self._form.literal, self._form.symbol
        separator = None if literal is None else _latin(utf8_bytes(literal, "data.records"))
        as_text = RecordReader(RecordForm(separator, symbol))
        for piece in as_text.characters(map(_latin, pieces), label, is_first=is_first):
            yield piece.encode("latin-1")
        self.empty += as_text.empty


def _latin(data: bytes) -> str:
    """Each byte as the character of its value."""
    return data.decode("latin-1")


def record_bounds(indices: npt.NDArray[np.unsignedinteger], separator: int) -> npt.NDArray[np.int64]:
    """The places of the separators: record i is ``indices[bounds[i] + 1 : bounds[i + 1]]``.

    Args:
        indices: a text in the canonical form, or a part of one.
        separator: the index of S.
    """
    found = [np.flatnonzero(indices[at : at + _BLOCK] == separator) + at for at in range(0, len(indices), _BLOCK)]
    return np.concatenate([np.zeros(0, np.int64), *found])
