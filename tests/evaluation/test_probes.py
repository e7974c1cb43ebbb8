"""Long-range tests: places are found where they are, and answers are those of the model's probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from charlm.data.dataset import text_in_memory
from charlm.data.symbols import Symbols
from charlm.data.vocabulary import Vocabulary
from charlm.errors import DivergedError
from charlm.evaluation import probes as module
from charlm.evaluation.probes import Probes, probes, sentences

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.\n\\{}()[]\"'#:0123456789“”"


def vocabulary_of(letters: str = LETTERS) -> Vocabulary:
    return Vocabulary("char", tuple(sorted({ord(letter) for letter in letters})))


class Oracle:
    """Predicts a text that it knows, with a probability that it is told for each position; knows nothing of other texts.

    Its state counts the characters read, and whether they were those of the text.
    """

    is_thread_invariant = True

    def __init__(self, text: str, vocabulary: Vocabulary, wrong: dict[int, str] | None = None) -> None:
        self.ids = torch.tensor(vocabulary.encode(text))
        self.vocabulary_size = len(vocabulary)
        self.wrong = {at: vocabulary.encode(symbol)[0] for at, symbol in (wrong or {}).items()}

    def zero_state(self, streams: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, streams, 1),)

    def features(self, ids: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        T, _ = ids.shape
        places = state[0] + torch.arange(1, T + 1)[:, None, None]
        return places, (places[-1:],)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*features.shape[:-1], self.vocabulary_size)
        for index, place in enumerate(features.flatten().long().tolist()):
            right = int(self.ids[place]) if place < len(self.ids) else 0
            logits.view(-1, self.vocabulary_size)[index, self.wrong.get(place, right)] = 9
        return logits


def ask(model: Any, text: str, vocabulary: Vocabulary | None = None) -> Probes:
    vocabulary = vocabulary or vocabulary_of()
    return probes(model, vocabulary, text_in_memory(text, vocabulary), Symbols.of_text(text, vocabulary.unit))


def named(found: Probes) -> dict[str, Any]:
    return {probe.name: probe for probe in found.probes}


def test_brackets_are_right_where_the_model_predicts_them() -> None:
    """If this fails, another bracket or another position is asked about, or distances are wrong."""
    text = "x(ab[cd]ef) [gh] (ij)\n" * 10
    right = named(ask(Oracle(text, vocabulary_of()), text))["brackets"]
    assert (right.count, right.accuracy) == (40, 1.0)
    assert [(one.start, one.count) for one in right.bins] == [(1, 40)]
    assert right.chance == 0.5
    wrong = {text.index("]") + 22 * number: ")" for number in range(5)}
    assert named(ask(Oracle(text, vocabulary_of(), wrong), text))["brackets"].accuracy == 35 / 40


def test_bins_hold_their_distances() -> None:
    """If this fails, accuracy is stated for other distances than those of the places."""
    text = "".join(f"({'a' * length}) [{'b' * length}] " for length in (0, 8, 9, 28, 29, 98, 99, 298, 299, 998, 999)) * 2
    probe = named(ask(Oracle(text, vocabulary_of()), text))["brackets"]
    assert [(one.start, one.stop, one.count) for one in probe.bins] == [
        (1, 10, 8), (10, 30, 8), (30, 100, 8), (100, 300, 8), (300, 1000, 8), (1000, None, 4),
    ]  # fmt: skip


def test_quotes_are_asked_in_pairs() -> None:
    """If this fails, a model that always predicts a quote, or never, is not at chance."""
    text = 'he said "abc, de." and so. then "no." again. ' * 30
    vocabulary = vocabulary_of()
    good = named(ask(Oracle(text, vocabulary), text))["double quotes"]
    assert (good.count, good.accuracy, good.chance) == (60, 1.0, 0.5)

    class Constant(Oracle):
        def logits(self, features: torch.Tensor) -> torch.Tensor:
            noise = torch.sin(1e4 * features.double()) * 0.01
            return noise * torch.ones(*features.shape[:-1], self.vocabulary_size).cumsum(-1)

    blind = named(ask(Constant(text, vocabulary), text))["double quotes"]
    assert 0.25 < blind.accuracy < 0.75


def test_single_quotes_are_told_from_apostrophes() -> None:
    """If this fails, texts with single quotes, such as The Time Machine, have no places, or apostrophes are among them."""
    text = "'I don't know,' he said. 'nor, as it is, do I.' it's so, he's done.\n" * 20
    found = named(ask(Oracle(text, vocabulary_of(LETTERS + "I")), text, vocabulary_of(LETTERS + "I")))["single quotes"]
    assert (found.count, found.accuracy) == (40, 1.0)


def test_environments_are_told_apart_at_the_first_letter_that_differs() -> None:
    """If this fails, names that begin alike are confused, or a wrong name is taken for right."""
    pieces = [f"\\begin{{{name}}}\n{'text ' * 6}\n\\end{{{name}}}\n" for name in ("proof", "prop", "lemma")]
    text = "".join(pieces) * 10
    vocabulary = vocabulary_of()
    good = named(ask(Oracle(text, vocabulary), text))["environments"]
    assert (good.count, good.accuracy) == (30, 1.0) and good.chance == pytest.approx(1 / 3)
    at = text.index("\\end{prop}") + len("\\end{pro")
    assert named(ask(Oracle(text, vocabulary, {at: "o"}), text))["environments"].accuracy == pytest.approx(29 / 30)


def test_indentation_is_compared_over_all_enclosing_blocks(network: Callable[..., Any]) -> None:
    """If this fails, probabilities of indentations are those of other lines, or the text's own is not among them."""
    text = "def a:\n  if b:\n    c\n  d\ndef e:\n  if f:\n    g\n" * 18 + "def z:\n"
    vocabulary = vocabulary_of()
    model = network(len(vocabulary), cell="gru", hidden=10, seed=4)
    ids = vocabulary.encode(text)
    space, newline = vocabulary.encode(" \n")
    right = 0
    places = [place for place in module._indentation_places(text) if place.branch]
    assert len(places) == 36, "18 lines d and 18 lines def after g"
    for place in places:
        assert place.branch is not None
        start, level, others = place.branch
        assert text[start + level] != " " and text[start : start + level].strip() == ""
        scores = {}
        for blanks in (level, *others):
            with torch.no_grad():
                logits, _ = model(torch.tensor([*ids[:start], *[space] * blanks])[:, None], model.zero_state(1))
            p = torch.softmax(logits[:, 0].double(), -1)
            path = [float(p[start - 1 + k, space]) for k in range(blanks)]
            scores[blanks] = np.prod(path) * (1 - float(p[start - 1 + blanks, space]) - float(p[start - 1 + blanks, newline]))
        right += scores[level] == max(scores.values())
    found = named(ask(model, text))["indentation"]
    assert (found.count, found.accuracy) == (36, pytest.approx(right / 36))
    assert {place.answer for place in places} == {"closing 1", "closing 2"}


