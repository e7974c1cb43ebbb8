"""Named normalisations: what is done to a text's characters before a model sees them.

Each takes a text in pieces and yields it in pieces; how the text is cut into pieces does not change the result, and
only one piece is in memory at a time (a text may be one line of ten gigabytes).
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
    """The text as it is."""
    yield from pieces


def d2l_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lower-case letters and single spaces, line by line; lines are joined with nothing between them.

    Per line, ``re.sub('[^A-Za-z]+', ' ', line).strip().lower()``: so the last word of a line and the first of the next
    run together. A line ends at LF; other line ends have become LF by the newline policy. From *Dive into Deep
    Learning*, editions 0.x, section 8.2 "Text Preprocessing".
    """
    held = b"\n"  # a line end or space that was read but has no effect yet; the text begins like a line
    for piece in pieces:
        words = _SPACES.sub(b" ", held + _translated(piece, _LETTERS_AND_LINES))
        words = words.replace(b" \n", b"\n").replace(b"\n ", b"\n")
        held = words[-1:] if words.endswith((b"\n", b" ")) else b""
        yield words.removesuffix(b" ").replace(b"\n", b"").decode("ascii")


def d2l_whole(pieces: Iterable[str]) -> Iterator[str]:
    """Lower-case letters and single spaces: ``re.sub('[^A-Za-z]+', ' ', text).lower()`` on the text as a whole.

    From *Dive into Deep Learning*, editions 1.x, section 9.2 "Converting Raw Text into Sequence Data".
    """
    held = b""  # a space that has been yielded: with more of them it is still one
    for piece in pieces:
        words = _SPACES.sub(b" ", held + _translated(piece, _LETTERS))
        yield words[len(held) :].decode("ascii")
        held = words[-1:] if words.endswith(b" ") else b""


def _translated(piece: str, table: bytes) -> bytes:
    """Translate each character by a table of bytes, at the speed of memory; all beyond ASCII are alike, no letters."""
    return piece.encode("ascii", "replace").translate(table)


NORMALISATIONS: dict[str, Normalisation] = {"none": unchanged, "d2l-lines": d2l_lines, "d2l-whole": d2l_whole}


def normalisation(name: str) -> Normalisation:
    """Look a normalisation up by its name.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in NORMALISATIONS:
        raise RecipeError(f"no normalisation is called {name!r}; data.normalise is one of: {', '.join(NORMALISATIONS)}")
    return NORMALISATIONS[name]
