"""Options that several commands share."""

import sys
from enum import StrEnum
from pathlib import Path

from charlm.errors import UsageError

MAX_LENGTH = 10**12
MAX_STEPS = 10**12
MAX_SEED = 2**63 - 1
"""Upper bounds of options: no sane use reaches them."""


class Unknown(StrEnum):
    """What happens to characters outside a model's vocabulary."""

    error = "error"
    skip = "skip"
    map = "map"


class Precision(StrEnum):
    """The operands of matrix products."""

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
    """The folder that ``--out`` names. A shell does not expand the ``~`` of ``--out=~/runs``, so it is expanded here.

    Raises:
        UsageError: it is empty, which a path would take for the current folder, or names a user who does not exist.
    """
    from charlm.config import path_of

    if not given:
        raise UsageError("--out is empty; expected a folder, such as --out runs/first")
    return path_of(given)


def unknown_note(share: float) -> str:
    """What must be said beside a result on a text of which this share is unknown; empty if it is negligible."""
    return f" ({share:.1%} of the characters scored as <unk>)".replace("%", " %") if share >= 0.001 else ""


def read_text(given: str, option: str = "--prompt") -> str:
    """The text that TEXT, @FILE or - (standard input) means; line ends stay as they are.

    Raises:
        UsageError: a file that cannot be read, or is not UTF-8.
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
