"""Named normalisations: changes to the characters of a text before training.

Each takes and yields a text in pieces. The boundaries of the pieces do not affect the result, and only one piece is in
memory at a time: a text can be one line of ten gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from charlm.errors import RecipeError

Normalisation = Callable[[Iterable[str]], Iterator[str]]

_LETTERS = bytes((byte | 32) if chr(byte).isascii() and chr(byte).isalpha() else ord(" ") for byte in range(256))
_LETTERS_AND_LINES = _LETTERS[: ord("\n")] + b"\n" + _LETTERS[ord("\n") + 1 :]
_SPACES = re.compile(b"  +")


def unchanged(pieces: Iterable[str]) -> Iterator[str]:
    """The unchanged text."""
    yield from pieces


def d2l_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lower-case letters and single spaces, line by line; lines are joined without a separator.

    Per line, ``re.sub('[^A-Za-z]+', ' ', line).strip().lower()``. The last word of a line and the first of the next are
    therefore joined. A line ends at LF; ``data.newlines`` has converted other line ends. From *Dive into Deep
    Learning*, editions 0.x, section 8.2 "Text Preprocessing".
    """
    held = b"\n"  # a line end or space whose effect depends on the next piece; initially the start of a line
    for piece in pieces:
        words = _SPACES.sub(b" ", held + _translated(piece, _LETTERS_AND_LINES))
        words = words.replace(b" \n", b"\n").replace(b"\n ", b"\n")
        held = words[-1:] if words.endswith((b"\n", b" ")) else b""
        yield words.removesuffix(b" ").replace(b"\n", b"").decode("ascii")


def d2l_whole(pieces: Iterable[str]) -> Iterator[str]:
    """Lower-case letters and single spaces: ``re.sub('[^A-Za-z]+', ' ', text).lower()`` on the text as a whole.

    From *Dive into Deep Learning*, editions 1.x, section 9.2 "Converting Raw Text into Sequence Data".
    """
    held = b""  # the last space, already yielded: further spaces are dropped
    for piece in pieces:
        words = _SPACES.sub(b" ", held + _translated(piece, _LETTERS))
        yield words[len(held) :].decode("ascii")
        held = words[-1:] if words.endswith(b" ") else b""


def spaced(pieces: Iterable[str]) -> Iterator[str]:
    """Characters that are written with a space after each, and ``_`` for a space, as ordinary text.

    ``t h e _ c a t`` becomes ``the cat``. This is the format of the characters of the Penn Treebank, from T. Mikolov's
    *RNNLM examples* (``simple-examples.tgz``), file ``ptb.char.train.txt``.
    """
    for piece in pieces:
        yield piece.replace(" ", "").replace("_", " ")


def _translated(piece: str, table: bytes) -> bytes:
    """Translate each character by a table of bytes, at memory speed. All non-ASCII characters count as non-letters."""
    return piece.encode("ascii", "replace").translate(table)


NORMALISATIONS: dict[str, Normalisation] = {
    "none": unchanged,
    "d2l-lines": d2l_lines,
    "d2l-whole": d2l_whole,
    "spaced": spaced,
}


def normalisation(name: str) -> Normalisation:
    """Return a normalisation by name.

    Raises:
        RecipeError: the name is unknown.
    """
    if name not in NORMALISATIONS:
        raise RecipeError(f"unknown normalisation {name!r}; data.normalise is one of: {', '.join(NORMALISATIONS)}")
    return NORMALISATIONS[name]
