"""One pass over the bytes of a corpus: sha256, strict decoding, line ends, normalisation; the symbols go to a writer.

Memory use does not depend on the length of the text. Speed is about 200 MB/s for plain English.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from charlm.data.encoded import EncodingSettings, TextDigest
from charlm.data.normalisation import normalisation
from charlm.data.reading import NotTextError, TextReader
from charlm.data.records import RecordReader
from charlm.data.sources import SourceFile, Sources
from charlm.errors import CorpusError
from charlm.progress import Progress


class SymbolWriter(Protocol):
    """Receives the symbols of a text; can return to an earlier position."""

    characters: int

    def append(self, piece: bytes | str) -> None: ...
    def mark(self) -> tuple[int, int]: ...
    def rewind(self, mark: tuple[int, int]) -> None: ...


class SymbolCounter:
    """A writer that counts symbols and stores none. At the end of a file it refuses more than ``limit`` symbols."""

    def __init__(self, limit: int) -> None:
        self.characters = 0
        self._limit = limit

    def append(self, piece: bytes | str) -> None:
        """Count the symbols of ``piece``."""
        self.characters += len(piece)

    def mark(self) -> tuple[int, int]:
        """The current position.

        Raises:
            CorpusError: there are more than ``limit`` symbols.
        """
        if self.characters > self._limit:
            raise CorpusError(f"more than {self._limit:,} characters")
        return self.characters, 0

    def rewind(self, mark: tuple[int, int]) -> None:
        """Return to an earlier position."""
        self.characters, _ = mark


@dataclass(frozen=True)
class PassResult:
    """What a pass found, besides the symbols.

    Attributes:
        digest: of the files that were not skipped.
        content_sha256: of all files, one after the other.
        file_lengths, converted_line_ends, byte_order_marks, skipped, empty_records: see :class:`charlm.data.encoded.Encoded`.
    """

    digest: TextDigest
    content_sha256: str
    file_lengths: tuple[int, ...]
    converted_line_ends: int
    byte_order_marks: int
    skipped: tuple[str, ...]
    empty_records: int


class _HashingReader:
    """Reads the files of a corpus once and hashes their bytes.

    ``content`` hashes all files, ``text`` those that were not skipped. They are one object until a file is skipped.
    """

    def __init__(self, sources: Sources, progress: Progress | None) -> None:
        self.content = hashlib.sha256()
        self.text = self.content
        self.bytes_read = self.text_bytes = 0
        self._progress = progress
        self._total = sources.size()

    def blocks(self, file: SourceFile) -> Iterator[bytes]:
        for block in file.blocks():
            self.content.update(block)
            if self.text is not self.content:
                self.text.update(block)
            self.bytes_read += len(block)
            self.text_bytes += len(block)
            yield block
            if self._progress is not None:
                self._progress(self.bytes_read, max(self.bytes_read, self._total))


def hash_files(sources: Sources, progress: Progress | None = None) -> str:
    """The sha256 of the bytes of all files, one after the other.

    Raises:
        CorpusError: a file cannot be read.
    """
    reader = _HashingReader(sources, progress)
    for file in sources.files:
        for _ in reader.blocks(file):
            pass
    return reader.content.hexdigest()


def read_text(
    sources: Sources, settings: EncodingSettings, writer: SymbolWriter, progress: Progress | None = None
) -> PassResult:
    """Read the text of a corpus and pass its symbols to a writer.

    Args:
        sources: the files.
        settings: how they become text.
        writer: receives the symbols.
        progress: counts bytes of the files.

    Raises:
        NotTextError: a single file is not text, or is empty.
        CorpusError: a file cannot be read, or no file of a collection is text.
    """
    bytes_of = _HashingReader(sources, progress)
    lengths, skipped, line_ends, marks, empty = [], [], 0, 0, 0
    form = settings.record_form
    for file in sources.files:
        before, hash_before, bytes_before = writer.mark(), bytes_of.text.copy(), bytes_of.text_bytes
        blocks = bytes_of.blocks(file)
        records = None if form is None else RecordReader(form)
        # A card's own text is UTF-8 in memory; the setting applies to files.
        reader = TextReader(file.label, settings.encoding if file.path else "utf-8", settings.newlines)
        try:
            for piece in _pieces(reader, blocks, settings, records, is_first=not writer.characters):
                writer.append(piece)
            if writer.mark() == before:
                found = "is empty" if bytes_of.text_bytes == bytes_before else "contains no text"
                raise NotTextError(f"{file.label} {found}; expected a text")
        except NotTextError:
            if not sources.is_collection:
                raise
            for _ in blocks:  # hash the rest of the file
                pass
            writer.rewind(before)
            bytes_of.text, bytes_of.text_bytes = hash_before, bytes_before
            skipped.append(file.label)
            lengths.append(0)
        else:
            empty += 0 if records is None else records.empty
            lengths.append(writer.characters - before[0])
            line_ends += reader.converted_line_ends
            marks += reader.has_byte_order_mark
    if writer.characters == 0:
        raise CorpusError(_no_text(sources, skipped))
    digest = TextDigest(bytes_of.text_bytes, bytes_of.text.hexdigest())
    return PassResult(digest, bytes_of.content.hexdigest(), tuple(lengths), line_ends, marks, tuple(skipped), empty)


def _pieces(
    reader: TextReader, blocks: Iterator[bytes], settings: EncodingSettings, records: RecordReader | None, *, is_first: bool
) -> Iterable[bytes | str]:
    if settings.unit == "byte":
        return blocks if records is None else records.bytes(blocks, reader.label, is_first=is_first)
    pieces = reader.pieces(blocks)
    if settings.normalise == "none" and records is None:
        return pieces
    texts = (piece.decode("ascii") if isinstance(piece, bytes) else piece for piece in pieces)
    if records is not None:
        return records.characters(texts, reader.label, is_first=is_first)
    return normalisation(settings.normalise)(texts)


def _no_text(sources: Sources, skipped: list[str]) -> str:
    names = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
    return (
        f"the corpus {sources.name} contains no text: all {len(skipped)} files are empty or not text in the configured "
        f"encoding ({names}); set their encoding (data.encoding: latin-1), or read them as bytes (data.unit: byte)"
    )
