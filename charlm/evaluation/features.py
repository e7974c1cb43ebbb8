"""Features of a text that a unit can track: inside quotes, bracket depth, place in the line, comments, LaTeX, and more.

They are found by simple rules in any text, as prose, code or LaTeX has them, and without a parser. A feature's value at a
character is the value after that character: an opening quote is inside, its closing quote is outside. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

BRACKETS = {")": "(", "]": "[", "}": "{"}
"""Closing bracket → opening bracket."""

_FEWEST_COMMENTS = 3  # lines that must begin with a mark, such as #, before it counts as the mark of a comment
_TAB = 8
_MATH = {"equation", "align", "gather", "multline", "eqnarray", "math", "displaymath", "flalign", "alignat"}
_LATEX = re.compile(r"\\begin\{[A-Za-z]+\*?\}")


@dataclass(frozen=True)
class Feature:
    """A feature over N characters.

    Attributes:
        name: such as ``inside double quotes``.
        values: ``(N,)``: booleans, or numbers of which only the order counts.
    """

    name: str
    values: npt.NDArray[np.bool_] | npt.NDArray[np.float64]

    @property
    def is_binary(self) -> bool:
        """Whether a character has the feature or not; else it is a number."""
        return self.values.dtype == np.bool_

    @property
    def is_active(self) -> npt.NDArray[np.bool_]:
        """``(N,)`` where a number is more than 0; of a binary feature the values themselves."""
        return np.asarray(self.values > 0, dtype=np.bool_)


@dataclass(frozen=True)
class Syntax:
    """The marks that a text uses, which decide what its symbols mean.

    Attributes:
        comment: mark of a comment to the end of the line: ``#``, ``//``, ``%``; ``""``: none.
        has_block_comments: whether ``/* … */`` is a comment.
        is_latex: whether there are environments and math.
    """

    comment: str
    has_block_comments: bool
    is_latex: bool

    @classmethod
    def of(cls, text: str) -> Syntax:
        """Recognise the marks: the one of a comment begins three lines or more, and more of them than any other mark."""
        is_latex = _LATEX.search(text) is not None
        marks = ("%",) if is_latex else ("#", "//")
        counts = {mark: len(re.findall(rf"^[ \t]*{mark}", text, re.MULTILINE)) for mark in marks}
        best = max(counts, key=lambda mark: counts[mark])
        return cls(best if counts[best] >= _FEWEST_COMMENTS else "", "/*" in text and "*/" in text, is_latex)


def features(text: str, syntax: Syntax | None = None) -> list[Feature]:
    """The features of a text.

    The rules: a straight double quote opens and closes in turn, curly ones open and close, and LaTeX has two grave accents and
    two apostrophes. An apostrophe opens a single quote after a character that is no letter or digit and before one that is no
    space, and closes it before one that is no letter or digit. A blank line ends open quotes, and open ``(`` and ``[``: one
    that is never closed would change all that follows. A backslash takes the meaning from the next quote, bracket or mark.

    Args:
        text: one character per symbol.
        syntax: ``None``: recognised in this text.
    """
    syntax = syntax or Syntax.of(text)
    return [*_by_character(text), *_by_line(text), *_quotes(text, syntax), *_brackets(text), *_comments(text, syntax)] + (
        _latex(text) if syntax.is_latex else []
    )


def _by_character(text: str) -> list[Feature]:
    letters = _where(text, str.isalpha)
    before = np.concatenate([[False], letters[:-1]])
    return [
        Feature("inside a word", letters),
        Feature("start of a word", letters & ~before),
        Feature("upper case", _where(text, str.isupper)),
        Feature("digits", _where(text, str.isdigit)),
    ]


def _where(text: str, holds: Callable[[str], bool]) -> npt.NDArray[np.bool_]:
    """``(N,)`` which characters have a property."""
    having = {character for character in set(text) if holds(character)}
    return np.fromiter((character in having for character in text), np.bool_, len(text))


def _by_line(text: str) -> list[Feature]:
    """Place in the line and indentation; an unfinished last line counts as if it ended with the text."""
    since, share, indent = (np.zeros(len(text)) for _ in range(3))
    start = 0
    for line in _lines(text):
        length = len(line)
        since[start : start + length] = np.arange(1, length + 1)
        share[start : start + length] = np.arange(1, length + 1) / length
        blank = len(line) - len(line.lstrip(" \t"))
        depths = np.cumsum([_TAB if character == "\t" else 1 for character in line[:blank]], dtype=np.float64)
        indent[start : start + blank] = depths
        indent[start + blank : start + length] = depths[-1] if blank else 0
        if line.endswith("\n"):
            since[start + length - 1] = share[start + length - 1] = indent[start + length - 1] = 0
        start += length
    return [
        Feature("characters since the newline", since),
        Feature("position in the line", share),
        Feature("indentation", indent),
    ]


def _lines(text: str) -> Iterator[str]:
    """The lines with their newlines; unlike ``splitlines`` only ``\\n`` ends one."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start) + 1 or len(text)
        yield text[start:stop]
        start = stop


def _blank_lines(text: str) -> set[int]:
    """The positions of newlines that end a blank line."""
    return {match.end() - 1 for match in re.finditer(r"\n[ \t]*\n", text)}


def quotations(text: str, syntax: Syntax) -> list[tuple[str, int, int]]:
    """Quotations that are opened and closed: (``double`` or ``single``, position of the opening mark, of the closing one)."""
    found = []
    for kind, marks in (("double", _double_marks), ("single", _single_marks)):
        opened = -1
        for at, change in marks(text, syntax):
            if change > 0:
                opened = at if opened < 0 else opened
            else:
                if change < 0 and opened >= 0:
                    found.append((kind, opened, at))
                opened = -1
    return found


def _double_marks(text: str, syntax: Syntax) -> Iterator[tuple[int, int]]:
    """(position, +1: opens, −1: closes, 0: a blank line ends it)."""
    is_open, blank = False, _blank_lines(text)
    for match in re.finditer(r"\\.|[\"“”«»]|``|''|\n", text):
        at, mark = match.start(), match[0]
        if mark == "\n":
            if at in blank:
                is_open = False
                yield at, 0
        elif mark == '"' or mark in "“”«»" or (syntax.is_latex and mark in ("``", "''")):
            opens = not is_open if mark == '"' else mark in ("“", "«", "``")
            if opens != is_open:
                is_open = opens
                yield match.end() - 1, 1 if opens else -1


def _single_marks(text: str, syntax: Syntax) -> Iterator[tuple[int, int]]:
    is_open, blank = False, _blank_lines(text)
    if syntax.is_latex:  # primes and closing double quotes
        return
    for match in re.finditer(r"\\.|'|\n", text):
        at, mark = match.start(), match[0]
        if mark == "\n":
            if at in blank:
                is_open = False
                yield at, 0
        elif mark == "'":
            before, after = text[at - 1 : at] or "\n", text[at + 1 : at + 2] or "\n"
            opens = not is_open and not before.isalnum() and not after.isspace()
            if opens or (is_open and not after.isalnum()):
                is_open = opens
                yield at, 1 if opens else -1


def _quotes(text: str, syntax: Syntax) -> list[Feature]:
    found = []
    for name, marks in (("inside double quotes", _double_marks), ("inside single quotes", _single_marks)):
        inside = np.zeros(len(text), dtype=np.bool_)
        opened = -1
        for at, change in marks(text, syntax):
            if change > 0:
                opened = at
            elif opened >= 0:
                inside[opened:at] = True
                opened = -1
        if opened >= 0:
            inside[opened:] = True
        found.append(Feature(name, inside))
    return found


def bracket_events(text: str) -> Iterator[tuple[int, str, int]]:
    """Each bracket: (position, symbol, position of its opening bracket or −1). Opening brackets have −1 too.

    A closing bracket belongs to the last open one if that is of its kind. Otherwise it belongs to none.
    """
    blank = _blank_lines(text)
    stack: list[tuple[str, int]] = []
    for match in re.finditer(r"\\.|[()\[\]{}]|\n", text):
        at, mark = match.start(), match[0]
        if mark == "\n":
            if at in blank:
                stack = [entry for entry in stack if entry[0] == "{"]
        elif mark in BRACKETS:
            matches = bool(stack) and stack[-1][0] == BRACKETS[mark]
            yield at, mark, stack.pop()[1] if matches else -1
        elif len(mark) == 1:
            stack.append((mark, at))
            yield at, mark, -1


def _brackets(text: str) -> list[Feature]:
    changes = {opening: np.zeros(len(text), dtype=np.int64) for opening in BRACKETS.values()}
    blank = np.array(sorted(_blank_lines(text)), dtype=np.int64)
    for match in re.finditer(r"\\.|[()\[\]{}]", text):
        mark = match[0]
        if mark in BRACKETS:
            changes[BRACKETS[mark]][match.start()] = -1
        elif len(mark) == 1:
            changes[mark][match.start()] = 1
    depths = {}
    for opening, change in changes.items():
        depth = np.empty(len(text), dtype=np.int64)
        edges = [0, *(blank.tolist() if opening != "{" else []), len(text)]
        for start, stop in pairwise(edges):
            sums = np.cumsum(change[start:stop])
            depth[start:stop] = sums - np.minimum(np.minimum.accumulate(sums), 0) if len(sums) else sums
        depths[opening] = depth
    closing = {opening: bracket for bracket, opening in BRACKETS.items()}
    single = [Feature(f"inside {opening} {closing[opening]}", depth > 0) for opening, depth in depths.items()]
    total: npt.NDArray[np.int64] = sum(depths.values(), np.zeros(len(text), dtype=np.int64))
    return [*single, Feature("bracket depth", total.astype(np.float64))]


def _comments(text: str, syntax: Syntax) -> list[Feature]:
    inside = np.zeros(len(text), dtype=np.bool_)
    strings = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'" if not syntax.is_latex else r"\\."
    line = {"#": r"(?<!\S)#[^\n]*", "//": r"(?<!\S)//[^\n]*", "%": r"%[^\n]*", "": r"(?!)"}[syntax.comment]
    block = r"/\*.*?(?:\*/|\Z)" if syntax.has_block_comments else r"(?!)"
    for match in re.finditer(f"(?P<string>{strings})|(?P<comment>{line}|{block})", text, re.DOTALL):
        if match["comment"] is not None:
            inside[match.start() : match.end()] = True
    return [Feature("inside a comment", inside)]


def environments(text: str) -> Iterator[tuple[str, int, int, int]]:
    """LaTeX environments that are opened and closed, in the order of their ends.

    Yields:
        Name, the position after ``\\begin{name}``, that of the name in ``\\end{name}``, and that after ``\\end{name}``. A
        closing name that is not the innermost open one is ignored.
    """
    stack: list[tuple[str, int]] = []
    for match in re.finditer(r"\\(begin|end)\{([A-Za-z]+\*?)\}", text):
        if match[1] == "begin":
            stack.append((match[2], match.end()))
        elif stack and stack[-1][0] == match[2]:
            yield match[2], stack.pop()[1], match.start(2), match.end()


def _latex(text: str) -> list[Feature]:
    """Environments but ``document``; math: ``$ … $``, ``$$ … $$``, ``\\( … \\)``, ``\\[ … \\]`` and environments for it."""
    inside, math = np.zeros(len(text), dtype=np.bool_), np.zeros(len(text), dtype=np.bool_)
    for name, start, _, stop in environments(text):
        if name != "document":
            inside[start - 1 : stop - 1] = True
        if name.rstrip("*") in _MATH:
            math[start - 1 : stop - 1] = True
    opened, by = -1, ""
    blank = _blank_lines(text)
    closes = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
    for match in re.finditer(r"\\[()\[\]]|\\.|\$\$?|\n", text, re.DOTALL):
        mark = match[0]
        if opened < 0 and mark in closes:
            opened, by = match.end() - 1, closes[mark]
        elif opened >= 0 and (mark == by or (mark == "\n" and match.start() in blank)):
            math[opened : match.end() - 1] = True
            opened = -1
    return [Feature("inside an environment", inside), Feature("inside math", math)]
