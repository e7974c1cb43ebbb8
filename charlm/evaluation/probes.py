"""Long-range tests: does a model still know, many characters later, what it has to close or to agree with?

    agreement       "the cat, which already ate bread and rice, w": p(a) > p(e) after cat, p(e) > p(a) after cats (was, were)
    agreement in    p(a)/p(e) after cat > p(a)/p(e) after cats: what the noun changes, also where the model prefers *was*
    pairs           in any case; half right where the two differ by less than 10⁻⁶
    brackets        at a closing bracket of the text: p(right one) > p(each other one)
    double quotes   p(closing quote) at a closing quote > p(closing quote) at another place, outside of quotes, after the same
    single quotes   character
    environments    in ``\\end{``: at the first letter in which a name differs from the right one, p(right) > p(wrong), for the
                    twenty commonest names
    indentation     where a line is indented less than the one before: p(as many blanks as the text has, then another
                    character) > the same for each other enclosing block

Places of closing symbols are those of the evaluated text, which the model reads with carried state; at each it has read the
text up to there. Accuracy is given against the distance from the opening in characters. Chance is ½ for pairs (agreement,
quotes). Elsewhere it is the share of the commonest right answer at that distance, which a constant answer reaches.

Agreement over growing distances follows Linzen, Dupoux and Goldberg (*Assessing the Ability of LSTMs to Learn
Syntax-Sensitive Dependencies*, 2016); brackets, quotes and indentation follow Karpathy, Johnson and Fei-Fei (2015).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from charlm.data.dataset import Text
from charlm.data.symbols import Symbols
from charlm.data.vocabulary import Vocabulary
from charlm.errors import DivergedError
from charlm.evaluation.features import Syntax, bracket_events, environments, features, quotations
from charlm.evaluation.limits import CHUNK
from charlm.model.cells import State
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.sampling import opening
from charlm.threads import Tuner

CHARACTERS = 1_000_000
"""Characters of a longer text that are used, its first."""

EDGES = (1, 10, 30, 100, 300, 1000)
"""Distances at which the bins begin."""

_FEWEST = 20  # places of a probe
_MOST = 1_000  # places of a probe in a bin
_NAMES = 20  # environments that are told apart
_TARGETS = (0, 20, 45, 90, 180, 300, 600)  # distances of agreement that are made
_NOUNS = (
    "cat dog boy girl king lady lord friend brother sister teacher farmer soldier sailor worker doctor painter singer writer "
    "driver hunter builder stranger prisoner"
)
_FOODS = "bread rice milk soup meat fruit honey butter sugar corn"

_SAME = 1e-6  # log odds that differ by less do not count as different


@dataclass(frozen=True)
class Bin:
    """The places of a probe at similar distances.

    Attributes:
        start, stop: distances from start to stop − 1; ``stop`` is ``None`` for the last bin.
        count: places.
        accuracy: share that the model answers right.
        chance: share that needs no memory.
    """

    start: int
    stop: int | None
    count: int
    accuracy: float
    chance: float


@dataclass(frozen=True)
class Probe:
    """A test at all its distances; ``count``, ``accuracy`` and ``chance`` are those of all places together."""

    name: str
    bins: tuple[Bin, ...]
    count: int
    accuracy: float
    chance: float


@dataclass(frozen=True)
class Probes:
    """What a model answers.

    Attributes:
        probes: those that the text and the vocabulary allow.
        left_out: the other ones → why.
        characters: of the text that were used.
    """

    probes: tuple[Probe, ...]
    left_out: dict[str, str]
    characters: int


@dataclass(frozen=True)
class _Place:
    """One question.

    Attributes:
        distance: from the opening.
        answer: the right one; ``""``: one of a pair, so that chance is ½.
        comparisons: (position, symbol, position, symbol): the model is right if each first symbol is more probable at its
            position in the text than the second at its own. Symbols are code points or bytes.
        branch: instead of comparisons: (start of a line, right indentation, the others).
    """

    distance: int
    answer: str
    comparisons: Sequence[tuple[int, int, int, int]] = ()
    branch: tuple[int, int, tuple[int, ...]] | None = None


def probes(
    model: LanguageModel, vocabulary: Vocabulary, text: Text, symbols: Symbols, *, progress: Progress | None = None
) -> Probes:
    """Ask a model all questions for which the text has places and the vocabulary has letters.

    At most 1,000,000 characters of the text are used, and 1,000 places of a probe at similar distances.

    Args:
        text: N characters.
        symbols: the same N characters, as code points or bytes.
        progress: (characters read, characters to read).

    Raises:
        UsageError: the text has several records.
        DivergedError: the scores are NaN or infinite.
    """
    text.require_one_stream()
    used = min(len(text), CHARACTERS)
    found: list[Probe] = []
    left_out: dict[str, str] = {}
    lacking = _lacking(vocabulary)
    if lacking:
        left_out["agreement"] = f"the vocabulary lacks {lacking}, which its sentences need"
    else:
        found += _agreement(model, vocabulary)
    content = symbols.characters(0, used)
    asked: dict[str, list[_Place]] = {}
    for name, (places, reason) in _places(content).items():
        known = [kept for place in places if (kept := _known(place, vocabulary)) is not None]
        kinds = {place.answer for place in known}
        if len(known) < _FEWEST:
            left_out[name] = f"{reason}: {len(known)} in {used:,} characters; at least {_FEWEST} are needed"
        elif len(kinds) == 1 and "" not in kinds:
            left_out[name] = f"all of them are {kinds.pop()}, so that nothing is to be told apart"
        else:
            asked[name] = _thinned(known)
    if asked:
        answers = _Answers([place for places in asked.values() for place in places], vocabulary, _blank(content))
        answers.read(model, text, progress)
        found += [_probe(name, places, [float(answers.is_right(place)) for place in places]) for name, places in asked.items()]
    return Probes(tuple(found), left_out, used)


def _probe(name: str, places: Sequence[_Place], answers: Sequence[float]) -> Probe:
    """Put places and answers (1: right, 0: wrong, ½: undecided) into bins."""
    is_right = np.array(answers)
    numbers = np.searchsorted(EDGES, [place.distance for place in places], side="right") - 1
    bins = []
    for number, start in enumerate(EDGES):
        here = np.flatnonzero(numbers == number)
        if len(here):
            stop = EDGES[number + 1] if number + 1 < len(EDGES) else None
            accuracy = float(is_right[here].mean())
            bins.append(Bin(start, stop, len(here), accuracy, _chance([places[at] for at in here.tolist()])))
    count = len(places)
    chance = sum(one.count * one.chance for one in bins) / count
    return Probe(name, tuple(bins), count, float(is_right.mean()), chance)


def _chance(places: Sequence[_Place]) -> float:
    counts = Counter(place.answer for place in places)
    return 0.5 if "" in counts else counts.most_common(1)[0][1] / len(places)


def _thinned(places: list[_Place]) -> list[_Place]:
    """At most 1,000 places in each bin, spread evenly over the text."""
    numbers = np.searchsorted(EDGES, [place.distance for place in places], side="right")
    kept = []
    for number in range(len(EDGES) + 1):
        here = np.flatnonzero(numbers == number)
        count = min(len(here), _MOST)
        kept += here[np.arange(count) * len(here) // max(1, count)].tolist()
    return [places[at] for at in sorted(kept)]


def _known(place: _Place, vocabulary: Vocabulary) -> _Place | None:
    """The place without comparisons with symbols that the vocabulary lacks; ``None``: it cannot be asked."""
    if not place.comparisons:
        return place
    if any(vocabulary.id_of(right) is None for _, right, _, _ in place.comparisons):
        return None
    kept = [comparison for comparison in place.comparisons if vocabulary.id_of(comparison[3]) is not None]
    return replace(place, comparisons=kept) if kept else None


# --------------------------------------------------------------------------------------------------------------------
# Places in a text
# --------------------------------------------------------------------------------------------------------------------


def _places(text: str) -> dict[str, tuple[list[_Place], str]]:
    """Each probe's places, and what is missing if they are too few."""
    syntax = Syntax.of(text)
    return {
        "brackets": (list(_bracket_places(text)), "too few closing brackets"),
        "double quotes": (list(_quote_places(text, "double", syntax)), "too few closing double quotes"),
        "single quotes": (list(_quote_places(text, "single", syntax)), "too few closing single quotes"),
        "environments": (list(_environment_places(text)), r"too few LaTeX environments with \begin and \end"),
        "indentation": (list(_indentation_places(text)), "too few lines close one or two of several blocks"),
    }


