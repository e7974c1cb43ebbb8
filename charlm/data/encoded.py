"""An encoded text: integers on disk, independent of any vocabulary, and the settings that determine them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from charlm.data.ids import Ids
from charlm.data.normalisation import normalisation
from charlm.data.reading import canonical_encoding
from charlm.data.records import RecordForm
from charlm.data.symbols import CodePoints, Symbols
from charlm.errors import RecipeError


@dataclass(frozen=True)
class EncodingSettings:
    """The settings that, with the bytes of the files, determine an encoded text.

    Attributes:
        unit: ``char`` or ``byte``.
        encoding: of the files, by Python's canonical name.
        newlines: ``unix`` (CRLF and CR become LF) or ``keep``.
        normalise: a name of :data:`charlm.data.normalisation.NORMALISATIONS`.
        records: ``data.records``; ``None``: one stream.
    """

    unit: str
    encoding: str
    newlines: str
    normalise: str
    records: str | None = None

    @classmethod
    def validated(cls, unit: str, encoding: str, newlines: str, normalise: str, records: str | None = None) -> EncodingSettings:
        """Check the values and bring them to one canonical form.

        Raises:
            RecipeError: an unknown encoding or normalisation, or a normalisation of bytes or records.
        """
        normalisation(normalise)
        if records is not None and normalise != "none":
            raise RecipeError(
                f"data.normalise: {normalise} removes what separates records; set normalise: none, or remove data.records"
            )
        if unit == "char":
            return cls(unit, canonical_encoding(encoding), newlines, normalise, records)
        if normalise != "none":
            raise RecipeError(
                f"data.unit: byte excludes data.normalise: {normalise}, which changes characters; "
                "use unit: char, or normalise: none"
            )
        return cls(unit, "utf-8", "keep", "none", records)  # irrelevant for bytes: all values share one cache entry

    @property
    def record_form(self) -> RecordForm | None:
        """How the files contain records; ``None``: the text is one stream."""
        return RecordForm.of(self.records, self.unit)

    def to_json(self) -> dict[str, str]:
        """The form that the cache stores. Without records it has no such key, as in earlier versions."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class TextDigest:
    """Size and sha256 of a text: of the bytes of all files that were not skipped, one after the other."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Encoded:
    """A corpus as integers.

    Attributes:
        ids: shape (characters,), a read-only memory map: indices into ``alphabet``, as uint8, uint16 or uint32.
        alphabet: code points (``unit: char``) or byte values (``unit: byte``), as uint32, in order of first appearance.
        file_lengths: number of characters from each file of the corpus, in order; 0 if it was skipped.
        sha256: of the bytes of the files that were not skipped, one after the other.
        bytes: the number of these bytes.
        converted_line_ends: CRLF and CR that became LF.
        byte_order_marks: files that began with a byte-order mark. The mark is not part of the text.
        skipped: labels of files in a collection that are empty or not text.
        empty_records: number of empty records that were dropped.
    """

    ids: Ids
    alphabet: CodePoints
    file_lengths: tuple[int, ...]
    sha256: str
    bytes: int
    converted_line_ends: int
    byte_order_marks: int
    skipped: tuple[str, ...]
    empty_records: int = 0

    @property
    def characters(self) -> int:
        """N: the length of the text."""
        return len(self.ids)

    @property
    def digest(self) -> TextDigest:
        """Size and sha256 of the text."""
        return TextDigest(self.bytes, self.sha256)

    def symbols(self, start: int, stop: int) -> Symbols:
        """The symbols start … stop − 1."""
        return Symbols(self.ids[start:stop], self.alphabet)
