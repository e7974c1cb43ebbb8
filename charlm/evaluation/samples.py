"""Does a model copy its training text, and is its text well formed? The same numbers for held-out text say what is normal.

longest match     the longest part of a sample that occurs in the training text, and where: exact
new n-grams       share of the n-grams (n = 5, 10, 20, 50) of a sample that do not occur in the training text: exact; for
                  words: McCoy et al., *How Much Do Language Models Copy From Their Training Data?* (2023)
brackets          share of the brackets that belong to a pair, of the same kind and nested
environments      share of LaTeX's ``\\begin`` and ``\\end`` that belong to a pair
python            share of the functions that parse: each ``def`` with its body, without a last one that may be cut
words             share of the words that occur in the training text, without the first and the last
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from charlm.data.symbols import CodePoints, Symbols, to_text
from charlm.data.vocabulary import Vocabulary
from charlm.errors import UsageError
from charlm.evaluation import form
from charlm.evaluation.limits import JUDGED_CHARACTERS
from charlm.evaluation.matches import NGRAMS, Match, Search
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.sampling import SamplingParams, generate_parallel, until_separator

_DRAWN_TOGETHER = 64


@dataclass(frozen=True)
class Quality:
    """What samples, or pieces of a held-out text, look like. A share is ``None`` where there is nothing to count.

    Attributes:
        characters: of all of them.
        matches: for each sample, its longest match with the training text.
        new: n → share of the n-grams that the training text lacks.
        brackets, environments, python, words: shares that are well formed; see the module.
    """

    characters: int
    matches: tuple[Match, ...]
    new: dict[int, float | None]
    brackets: float | None
    environments: float | None
    python: float | None
    words: float | None


@dataclass(frozen=True)
class Novelty:
    """Samples beside pieces of a held-out text; ``heldout`` is ``None`` if there is none.

    Attributes:
        training_characters: length of the training text.
    """

    samples: Quality
    heldout: Quality | None
    training_characters: int


def novelty(
    samples: Sequence[CodePoints],
    training: Symbols,
    heldout: Symbols | None,
    unit: str,
    *,
    progress: Progress | None = None,
) -> Novelty:
    """Compare samples with a training text, and pieces of a held-out text of the same number and lengths beside them.

    Args:
        samples: code points or bytes of each, at most 200,000 in all.
        training: what the model was trained on.
        heldout: what it was not trained on; a shorter text than a sample is one piece.
        unit: ``char`` or ``byte``.
        progress: (characters of the training text read, to read), for the n-grams, which is most of the time.

    Raises:
        UsageError: there are no samples, or they are too long together.
    """
    total = sum(map(len, samples))
    if not total or total > JUDGED_CHARACTERS:
        raise UsageError(f"the samples have {total:,} characters together; expected 1 to {JUDGED_CHARACTERS:,}")
    pieces = _pieces(heldout, [len(sample) for sample in samples]) if heldout is not None else []
    search = Search([*samples, *pieces], training, progress)
    search.read_ngrams()
    matches = search.longest()
    texts = [to_text(piece) for piece in [*samples, *pieces]]
    is_python = form.is_python(training)
    words = [form.words_of(text, unit)[1:-1] for text in texts]
    known = form.known_words({word for some in words for word in some}, training, unit)

    def quality(first: int, last: int) -> Quality:
        here = texts[first:last]
        own = tuple(Match(match.sample - first, match.length, match.at, match.place) for match in matches[first:last])
        own_words = [word for some in words[first:last] for word in some]
        return Quality(
            characters=sum(map(len, here)),
            matches=own,
            new={n: search.new(n, first, last) for n in NGRAMS},
            brackets=form.share(map(form.bracket_pairs, here)),
            environments=form.share(map(form.environment_pairs, here)),
            python=form.share(map(form.functions, here)) if is_python else None,
            words=sum(word in known for word in own_words) / len(own_words) if own_words else None,
        )

    return Novelty(
        quality(0, len(samples)), quality(len(samples), len(texts)) if pieces else None, len(training)
    )  # fmt: skip


def draw(
    model: LanguageModel,
    vocabulary: Vocabulary,
    params: SamplingParams,
    seed: int,
    num: int,
    length: int,
    progress: Progress | None = None,
) -> list[CodePoints]:
    """The samples that ``charlm sample --num N --length M --seed S`` writes, as code points or bytes.

    Args:
        progress: (characters drawn, to draw).

    Raises:
        DivergedError: the scores are NaN or infinite.
    """
    symbols = np.array([vocabulary.symbol_of(index) or 0 for index in range(len(vocabulary))], dtype=np.uint32)
    drawn: list[CodePoints] = []
    for start in range(0, num, _DRAWN_TOGETHER):
        numbers = range(start, min(start + _DRAWN_TOGETHER, num))
        rows = []
        for row in islice(generate_parallel(model, vocabulary, [], params, seed, numbers), length):
            rows.append(row)
            if progress is not None and len(rows) % 128 == 0:
                progress(start * length + len(rows) * len(numbers), num * length)
        columns = np.array(rows, dtype=np.int64).T
        drawn += [symbols[list(until_separator(column.tolist(), vocabulary))] for column in columns]
    return drawn


def _pieces(heldout: Symbols, lengths: Sequence[int]) -> list[CodePoints]:
    """Pieces of these lengths, spread evenly; the whole text once where it is shorter than a piece."""
    if len(heldout) <= max(lengths):
        return [heldout.read(0, len(heldout))]
    starts = [number * (len(heldout) - length) // max(1, len(lengths) - 1) for number, length in enumerate(lengths)]
    return [heldout.read(start, start + length) for start, length in zip(starts, lengths, strict=True)]
