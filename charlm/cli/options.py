"""Options that several commands share."""

import re
import sys
from enum import StrEnum
from pathlib import Path

from charlm.errors import UsageError

MAX_LENGTH = 10**12
MAX_STEPS = 10**12
MAX_SEED = 2**63 - 1
"""Upper bounds of options, beyond any real use."""


class Unknown(StrEnum):
    """Treatment of characters outside a model's vocabulary."""

    error = "error"
    skip = "skip"
    map = "map"


class Precision(StrEnum):
    """Type of the operands of matrix products."""

    fp32 = "fp32"
    bf16 = "bf16"


class Split(StrEnum):
    """The parts of a corpus."""

    train = "train"
    validation = "validation"
    test = "test"


class ResumeChoice(StrEnum):
    """Values of ``--resume``."""

    never = "never"
    auto = "auto"
    must = "must"


def parse_folder(given: str) -> Path:
    """The folder given to ``--out``. The ``~`` of ``--out=~/runs``, which shells do not expand, is expanded here.

    Raises:
        UsageError: it is empty (a path would mean the current folder), or names a user who does not exist.
    """
    from charlm.config import path_of

    if not given:
        raise UsageError("--out is empty; expected a folder, such as --out runs/first")
    return path_of(given)


def unknown_note(share: float) -> str:
    """A note for a result on a text with this share of unknown characters; empty if the share is negligible."""
    return f" ({share:.1%} of the characters scored as <unk>)".replace("%", " %") if share >= 0.001 else ""


def read_text(given: str, option: str = "--prompt") -> str:
    """The text given as TEXT, @FILE or - (standard input); line ends are kept.

    Raises:
        UsageError: the file cannot be read, or is not UTF-8.
    """
    try:
        if given == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig")
        if given.startswith("@") and len(given) > 1:
            from charlm.config import path_of

            return path_of(given[1:]).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{option} {given}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {given}: byte {error.start} is not UTF-8 text") from None
    return given


_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def unescaped(text: str) -> str:
    r"""A text with ``\n``, ``\t`` and ``\\`` read as newline, tab and one backslash; other backslashes stay."""
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], text)
