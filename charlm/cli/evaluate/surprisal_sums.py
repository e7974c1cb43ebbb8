"""The sums of ``charlm eval surprisal``, part by part: of the file, its lines and its words, and the worst of them."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlm.data.vocabulary import Vocabulary
    from charlm.evaluation.surprisal import Span, Surprisal
    from charlm.evaluation.texts import EvaluationText

_EXCERPT = 1000  # characters of a line that --json holds at most


class By(StrEnum):
    """What is listed."""

    character = "character"
    word = "word"
    line = "line"


class Reading:
    """Sums of the file, its lines and its words, and the most surprising of them.

    Args:
        worst: how many of these to keep.
        by: what they are.
    """

    def __init__(self, evaluated: EvaluationText, vocabulary: Vocabulary, worst: int, by: By) -> None:
        from charlm.evaluation.surprisal import Spans, class_table

        self.evaluated, self.vocabulary = evaluated, vocabulary
        self._wanted, self._by = worst, by
        text, alphabet = evaluated.text, evaluated.encoded.alphabet
        self._line_spans, self._word_spans = (
            Spans(text, class_table(alphabet, vocabulary.unit, of), of) for of in ("line", "word")
        )
        self.line_ends = class_table(alphabet, vocabulary.unit, "line")
        self.nats, self.characters, self.unknown = 0.0, 0, 0
        self.lines, self.words, self.word_nats = 0, 0, 0.0
        self.new_lines: list[Span] = []
        self.new_words: list[Span] = []
        self._heap: list[tuple[float, int, Span, int, int]] = []
        self._line, self._line_start = 1, 0  # of the next character

    def add(self, part: Surprisal) -> None:
        """Read the next part."""
        import numpy as np

        self.nats += float(part.nats.sum())
        self.characters += len(part.nats)
        if self.vocabulary.unknown_id is not None:
            ids = self.evaluated.text.ids(part.start, part.start + len(part.nats))
            self.unknown += int((ids == self.vocabulary.unknown_id).sum())
        self._count(self._line_spans.add(part), self._word_spans.add(part))
        # Where the lines of this part begin, for the places of its words and characters.
        ends = np.flatnonzero(self.line_ends[self.evaluated.text.indices[part.start - 1 : part.start + len(part.nats) - 1]])
        self.starts = [self._line_start, *(part.start + ends).tolist()]
        self.first_line = self._line
        self._line, self._line_start = self._line + len(ends), self.starts[-1]
        if self._by is By.word:
            for span in self.new_words:
                self._keep(span, *self.place(span.start))
        elif self._by is By.character:
            for at in np.argsort(-part.nats, kind="stable")[: self._wanted].tolist():
                self._keep(_one(part, at), *self.place(part.start + at))

    def close(self) -> None:
        """The text has ended."""
        self._count(self._line_spans.close(), self._word_spans.close())
        if self._by is By.word:
            for span in self.new_words:
                self._keep(span, *self.place(span.start))

    def place(self, index: int) -> tuple[int, int]:
        """Line and column, from 1, of a character of the part that was read last, or of a word that ended in it."""
        number = max(1, bisect_right(self.starts, index))
        return self.first_line + number - 1, index - self.starts[number - 1] + 1

    def _count(self, lines: list[Span], words: list[Span]) -> None:
        self.new_lines, self.new_words = lines, words
        if self._by is By.line:
            for number, span in enumerate(lines, self.lines + 1):
                self._keep(span, number, 1)
        self.lines += len(lines)
        self.words += len(words)
        self.word_nats += math.fsum(span.nats for span in words)

    def _keep(self, span: Span, line: int, column: int) -> None:
        entry = (span.nats, -span.start, span, line, column)
        if len(self._heap) < self._wanted:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def worst(self) -> list[Span]:
        """The most surprising lines, words or characters, the worst first."""
        return [entry[2] for entry in sorted(self._heap, reverse=True)]

    def record(self) -> dict[str, Any]:
        """The keys of ``--json`` that are about the text."""
        from charlm.evaluation.perplexity import perplexity

        mean = self.nats / self.characters
        return {
            "total_nats": self.nats,
            "nats_per_character": mean,
            "bits_per_character": mean / math.log(2),
            "perplexity": perplexity(mean),
            "characters": self.characters,
            "unknown_characters": self.unknown,
            "lines": self.lines,
            "words": self.words,
            "nats_per_word": self.word_nats / self.words if self.words else None,
            "worst": [self._entry(*entry[2:]) for entry in sorted(self._heap, reverse=True)],
        }

    def _entry(self, span: Span, line: int, column: int) -> dict[str, Any]:
        return {
            "line": line,
            "column": column,
            "text": self.text(span.start, min(span.stop, span.start + _EXCERPT)),
            "characters": span.characters,
            "nats": span.nats,
            "bits_per_character": span.nats / span.characters / math.log(2) if span.characters else None,
            "place": None
            if span.worst is None
            else {
                "column": column + span.worst - span.start,
                "character": self._character(span.worst),
                "nats": span.worst_nats,
                "alternative": self.vocabulary.shown(span.alternative),
                "probability": span.probability,
            },
        }

    def _character(self, index: int) -> str:
        """One character; a byte as the vocabulary names it."""
        if self.vocabulary.unit == "byte":
            return self.vocabulary.shown(int(self.evaluated.text.ids(index, index + 1)[0]))
        return self.text(index, index + 1)

    def text(self, start: int, stop: int) -> str:
        """Some of the text; bytes that are not UTF-8 become U+FFFD."""
        return self.evaluated.symbols.utf8(start, stop, self.vocabulary.unit).decode("utf-8", "replace")


def _one(part: Surprisal, at: int) -> Span:
    from charlm.evaluation.surprisal import Span

    index, nats = part.start + at, float(part.nats[at])
    return Span(index, index + 1, nats, 1, index, nats, int(part.alternatives[at, 0]), float(part.probabilities[at, 0]))
