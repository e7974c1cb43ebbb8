"""Surprisal: the same sums as perplexity, and the alternatives that the model had in mind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from charlm.data.dataset import text_in_memory
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.perplexity import carried
from charlm.evaluation.surprisal import Span, Spans, class_table, surprisal, surprisal_parts

V = 11
MODELS: list[dict[str, Any]] = [
    {"cell": "rnn"},
    {"cell": "gru", "reset_after": False, "layers": 2, "residual": True},
    {"cell": "lstm", "input": "embedding", "embedding": 5},
    {"cell": "lstm", "variant": "coupled", "attention": 7},
    {"cell": "lstm", "variant": "peephole", "tied": True},
]


def _strong(model: Any) -> Any:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return model


@pytest.mark.parametrize("section", MODELS, ids=lambda s: "-".join(map(str, s.values())))
def test_surprisals_sum_to_the_nats_of_perplexity(network: Callable[..., Any], text_of: Callable[..., Any], section) -> None:
    """If this fails, surprisal and perplexity are two different measures of the same text."""
    text = text_of(np.random.default_rng(3).integers(0, V, 1501), V)
    model = _strong(network(V, hidden=12, **section))
    each = np.zeros(1500)
    score = carried(model, text, each=each)
    found = surprisal(model, text)
    assert found.start == 1 and found.nats.sum() == pytest.approx(score.nats, rel=1e-6)
    np.testing.assert_allclose(found.nats, each, rtol=1e-9)


@pytest.mark.parametrize("section", MODELS, ids=lambda s: "-".join(map(str, s.values())))
def test_records_are_read_one_by_one(network: Callable[..., Any], text_of: Callable[..., Any], section) -> None:
    """If this fails, a record is read with the state or the attention of another, or the parts of a long one are not joined."""
    random = np.random.default_rng(3)
    ids = [0]
    for length in (3, 1, 40, 2100, 5, 17, 1, 9):
        ids += [*random.integers(1, V, length), 0]
    text = replace(text_of(ids, V), separator=0)
    model = _strong(network(V, hidden=12, **section))
    alone = []
    for start, stop in pairwise(text.bounds().tolist()):
        nats = np.zeros(stop - start)
        carried(model, replace(text[slice(start, stop + 1)], separator=None), each=nats)
        alone.append(nats)
    found = surprisal(model, text)
    np.testing.assert_allclose(found.nats, np.concatenate(alone), atol=1e-5)
    assert found.nats.sum() == pytest.approx(carried(model, text).nats, rel=1e-6)
    parts = list(surprisal_parts(model, text))
    assert [part.start for part in parts[1:]] == [part.start + len(part.nats) for part in parts[:-1]]
    logits, _ = model(torch.tensor([0, ids[1]])[:, None], model.zero_state(1))
    likeliest = [index for index in logits[1, 0].argsort(descending=True).tolist() if index != ids[2]]
    assert found.alternatives[1].tolist() == likeliest[:5]


def test_alternatives_are_the_likeliest_other_symbols(network: Callable[..., Any], text_of: Callable[..., Any], monkeypatch):
    """If this fails, the alternatives belong to another place, or the true character is among them."""
    monkeypatch.setattr("charlm.evaluation.surprisal._LOGITS_AT_ONCE", 30 * V)
    ids = np.random.default_rng(4).integers(0, V, 200)
    model = _strong(network(V, cell="gru", hidden=12))
    found = surprisal(model, text_of(ids, V), alternatives=3)
    logits, _ = model(torch.from_numpy(ids[:-1, None]), model.zero_state(1))
    p = torch.softmax(logits[:, 0].double(), -1).detach().numpy()
    for step, target in enumerate(ids[1:]):
        expected = [index for index in np.argsort(-p[step]) if index != target][:3]
        assert found.alternatives[step].tolist() == expected
        np.testing.assert_allclose(found.probabilities[step], p[step][expected], rtol=1e-4)
    assert surprisal(model, text_of(ids, V), alternatives=99).alternatives.shape == (199, V - 1)


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_lines_and_words_have_the_sums_of_their_characters(network: Callable[..., Any], english: Callable[..., str], unit: str):
    """If this fails, the sums lose characters, above all where a line or a word crosses from one part to the next."""
    given = "\n" + english(2500) + "\n\nüber 12 köln" + ("" if unit == "byte" else "\n")
    symbols = given.encode().decode("latin-1") if unit == "byte" else given
    vocabulary = Vocabulary.of_bytes() if unit == "byte" else Vocabulary("char", tuple(sorted(set(map(ord, given)))))
    text = text_in_memory(given, vocabulary)
    alphabet = np.unique([ord(symbol) for symbol in symbols])
    model = network(len(vocabulary), cell="rnn", hidden=8)
    nats = np.concatenate([[0.0], surprisal(model, text).nats])
    pattern = {"line": r"[^\n]*\n|[^\n]+\Z", "word": "[A-Za-z0-9\x80-\xff]+" if unit == "byte" else r"[^\W_]+"}
    for of in ("line", "word"):
        spans = Spans(text, class_table(alphabet, unit, of), of)
        found: list[Span] = []
        for part in surprisal_parts(model, text, alternatives=1):
            found += spans.add(part)
        found += spans.close()
        expected = [match.span() for match in re.finditer(pattern[of], symbols)]
        assert [(span.start, span.stop) for span in found] == expected
        for span in found:
            own = nats[span.start : span.stop]
            assert span.nats == pytest.approx(own.sum())
            assert span.characters == len(own) - (span.start == 0)
            if span.worst is not None:
                assert span.worst == span.start + own.argmax() and span.worst_nats == own.max()


def test_texts_and_weights_without_an_answer_are_refused(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """If this fails, a text of one character or a model of NaN gives a traceback, or a result."""
    model = network(V, cell="lstm", hidden=4)
    with pytest.raises(CorpusError, match="1 characters"):
        surprisal(model, text_of([3], V))
    assert len(surprisal(model, text_of([3, 4], V)).nats) == 1
    with torch.no_grad():
        model.output_bias.fill_(torch.nan)
    with pytest.raises(DivergedError):
        surprisal(model, text_of([3, 4], V))
