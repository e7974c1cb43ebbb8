"""Writing text in C++ against the equations: the same characters, for every cell and setting."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from charlm.config import ModelSection
from charlm.data.vocabulary import Vocabulary
from charlm.errors import DivergedError
from charlm.model.language_model import LanguageModel
from charlm.model.native.sampling import NativeSampler
from charlm.sampling import SamplingParams, generate, generate_parallel, prefill
from charlm.threads import use

LETTERS = Vocabulary("char", tuple(range(97, 97 + 40)))

FIXTURES: dict[str, dict[str, Any]] = {
    "lstm": {"cell": "lstm", "hidden": 96, "input": "one-hot"},
    "gru, two layers, embedding": {"cell": "gru", "hidden": 40, "layers": 2, "embedding": 24},
    "gru as first published": {"cell": "gru", "reset_after": False, "hidden": 33, "layers": 2},
    "rnn, three layers": {"cell": "rnn", "hidden": 64, "layers": 3, "input": "one-hot"},
    "lstm, three residual layers": {"cell": "lstm", "hidden": 48, "layers": 3, "residual": True},
    "lstm with peepholes": {"cell": "lstm", "variant": "peephole", "hidden": 45, "layers": 2},
    "lstm with coupled gates": {"cell": "lstm", "variant": "coupled", "hidden": 72, "layers": 2, "embedding": 20},
    "lstm, tied": {"cell": "lstm", "hidden": 50, "layers": 2, "tied": True},
}
SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.6, top_k=7),
    SamplingParams(temperature=1.3, top_p=0.8, banned=frozenset({3, 5})),
    SamplingParams(temperature=0),
    SamplingParams(top_k=5, top_p=0.5),
]


def _model(fixture: str, engine: str = "native") -> LanguageModel:
    model = LanguageModel(ModelSection(dropout=0.0, **FIXTURES[fixture]), len(LETTERS), engine)
    model.initialise(1)
    with torch.no_grad():
        model.output_matrix().mul_(6)  # so that it has opinions
    return model


def _text(model: LanguageModel, params: SamplingParams, length: int = 1000, **options: Any) -> list[int]:
    return list(itertools.islice(generate(model, LETTERS, [4, 9, 1], params, 7, **options), length))


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_thousand_characters_are_the_reference_s(fixture: str) -> None:
    """If this fails, a seed does not give the same text on every engine."""
    expected = _text(_model(fixture, "reference"), SamplingParams())
    assert _text(_model(fixture), SamplingParams()) == expected
    assert len(set(expected)) > 10, "too little variety to tell anything"


@pytest.mark.parametrize("params", SETTINGS[1:])
def test_every_setting_is_the_reference_s(params: SamplingParams) -> None:
    """If this fails, temperature, top-k, top-p or a ban means something else in C++."""
    for fixture in ("lstm", "gru, two layers, embedding"):
        drawn = _text(_model(fixture), params, 400)
        assert drawn == _text(_model(fixture, "reference"), params, 400)
        assert params.banned.isdisjoint(drawn) and 0 not in drawn, "<unk> or a banned character was drawn"


@pytest.mark.parametrize("fixture", FIXTURES)
def test_samples_side_by_side_are_each_what_they_are_alone(fixture: str) -> None:
    """If this fails, `--num 5` writes other texts than five commands."""
    model = _model(fixture)
    together = list(itertools.islice(generate_parallel(model, LETTERS, [4, 9, 1], SamplingParams(), 7, range(5)), 200))
    for number in range(5):
        assert [row[number] for row in together] == _text(model, SamplingParams(), 200, number=number)


def test_the_number_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a text depends on the machine's cores."""
    monkeypatch.setattr("charlm.model.native.sampling._ALONE", 0)
    texts = []
    for count in (1, 2, 3):
        use(count)
        texts.append([_text(_model(fixture), SamplingParams(), 150) for fixture in FIXTURES])
    assert texts[0] == texts[1] == texts[2]


def test_bf16_writes_sensible_text() -> None:
    """If this fails, bf16 sampling draws from another distribution: greedy text must agree for a while."""
    exact, rounded = (
        _text(_model("lstm"), SamplingParams(temperature=0), 8, precision=precision) for precision in ("fp32", "bf16")
    )
    assert exact[:4] == rounded[:4]


def test_weights_that_are_not_numbers_are_named() -> None:
    """If this fails, a model with NaN ends the process, or blames the user's options."""
    model = _model("lstm")
    with torch.no_grad():
        model.layers[0].weight_hh.fill_(torch.nan)
    with pytest.raises(DivergedError, match="NaN or infinite"):
        _text(model, SamplingParams(), 50)


def test_scores_that_stop_being_numbers_do_not_crash() -> None:
    """If this fails, a state that overflows while the text is written reads or writes outside its place."""
    model = _model("rnn, three layers")
    logits, state = prefill(model, [4, 9, 1])
    nan_state = tuple(torch.full_like(part, torch.nan) for part in state)
    for params in (SamplingParams(), *SETTINGS[1:]):
        sampler = NativeSampler(
            model, torch.from_numpy(logits)[None], nan_state, params.temperature, params.top_k, params.top_p, frozenset({0})
        )
        drawn = sampler.draw(np.random.default_rng(1).random((50, 1)))
        assert ((drawn > 0) & (drawn < len(LETTERS))).all()
        assert sampler.is_nonfinite, "what was drawn from NaN is handed out as text"