def _bracket_places(text: str) -> Iterator[_Place]:
    closings = [(at, mark, opened) for at, mark, opened in bracket_events(text) if opened >= 0]
    marks = sorted({mark for _, mark, _ in closings})
    for at, mark, opened in closings:
        wrong = [other for other in marks if other != mark]
        yield _Place(at - opened, mark, [(at, ord(mark), at, ord(other)) for other in wrong])


def _quote_places(text: str, kind: str, syntax: Syntax) -> Iterator[_Place]:
    """Closing quotes, each with a place outside of quotes that follows the same character; drawn, the same every time."""
    if kind == "single" and syntax.is_latex:
        return
    syntax = Syntax(syntax.comment, syntax.has_block_comments, False)
    inside = {feature.name: feature.values for feature in features(text, syntax)}[f"inside {kind} quotes"].astype(np.bool_)
    is_mark = np.array([character in "\"“”«»'" for character in text])
    # Outside before the place and no quote at it.
    free = np.flatnonzero(~(inside[:-1] | is_mark[1:])) + 1
    after: dict[str, list[int]] = {}
    for at in free.tolist():
        after.setdefault(text[at - 1], []).append(at)
    random = np.random.default_rng(0)
    for name, opened, closed in quotations(text, syntax):
        others = after.get(text[closed - 1]) if name == kind else None
        if others:
            other = others[int(random.integers(len(others)))]
            mark = ord(text[closed])
            yield _Place(closed - opened, "", [(closed, mark, other, mark)])


