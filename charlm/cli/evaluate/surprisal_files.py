"""What ``charlm eval surprisal`` writes while it reads: numbers for ``--json``, a table, a page. Nothing is kept in memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from charlm.cli.console import json_line, out, visible_word
from charlm.cli.evaluate.marked_text import LINE_END, listed, percent, quoted, shown_names, shown_symbols
from charlm.cli.evaluate.surprisal_sums import By, Reading
from charlm.errors import UsageError
from charlm.files import is_free, whole_file
from charlm.html.page import escape, page_file, page_head, page_tail

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from charlm.data.vocabulary import Vocabulary
    from charlm.evaluation.surprisal import Surprisal
    from charlm.evaluation.texts import EvaluationText

_HEADER = {
    "character": "line\tcolumn\tcharacter\tnats\talternative\tprobability\n",
    "word": "line\tcolumn\tword\tcharacters\tnats\n",
    "line": "line\tcolumn\ttext\tcharacters\tnats\n",
}


class Sink(Protocol):
    """What receives the parts of a text as they are read."""

    def add(self, part: Surprisal) -> None:
        """Read the next part; the sums have read it before."""

    def close(self, record: dict[str, Any]) -> None:
        """The text has ended: ``record`` holds its sums."""


class LongLists:
    """The long lists of ``--json``: numbers on disk until the record is written, so that they need no memory."""

    def __init__(self, stack: ExitStack, reading: Reading) -> None:
        self._reading = reading
        self._nats, self._lines = _Numbers(stack), _Numbers(stack)

    def add(self, part: Surprisal) -> None:
        """Read the next part."""
        self._nats.add(part.nats)
        self._add_lines()

    def close(self, record: dict[str, Any]) -> None:
        """Write the record, with the lists, to stdout."""
        self._add_lines()
        json_line(record, {"nats": self._nats.blocks(), "line_nats": self._lines.blocks()})

    def _add_lines(self) -> None:
        import numpy as np

        self._lines.add(np.array([span.nats for span in self._reading.new_lines], dtype=np.float64))


class _Numbers:
    """A list of numbers in a temporary file."""

    _BLOCK = 1 << 16

    def __init__(self, stack: ExitStack) -> None:
        self._file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it

    def add(self, numbers: npt.NDArray[np.float64]) -> None:
        """Append some."""
        self._file.write(numbers.tobytes())

    def blocks(self) -> Iterator[list[float]]:
        """All of them, block by block."""
        import numpy as np

        self._file.seek(0)
        while block := self._file.read(8 * self._BLOCK):
            yield np.frombuffer(block, dtype=np.float64).tolist()


def _escaped(text: str) -> str:
    """On one line and without tabs: backslashes doubled, control characters as ``\\n``, ``\\t``, ``\\x1b``."""
    return visible_word(text.replace("\\", "\\\\"))


def check_table_path(path: Path) -> None:
    """Refuse to overwrite a file that is not such a table.

    Raises:
        UsageError: it is not.
    """
    if not is_free(path, [header.encode() for header in _HEADER.values()]):
        raise UsageError(f"--tsv {path} exists, and is not a table of this command; choose another name")


class Table:
    """Writes a row for each character, word or line.

    Args:
        target: ``None``: stdout.
    """

    def __init__(self, stack: ExitStack, target: Path | None, by: By, reading: Reading) -> None:
        self._file = None if target is None else stack.enter_context(whole_file(target))
        self._by, self._reading = by, reading
        vocabulary, alphabet = reading.vocabulary, reading.evaluated.encoded.alphabet.tolist()
        is_byte = vocabulary.unit == "byte"
        names = [vocabulary.symbol_of(index) for index in range(len(vocabulary))]
        self._characters, self._symbols = (
            ["<unk>" if c is None else f"\\x{c:02x}" if is_byte and c > 126 else _escaped(chr(c)) for c in symbols]
            for symbols in (alphabet, names)
        )
        self._number = 0
        self._write(_HEADER[by.value])

    def add(self, part: Surprisal) -> None:
        """Rows of what ended in a part."""
        if self._by is By.character:
            self._write("".join(self._rows(part)))
        else:
            self._spans()

    def close(self, record: dict[str, Any]) -> None:
        """The row of what has ended with the text."""
        if self._by is not By.character:
            self._spans()

    def _rows(self, part: Surprisal) -> Iterator[str]:
        starts, line = self._reading.starts, self._reading.first_line
        indices = self._reading.evaluated.text.indices[part.start : part.start + len(part.nats)].tolist()
        bounds = [*starts[1:], len(self._reading.evaluated.text)]
        start, bound, at = starts[0], bounds[0], 0
        columns = (part.nats.tolist(), part.alternatives[:, 0].tolist(), part.probabilities[:, 0].tolist())
        for index, (symbol, nats, other, probability) in enumerate(zip(indices, *columns, strict=True), part.start):
            if index >= bound:
                start, at = bound, at + 1
                bound, line = bounds[at], line + 1
            came, instead = self._characters[symbol], self._symbols[other]
            yield f"{line}\t{index - start + 1}\t{came}\t{nats:.6f}\t{instead}\t{probability:.6g}\n"

    def _spans(self) -> None:
        reading = self._reading
        rows = []
        for span in reading.new_lines if self._by is By.line else reading.new_words:
            self._number += 1
            line, column = (self._number, 1) if self._by is By.line else reading.place(span.start)
            text = _escaped(reading.text(span.start, span.stop))
            rows.append(f"{line}\t{column}\t{text}\t{span.characters}\t{span.nats:.6f}\n")
        self._write("".join(rows))

    def _write(self, rows: str) -> None:
        if self._file is not None:
            self._file.write(rows.encode())
        elif rows:
            out(rows[:-1])


_STYLE = "".join(f".s{bits} {{ background: rgba(var(--hot), {bits * 0.09:.2f}) }}\n" for bits in range(1, 9)) + (
    ".text span:hover, .text .chosen { outline: 2px solid var(--mark) }\n"
)

_SCRIPT = """
const panel = document.getElementById("panel"), text = document.getElementById("text");
let chosen = null;
function show(event) {
  const found = event.target.closest("span");
  if (!found) return;
  if (chosen) chosen.classList.remove("chosen");
  chosen = found;
  found.classList.add("chosen");
  panel.textContent = found.dataset.a;
}
text.addEventListener("pointerover", show);
text.addEventListener("click", show);
"""


class Page:
    """Writes a page as the text is read: each character with its surprisal, and what was likelier on hover."""

    def __init__(self, stack: ExitStack, path: Path, evaluated: EvaluationText, vocabulary: Vocabulary, limit: int) -> None:
        self._file = stack.enter_context(page_file(path))
        self._evaluated, self._vocabulary = evaluated, vocabulary
        self._left = min(limit, len(evaluated.text))
        self._limit = self._left
        self._names = shown_names(vocabulary)
        self._write(page_head(f"Surprisal of {visible_word(evaluated.name)}", style=_STYLE, script=_SCRIPT))
        scale = " ".join(f'<span class="s{bits}">&nbsp;{bits}&nbsp;</span>' for bits in range(1, 9))
        self._write(f'<p class="faint">bits: {scale} and more. Point at a character to see what else was likely.</p>\n')
        self._write('<div class="panel" id="panel" aria-live="polite"></div>\n<div class="text" id="text">')
        if self._left:
            self._characters(0, 1, ["not scored: nothing comes before it"], [0])

    def add(self, part: Surprisal) -> None:
        """The characters of a part, as many as the page may have."""
        count = min(len(part.nats), self._left)
        if count:
            columns = (part.nats[:count].tolist(), part.alternatives[:count].tolist(), part.probabilities[:count].tolist())
            bits = [nats / math.log(2) for nats in columns[0]]
            told = [
                f"{value:.2f} bits, {percent(2**-value)}. Instead: {listed(self._names, ids, shares)}"
                for value, ids, shares in zip(bits, *columns[1:], strict=True)
            ]
            self._characters(part.start, part.start + count, told, [min(8, int(value)) for value in bits])

    def _characters(self, start: int, stop: int, told: list[str], levels: list[int]) -> None:
        pieces = []
        for symbol, level, words in zip(
            shown_symbols(self._evaluated, start, stop, self._vocabulary.unit), levels, told, strict=True
        ):
            about = escape(f"{quoted(symbol)}: {words}")
            pieces.append(f'<span class="s{level}" data-a="{about}">{escape(symbol)}</span>')
            if symbol == LINE_END:
                pieces.append("\n")
        self._left -= stop - start
        self._write("".join(pieces))

    def close(self, record: dict[str, Any]) -> None:
        """The sums, which are known at the end."""
        rest = len(self._evaluated.text) - self._limit
        more = f" The page shows the first {self._limit:,} characters." if rest > 0 else ""
        self._write(
            f'</div>\n<p class="faint">{record["characters"]:,} characters scored, {record["bits_per_character"]:.4f} bits per '
            f"character.{more}</p>\n"
        )
        self._write(page_tail(_SCRIPT))

    def _write(self, text: str) -> None:
        self._file.write(text.encode("utf-8", "backslashreplace"))
