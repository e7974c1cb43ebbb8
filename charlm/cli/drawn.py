"""Drawn text on stdout: exact in a file or pipe, readable on a terminal."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterable

from charlm.cli.console import show_dimmed, visible

_FLUSH_SECONDS = 0.1


def write_pieces(pieces: Iterable[bytes]) -> None:
    """Write exact bytes to a file or pipe, flushed ten times per second."""
    flushed_at = time.monotonic()
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        if (now := time.monotonic()) - flushed_at > _FLUSH_SECONDS:
            sys.stdout.buffer.flush()
            flushed_at = now


def show_pieces(before: str, pieces: Iterable[bytes]) -> None:
    """On a terminal: the text before, dimmed, then each character at once, with control characters visible."""
    if before:
        show_dimmed(before)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        sys.stdout.write(visible(decoder.decode(piece)))
        sys.stdout.flush()
    sys.stdout.write(visible(decoder.decode(b"", final=True)) + "\n")
    sys.stdout.flush()