def _environment_places(text: str) -> Iterator[_Place]:
    closings = list(environments(text))
    names = [name + "}" for name, _ in Counter(name for name, _, _, _ in closings).most_common(_NAMES)]
    for name, start, at, _ in closings:
        right = name + "}"
        comparisons = []
        for wrong in names:
            if wrong != right:
                same = next(k for k, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
                comparisons.append((at + same, ord(right[same]), at + same, ord(wrong[same])))
        yield _Place(at - start, name, comparisons)


def _blank(text: str) -> int:
    """The character of indentation: tab or space."""
    return ord("\t") if text.count("\n\t") > text.count("\n  ") else ord(" ")


def _indentation_places(text: str) -> Iterator[_Place]:
    """Lines that close an indented block. Lines inside brackets follow other rules and are passed over."""
    blank = _blank(text)
    depth = {feature.name: feature.values for feature in features(text)}["bracket depth"]
    levels: list[tuple[int, int]] = [(0, 0)]  # (indentation, start of the first line that has it)
    start = 0
    while start < len(text):
        stop = text.find("\n", start) + 1 or len(text)
        line = text[start:stop]
        content = line.lstrip(chr(blank))
        indent = len(line) - len(content)
        if content.strip() and (start == 0 or depth[start - 1] == 0):
            if indent < levels[-1][0]:
                opened = next(at for level, at in levels if level > indent)
                closed = sum(level > indent for level, _ in levels)
                if any(level == indent for level, _ in levels):
                    others = tuple(level for level, _ in levels[:-1] if level != indent)
                    if others:  # else there is one block to close, and nothing to choose
                        yield _Place(start - opened, f"closing {closed}", branch=(start, indent, others))
                levels = [entry for entry in levels if entry[0] <= indent]
            if indent > levels[-1][0]:
                levels.append((indent, start))
        start = stop


# --------------------------------------------------------------------------------------------------------------------
# Answers
# --------------------------------------------------------------------------------------------------------------------


class _Answers:
    """log p of the symbols that are asked for, at the positions that are asked for; and of indentations."""

    def __init__(self, places: Sequence[_Place], vocabulary: Vocabulary, blank: int) -> None:
        asked = [comparison for place in places for comparison in place.comparisons]
        symbols = sorted({symbol for comparison in asked for symbol in (comparison[1], comparison[3])})
        self._columns = {symbol: number for number, symbol in enumerate(symbols)}
        self._ids = [index for symbol in symbols if (index := vocabulary.id_of(symbol)) is not None]
        self._positions = np.array(sorted({at for comparison in asked for at in (comparison[0], comparison[2])}), np.int64)
        self._rows = {at: row for row, at in enumerate(self._positions.tolist())}
        self._values = np.empty((len(self._positions), len(symbols)), dtype=np.float32)
        self._blank, self._newline = vocabulary.id_of(blank), vocabulary.id_of(ord("\n"))
        self._branches = {place.branch[0]: max(place.branch[1], *place.branch[2]) for place in places if place.branch}
        self._indentations: dict[int, list[float]] = {}

    def read(self, model: LanguageModel, text: Text, progress: Progress | None) -> None:
        """Read the text up to the last position, with carried state."""
        total = max([*self._rows, *self._branches])
        stops = sorted({*range(CHUNK, total, CHUNK), *self._branches, total})
        tuner = Tuner("evaluation", model.is_thread_invariant)
        with torch.inference_mode():
            state, start = model.zero_state(1), 0
            for stop in stops:
                ids = torch.from_numpy(text.ids(start, stop)).to(state[0].device)[:, None]
                with tuner.piece(len(ids)):
                    values, state = model.features(ids, state)
                # The symbol at a position is predicted after the one before it.
                low, high = np.searchsorted(self._positions, [start + 1, stop + 1])
                if high > low:
                    rows = torch.from_numpy(self._positions[low:high] - 1 - start).to(values.device)
                    self._values[low:high] = _log_probabilities(model, values[rows, 0])[:, self._ids].numpy()
                if stop in self._branches:
                    self._indentations[stop] = self._indent(model, values[-1:], state, self._branches[stop])
                start = stop
                if progress is not None:
                    progress(stop, total)

    def _indent(self, model: LanguageModel, last: torch.Tensor, state: State, most: int) -> list[float]:
        """log p of 0 … ``most`` blanks and then a character that is no blank and no newline."""
        values = last
        if most and self._blank is not None:
            blanks = torch.full((most, 1), self._blank, device=last.device)
            values = torch.cat([last, model.features(blanks, state)[0]])
        found = _log_probabilities(model, values[:, 0])
        ends = [index for index in (self._blank, self._newline) if index is not None]
        other = torch.log((1 - found[:, ends].exp().sum(dim=1)).clamp(min=1e-300))
        before = torch.zeros(len(other), dtype=torch.float64)
        before[1:] = torch.cumsum(found[:, self._blank], dim=0)[:-1]
        total: list[float] = (before + other).tolist()
        return total

    def is_right(self, place: _Place) -> bool:
        """Whether the model answers it."""
        if place.branch is not None:
            start, right, others = place.branch
            found = self._indentations[start]
            return all(found[right] > found[other] for other in others)
        return all(self._value(first, right) > self._value(second, wrong) for first, right, second, wrong in place.comparisons)

    def _value(self, position: int, symbol: int) -> float:
        return float(self._values[self._rows[position], self._columns[symbol]])


def _log_probabilities(model: LanguageModel, features: torch.Tensor) -> torch.Tensor:
    """``(N, H)`` → log p ``(N, V)`` in fp64, on the CPU.

    Raises:
        DivergedError: they are NaN or infinite.
    """
    logits = model.logits(features).double().cpu()
    if not bool(torch.isfinite(logits).all()):
        raise DivergedError("the model's scores are NaN or infinite, so it answers nothing: its weights have grown too large")
    return torch.log_softmax(logits, dim=-1)


# --------------------------------------------------------------------------------------------------------------------
# Agreement
# --------------------------------------------------------------------------------------------------------------------


def _lacking(vocabulary: Vocabulary) -> str:
    letters = sorted({*_NOUNS, *_FOODS, *"the s which already ate and was were "})
    return " ".join(letter if letter != " " else "the space" for letter in letters if vocabulary.id_of(ord(letter)) is None)


def sentences(comma: str) -> list[list[tuple[str, bool, int]]]:
    """The sentences up to the first letter in which *was* and *were* differ, in groups of similar lengths.

    Args:
        comma: ``,`` or, where the vocabulary has none, an empty string.

    Returns:
        (sentence, whether the noun is plural, distance from the noun's end to that letter).
    """
    groups, all_foods = [], _FOODS.split()
    for target in _TARGETS:
        group = []
        for number, noun in enumerate(_NOUNS.split()):
            between, foods = " w", 0
            while target and len(between) < target:
                foods += 1
                eaten = " and ".join(all_foods[(number + k) % len(all_foods)] for k in range(foods))
                between = f"{comma} which already ate {eaten}{comma} w"
            for is_plural in (False, True):
                group.append((f"the {noun}{'s' * is_plural}{between}", is_plural, len(between) + 1))
        groups.append(group)
    return groups


def _agreement(model: LanguageModel, vocabulary: Vocabulary) -> list[Probe]:
    """Both probes of agreement; sentences of similar lengths are read side by side."""
    columns = [vocabulary.id_of(ord(letter)) for letter in "ae"]
    places: list[_Place] = []
    direct: list[float] = []
    paired: list[float] = []
    tuner = Tuner("evaluation", model.is_thread_invariant)
    for group in sentences("," if vocabulary.id_of(ord(",")) is not None else ""):
        rows = [[*opening(vocabulary, []), *vocabulary.encode(sentence)] for sentence, _, _ in group]
        ids = torch.zeros((max(map(len, rows)), len(rows)), dtype=torch.int64)
        for column, row in enumerate(rows):
            ids[: len(row), column] = torch.tensor(row)
        with torch.inference_mode(), tuner.piece(ids.numel()):
            state = model.zero_state(len(rows))
            values, _ = model.features(ids.to(state[0].device), state)
            last = values[[len(row) - 1 for row in rows], list(range(len(rows)))]
            was, were = _log_probabilities(model, last)[:, columns].unbind(1)
        odds = (was - were).tolist()
        for number, (_, is_plural, distance) in enumerate(group):
            places.append(_Place(distance, ""))
            direct.append(float((odds[number] < 0) if is_plural else (odds[number] > 0)))
            singular = number - is_plural
            difference = odds[singular] - odds[singular + 1]
            paired.append(0.5 if abs(difference) < _SAME else float(difference > 0))
    return [_probe("agreement", places, direct), _probe("agreement in pairs", places[::2], paired[::2])]