def test_lines_in_brackets_and_uneven_ones_are_passed_over() -> None:
    """If this fails, the alignment of arguments is taken for blocks."""
    text = "f(a,\n      b,\n  c)\nif x:\n    y\n  z\nw\n"
    assert [place.branch for place in module._indentation_places(text)] == []
    assert [place.branch for place in module._indentation_places("if x:\n  if y:\n    z\nw\n")] == [(20, 0, (2,))]


def test_agreement_asks_for_the_letter_that_differs(network: Callable[..., Any]) -> None:
    """If this fails, sentences are not what is documented, or padding changes their answers."""
    groups = sentences(",")
    assert groups[0][:2] == [("the cat w", False, 3), ("the cats w", True, 3)]
    assert groups[1][1][0] == "the cats, which already ate bread, w"
    for group in groups:
        for sentence, is_plural, distance in group:
            noun = sentence.split(",")[0].split()[1]
            assert distance == len(sentence) + 1 - len("the ") - len(noun) and noun.endswith("s") == is_plural
    assert groups[-1][0][2] >= 600
    vocabulary = vocabulary_of()
    model = network(len(vocabulary), cell="gru", hidden=10, seed=4)
    right, pairs = [], []
    a, e = vocabulary.encode("ae")
    for group in groups:
        odds = []
        for sentence, is_plural, _ in group:
            with torch.no_grad():
                logits = model(torch.tensor(vocabulary.encode("\n" + sentence))[:, None], model.zero_state(1))[0][-1, 0]
            odds.append(float(logits[a] - logits[e]))
            right.append((odds[-1] < 0) == is_plural)
        pairs += [0.5 if abs(one - two) < 1e-6 else one > two for one, two in zip(odds[::2], odds[1::2], strict=True)]
    found = named(ask(model, "ab"))
    assert found["agreement"].accuracy == pytest.approx(np.mean(right))
    assert found["agreement in pairs"].accuracy == pytest.approx(np.mean(pairs), abs=0.03)
    assert sum(one.count for one in found["agreement"].bins) == found["agreement"].count == len(right)


def test_what_is_missing_is_said() -> None:
    """If this fails, a probe disappears without a reason, or is asked with letters that the model does not know."""
    vocabulary = vocabulary_of("abc ()\n")
    text = "a (b) c\n" * 30
    found = ask(Oracle(text, vocabulary), text, vocabulary)
    assert found.probes == ()
    assert "lacks d e f" in found.left_out["agreement"]
    assert found.left_out["brackets"].startswith("all of them are )")
    assert "0 in 240 characters; at least 20" in found.left_out["double quotes"]
    two = ask(Oracle("ab", vocabulary), "ab", vocabulary)
    assert two.probes == () and len(two.left_out) == 6


def test_symbols_that_the_vocabulary_lacks_are_not_compared() -> None:
    """If this fails, a model is asked about brackets that it cannot write."""
    vocabulary = vocabulary_of(LETTERS.replace("]", ""))
    text = "(a) [b] {c} " * 20
    known = text_in_memory(text, vocabulary)
    model = Oracle(text.replace("]", "a"), vocabulary)
    found = named(probes(model, vocabulary, known, Symbols.of_text(text, "char")))["brackets"]
    assert (found.count, found.accuracy, found.chance) == (40, 1.0, 0.5)


def test_a_long_text_has_a_bounded_number_of_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, memory grows with the text."""
    monkeypatch.setattr(module, "_MOST", 15)
    monkeypatch.setattr(module, "CHARACTERS", 600)
    text = "(a) [bcdefghijklm] " * 100
    told: list[tuple[int, int]] = []
    vocabulary = vocabulary_of()
    found = probes(
        Oracle(text, vocabulary), vocabulary, text_in_memory(text, vocabulary), Symbols.of_text(text, "char"),
        progress=lambda *now: told.append(now),
    )  # fmt: skip
    assert found.characters == 600 and [one.count for one in named(found)["brackets"].bins] == [15, 15]
    assert told[-1][0] == told[-1][1] < 600


def test_infinite_weights_are_explained(network: Callable[..., Any]) -> None:
    """If this fails, a broken model is wrong about everything instead of an error."""
    vocabulary = vocabulary_of()
    model = network(len(vocabulary), hidden=5)
    with torch.no_grad():
        model.output_bias.fill_(float("inf"))
    with pytest.raises(DivergedError):
        ask(model, "ab")
