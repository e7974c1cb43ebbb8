"""Whether a text is well formed: brackets, LaTeX environments, Python functions, words that the training text has."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterable

from charlm.data.symbols import Symbols
from charlm.evaluation.features import BRACKETS

_BLOCK = 1 << 20  # symbols of the training text at a time
_DEFINITION = re.compile(r"^[ \t]*def \w+\(.*:$", re.MULTILINE)
_RECOGNISED_BY = 1_000_000  # characters
_FEWEST_DEFINITIONS = 5  # in a training text that is Python


def is_python(training: Symbols) -> bool:
    """Whether a training text is Python: its beginning defines functions."""
    return len(_DEFINITION.findall(training.characters(0, _RECOGNISED_BY))) >= _FEWEST_DEFINITIONS


def share(counts: Iterable[tuple[int, int]]) -> float | None:
    """Σ good ÷ Σ all; ``None`` if there are none."""
    good, total = (sum(column) for column in zip(*counts, strict=True))
    return good / total if total else None


def bracket_pairs(text: str) -> tuple[int, int]:
    """How many brackets belong to a pair, and how many there are."""
    stack: list[str] = []
    good = total = 0
    for mark in re.findall(r"\\.|[()\[\]{}]", text, re.DOTALL):
        if len(mark) > 1:
            continue
        total += 1
        if mark not in BRACKETS:
            stack.append(mark)
        elif stack and stack[-1] == BRACKETS[mark]:
            stack.pop()
            good += 2
    return good, total


def environment_pairs(text: str) -> tuple[int, int]:
    """How many of LaTeX's begin and end belong to a pair, and how many there are."""
    stack: list[str] = []
    good = total = 0
    for kind, name in re.findall(r"\\(begin|end)\{([A-Za-z]+\*?)\}", text):
        total += 1
        if kind == "begin":
            stack.append(name)
        elif stack and stack[-1] == name:
            stack.pop()
            good += 2
    return good, total


def functions(text: str) -> tuple[int, int]:
    """How many Python functions parse, and how many there are: each ``def`` and all lines after it that are indented more.

    The last one may be cut, and counts only if another line follows it.
    """
    good = total = stop = 0
    for match in re.finditer(r"^([ \t]*)(?:async )?def ", text, re.MULTILINE):
        if match.start() >= stop:  # not inside a function that has been counted
            # The next line that is not blank, not indented more, and not the end of a long signature.
            after = re.compile(rf"^(?!{match[1]}[ \t]|[ \t]*(?:\n|\Z)|[ \t]*[)\]}}])", re.MULTILINE).search(text, match.end())
            if after is not None:
                stop = after.start()
                good += _parses(textwrap.dedent(text[match.start() : stop]))
                total += 1
    return good, total


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def words_of(text: str, unit: str) -> list[str]:
    """The words of a text; ``unit`` is ``char`` or ``byte``."""
    return re.findall(r"[A-Za-z\x80-\xff]+" if unit == "byte" else r"[^\W\d_]+", text)


def known_words(wanted: set[str], training: Symbols, unit: str) -> set[str]:
    """Which of the words the training text has."""
    missing, N = set(wanted), len(training)
    overlap = max(map(len, wanted), default=0) + 1
    for start in range(0, N, _BLOCK):
        if not missing:
            break
        # A word that a block cuts is whole in the next one, unless it is longer than all wanted ones.
        low, high = max(0, start - overlap - 1), min(N, start + _BLOCK + 1)
        words = words_of(training.characters(low, high), unit)
        missing.difference_update(words[low > 0 : len(words) - (high < N)])
    return wanted - missing
