"""Checks that files are the text that a checkpoint names.

Files named by a checkpoint can belong to anybody. Until size and sha256 match, nothing is written to the cache, and no
message reveals anything about their content.
"""

from __future__ import annotations

import stat
from pathlib import Path

from charlm.data.encoded import EncodingSettings, TextDigest
from charlm.data.sources import Sources
from charlm.data.text_pass import SymbolCounter, hash_files, read_text
from charlm.errors import CorpusError
from charlm.progress import Progress


class TextMismatchError(CorpusError):
    """Files are not the text that a checkpoint names. Nothing of them was stored."""


def check_size(sources: Sources, expected: TextDigest) -> None:
    """Check what can be checked without opening the files.

    Raises:
        TextMismatchError: they are not regular files, or have another size.
    """
    # Files in /proc and /sys can block or never end. A training text is on a disk.
    kernel = {folder.stat().st_dev for folder in (Path("/proc"), Path("/sys")) if folder.is_dir()}
    for file in sources.files:
        if file.path is not None:
            status = file.path.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_dev in kernel:
                raise TextMismatchError(f"{file.label} is not a regular file")
    size = sources.size()
    if size < expected.bytes or (size > expected.bytes and not sources.is_collection):  # a collection can have skipped files
        raise _mismatch(sources, expected)


def check_content(sources: Sources, settings: EncodingSettings, expected: TextDigest, progress: Progress | None = None) -> None:
    """Read the files and check their sha256, without writing anything.

    Raises:
        TextMismatchError: they are another text.
    """
    size = sources.size()
    if size == expected.bytes:
        found = TextDigest(size, hash_files(sources, progress))
    else:  # the expected sha256 excludes skipped files
        separators = 0 if settings.records is None else len(sources.files) + 1  # added to the text
        try:
            found = read_text(sources, settings, SymbolCounter(expected.bytes + separators), progress).digest
        except CorpusError:  # its message could reveal content
            raise _mismatch(sources, expected) from None
    check_digest(sources, found, expected)


def check_digest(sources: Sources, found: TextDigest, expected: TextDigest | None) -> None:
    """Compare size and sha256.

    Args:
        sources: the files, for the message.
        found: of the files.
        expected: of the checkpoint; ``None``: any text is accepted.

    Raises:
        TextMismatchError: they differ.
    """
    if expected is not None and found != expected:
        raise _mismatch(sources, expected)


def _mismatch(sources: Sources, expected: TextDigest) -> TextMismatchError:
    return TextMismatchError(
        f"{sources.name} is not the text that this model was trained on: expected {expected.bytes:,} bytes with sha256 "
        f"{expected.sha256[:12]}…"
    )
