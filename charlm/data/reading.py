"""From a file's bytes to its text: strict decoding, byte-order marks, line ends; what is not text is refused."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import AnyStr

from charlm.errors import CorpusError, RecipeError

# In these encodings a byte below 128 is always that ASCII character, so that a block of ASCII needs no decoding.
_ASCII_COMPATIBLE = {"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252"}

# These decoders take the byte-order mark away themselves; all others hand it on as a character.
_MARKS = {
    "utf-8-sig": (codecs.BOM_UTF8,),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}

_HEAD = 4096  # bytes of a file that are looked at to guess what it is


class NotTextError(CorpusError):
    """A file that is not text in the stated encoding. In a collection it is skipped."""


def canonical_encoding(name: str) -> str:
    """Python's own name of a text encoding, such as ``utf-8`` of ``UTF8``.

    Raises:
        RecipeError: there is none of that name.
    """
    try:
        "".encode(name)  # unlike codecs.lookup, this refuses what is no text encoding, such as zlib
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        codec = None
    if codec is None or codec.incrementaldecoder is None:
        raise RecipeError(
            f"data.encoding: no encoding is called {name!r}; expected one such as utf-8, latin-1, cp1252 or utf-16"
        )
    return codec.name


class TextReader:
    """Reads one file, block by block.

    Attributes:
        line_ends: how many CRLF and CR were read as LF.
        has_mark: the file began with a byte-order mark, which is not text.
    """

    def __init__(self, label: str, encoding: str, newlines: str) -> None:
        """Prepare to read.

        Args:
            label: the file's name in messages.
            encoding: as :func:`canonical_encoding` gives it.
            newlines: ``unix`` reads CRLF and CR as LF; ``keep`` leaves them.
        """
        self.line_ends = 0
        self.has_mark = False
        self._label = label
        self._encoding = encoding
        self._unix = newlines == "unix"
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._head = b""
        self._after_cr = False

    def pieces(self, blocks: Iterable[bytes]) -> Iterator[bytes | str]:
        """Yield the text in pieces: as bytes where a block is pure ASCII (which saves decoding it), else as str.

        Raises:
            NotTextError: a byte that the encoding does not have, or a NUL character.
        """
        offset = characters = 0  # of the file, before this block
        pending = False  # the decoder holds the beginning of a character
        for block in blocks:
            if offset == 0:
                self._head = block[:_HEAD]
                self.has_mark = block.startswith(_MARKS.get(self._encoding, ()))
            piece: bytes | str
            if self._encoding in _ASCII_COMPATIBLE and not pending and block.isascii():
                piece = block
            else:
                piece = self._decode(block, offset)
                pending = bool(self._decoder.getstate()[0])
            if characters == 0 and isinstance(piece, str) and piece.startswith("\ufeff"):
                self.has_mark, piece, characters = True, piece[1:], 1
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
            # The decoder puts what it still held before the block.
            where = offset - held + error.start
            byte = error.object[error.start]
            found = f"byte 0x{byte:02X} at offset {where:,} is not {self._encoding} text ({error.reason})"
        except UnicodeError as error:
            found = f"not {self._encoding} text: {error}"
        raise NotTextError(f"{self._label}: {found}{self._advice('data.encoding: latin-1')}")

    def _refuse_nul(self, piece: bytes | str, block: bytes, offset: int, characters: int) -> None:
        if isinstance(piece, bytes):
            nul = piece.find(0)
        else:
            nul = piece.find("\0")
        if nul < 0:
            return
        if self._encoding.startswith(("utf-16", "utf-32")):  # NUL bytes belong to other characters there
            where = f"character {characters + nul:,}"
        else:
            where = f"offset {offset + block.find(0):,}"
        raise NotTextError(f"{self._label}: looks binary (NUL at {where}){self._advice(None)}")

    def _with_unix_line_ends(self, piece: bytes | str) -> bytes | str:
        if not self._unix:
            return piece
        return self._unify(piece, b"\r", b"\n") if isinstance(piece, bytes) else self._unify(piece, "\r", "\n")

    def _unify(self, piece: AnyStr, cr: AnyStr, lf: AnyStr) -> AnyStr:
        if self._after_cr and piece.startswith(lf):  # the second half of a CRLF that lay across two pieces
            piece = piece[1:]
        self._after_cr = piece.endswith(cr)
        if found := piece.count(cr):
            self.line_ends += found
            piece = piece.replace(cr + lf, lf).replace(cr, lf)
        return piece

    def _advice(self, encoding: str | None) -> str:
        guess = _wide_encoding(self._head)
        if guess is not None and guess != self._encoding:
            encoding = f"data.encoding: {guess}, which it looks like"
        ways = [f"if it is text in another encoding, say which ({encoding})"] if encoding else []
        ways.append("to read it as bytes, whatever they are: data.unit: byte")
        return f"\n  {'; '.join(ways)}"


def _wide_encoding(head: bytes) -> str | None:
    """Guess UTF-16 and UTF-32 from the first bytes: by a byte-order mark, or by NULs in every other place."""
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
