"""Converts the bytes of a file to text: strict decoding, byte-order marks, line ends. Files that are not text are refused."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import AnyStr

from charlm.errors import CorpusError, RecipeError

# In these encodings a byte below 128 is always that ASCII character, so a block of ASCII needs no decoding.
_ASCII_COMPATIBLE = {"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252"}

# These decoders remove the byte-order mark; all others decode it as a character.
_MARKS = {
    "utf-8-sig": (codecs.BOM_UTF8,),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}

_HEAD = 4096  # bytes of a file used to guess its encoding


class NotTextError(CorpusError):
    """A file that is not text in the stated encoding. In a collection it is skipped."""


def canonical_encoding(name: str) -> str:
    """Python's canonical name of a text encoding, such as ``utf-8`` for ``UTF8``.

    Raises:
        RecipeError: the name is unknown.
    """
    try:
        "".encode(name)  # unlike codecs.lookup, this refuses codecs that are not text encodings, such as zlib
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        codec = None
    if codec is None or codec.incrementaldecoder is None:
        raise RecipeError(f"data.encoding: unknown encoding {name!r}; expected one such as utf-8, latin-1, cp1252 or utf-16")
    return codec.name


class TextReader:
    """Reads one file, block by block.

    Attributes:
        label: the file's name in messages.
        converted_line_ends: number of CRLF and CR that became LF.
        has_byte_order_mark: the file began with a byte-order mark, which is not text.
    """

    def __init__(self, label: str, encoding: str, newlines: str) -> None:
        """Create a reader.

        Args:
            label: the file's name in messages.
            encoding: from :func:`canonical_encoding`.
            newlines: ``unix`` converts CRLF and CR to LF; ``keep`` does not.
        """
        self.converted_line_ends = 0
        self.has_byte_order_mark = False
        self.label = label
        self._encoding = encoding
        self._unix = newlines == "unix"
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._head = b""
        self._after_cr = False

    def pieces(self, blocks: Iterable[bytes]) -> Iterator[bytes | str]:
        """Yield the text in pieces: bytes for a block of pure ASCII, which needs no decoding, else str.

        Raises:
            NotTextError: there is an invalid byte or a NUL character.
        """
        offset = characters = 0  # of the file, before this block
        pending = False  # the decoder holds an incomplete character
        for block in blocks:
            if offset == 0:
                self._head = block[:_HEAD]
                self.has_byte_order_mark = block.startswith(_MARKS.get(self._encoding, ()))
            piece: bytes | str
            if self._encoding in _ASCII_COMPATIBLE and not pending and block.isascii():
                piece = block
            else:
                piece = self._decode(block, offset)
                pending = bool(self._decoder.getstate()[0])
            if characters == 0 and isinstance(piece, str) and piece.startswith("\ufeff"):
                self.has_byte_order_mark, piece, characters = True, piece[1:], 1
            if piece:
                self._refuse_nul(piece, block, offset, characters)
                yield self._with_unix_line_ends(piece)
            offset += len(block)
            characters += len(piece)
        if rest := self._decode(b"", offset, final=True):
            yield self._with_unix_line_ends(rest)

    def _decode(self, block: bytes, offset: int, *, final: bool = False) -> str:
        held = len(self._decoder.getstate()[0])
        try:
            return self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            # error.object is the held bytes followed by the block.
            where = offset - held + error.start
            byte = error.object[error.start]
            found = f"byte 0x{byte:02X} at offset {where:,} is not {self._encoding} text ({error.reason})"
        except UnicodeError as error:
            found = f"not {self._encoding} text: {error}"
        raise NotTextError(f"{self.label}: {found}{self._advice('data.encoding: latin-1')}")

    def _refuse_nul(self, piece: bytes | str, block: bytes, offset: int, characters: int) -> None:
        if isinstance(piece, bytes):
            nul = piece.find(0)
        else:
            nul = piece.find("\0")
        if nul < 0:
            return
        if self._encoding.startswith(("utf-16", "utf-32")):  # their other characters contain NUL bytes too
            where = f"character {characters + nul:,}"
        else:
            where = f"offset {offset + block.find(0):,}"
        raise NotTextError(f"{self.label}: looks binary (NUL at {where}){self._advice(None)}")

    def _with_unix_line_ends(self, piece: bytes | str) -> bytes | str:
        if not self._unix:
            return piece
        return self._unify(piece, b"\r", b"\n") if isinstance(piece, bytes) else self._unify(piece, "\r", "\n")

    def _unify(self, piece: AnyStr, cr: AnyStr, lf: AnyStr) -> AnyStr:
        if self._after_cr and piece.startswith(lf):  # second half of a CRLF split across two pieces
            piece = piece[1:]
        self._after_cr = piece.endswith(cr)
        if found := piece.count(cr):
            self.converted_line_ends += found
            piece = piece.replace(cr + lf, lf).replace(cr, lf)
        return piece

    def _advice(self, encoding: str | None) -> str:
        guess = _wide_encoding(self._head)
        if guess is not None and guess != self._encoding:
            encoding = f"probably data.encoding: {guess}"
        ways = [f"if it is text in another encoding, set it ({encoding})"] if encoding else []
        ways.append("to read any file as bytes, set data.unit: byte")
        return f"\n  {'; '.join(ways)}"


def _wide_encoding(head: bytes) -> str | None:
    """Guess UTF-16 and UTF-32 from the first bytes: by a byte-order mark, or by NULs in every other byte."""
    for encoding in ("utf-32", "utf-16"):  # the mark of UTF-32-LE begins with that of UTF-16-LE
        if head.startswith(_MARKS[encoding]):
            return encoding
    even, odd = head[::2].count(0), head[1::2].count(0)
    many, few = len(head) / 4, len(head) / 50
    if odd > many and even <= few:
        return "utf-16-le"
    if even > many and odd <= few:
        return "utf-16-be"
    return None
