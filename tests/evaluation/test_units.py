"""What single units track: a planted unit is found, and nothing is found where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.symbols import Symbols
from charlm.errors import CorpusError, DivergedError, UsageError
from charlm.evaluation import units as module
from charlm.evaluation.hidden_states import hidden_states
from charlm.evaluation.units import _ranks, trace, units

ALPHABET = "ab “”XY.\n()"


@pytest.fixture
def quoted() -> str:
    """A random text with quotations of random lengths, in which quotes follow from nothing that was just read."""
    random = np.random.default_rng(3)
    pieces = []
    for _ in range(300):
        for opening, closing in (("", ""), ("“", "”")):
            words = "".join(random.choice(list("ab XY."), random.integers(5, 25)))
            pieces.append(f"{opening}{words}{closing}\n" if random.random() < 0.2 else f"{opening}{words}{closing}")
    return "".join(pieces)


def _ids(text: str) -> list[int]:
    return [ALPHABET.index(character) for character in text]


def test_a_planted_unit_is_found(network: Callable[..., Any], text_of: Callable[..., Any], quoted: str) -> None:
    """If this fails, a unit that tracks quotes perfectly is overlooked, or another one is named."""
    model = network(len(ALPHABET), cell="rnn", hidden=12, layers=2, input="one-hot")
    planted = 7
    layer = model.layers[0]
    with torch.no_grad():
        for weights in (layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh):
            weights[planted] = 0
        layer.weight_hh[planted, planted] = 3  # holds −1 or +1
        layer.weight_ih[planted, ALPHABET.index("“")] = -9  # low inside: the sign must be found too
        layer.weight_ih[planted, ALPHABET.index("”")] = 9
    found = units(model, text_of(_ids(quoted), len(ALPHABET)), Symbols.of_text(quoted, "char"))
    best = {score.feature: score for score in found.scores}["inside double quotes"]
    assert (best.layer, best.unit, best.state, best.sign) == (0, planted, "h", -1)
    assert best.score > 0.99 and best.chance_high < 0.65 and best.untrained < 0.9
    assert found.scores[0].feature == "inside double quotes", "the strongest is not first"
    assert "digits" in found.left_out


def test_a_planted_cell_state_is_found(network: Callable[..., Any], text_of: Callable[..., Any], quoted: str) -> None:
    """If this fails, the cell state of an LSTM is not searched, or a layer is named that it is not in."""
    model = network(len(ALPHABET), hidden=6, layers=2, input="one-hot")
    lower, upper, H, planted = model.layers[0], model.layers[1], 6, 4
    with torch.no_grad():
        for layer in (lower, upper):
            for weights in layer.parameters():
                for gate in range(4):
                    weights[gate * H + planted] = 0
        # Below, one step each: h = ±tanh 1 at quotes. Above, f = 1 and i = 1 add them up; o = 0 hides c from h.
        lower.bias_ih[[planted, 3 * H + planted]] = 20
        lower.bias_ih[H + planted] = -20
        lower.weight_ih[2 * H + planted, [ALPHABET.index("“"), ALPHABET.index("”")]] = torch.tensor([9.0, -9.0])
        upper.bias_ih[[planted, H + planted]] = 20
        upper.bias_ih[3 * H + planted] = -200
        upper.weight_ih[2 * H + planted, planted] = 9
    found = units(model, text_of(_ids(quoted), len(ALPHABET)), Symbols.of_text(quoted, "char"))
    best = {score.feature: score for score in found.scores}["inside double quotes"]
    assert (best.state, best.layer, best.unit, best.sign) == ("c", 1, planted, 1)
    assert best.score > 0.99


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_random_weights_show_chance_everywhere(
    network: Callable[..., Any], text_of: Callable[..., Any], quoted: str, cell: str
) -> None:
    """If this fails, the best of many units looks good where it tracks nothing.

    A random network holds the last characters, and features depend on them; so it reads another random text than the features
    are of. On the same text it must not differ from the untrained network beside it.
    """
    model = network(len(ALPHABET), cell=cell, hidden=32, seed=5)
    text = text_of(_ids(quoted), len(ALPHABET))
    other = text_of(np.random.default_rng(9).integers(0, len(ALPHABET), len(quoted)), len(ALPHABET))
    apart = units(model, other, Symbols.of_text(quoted, "char"))
    assert len(apart.scores) >= 6
    for score in apart.scores:
        nothing = 0.5 if score.measure == "auc" else 0.0
        noise = max(0.02, 2 * (score.chance_high - nothing))
        assert abs(score.score - nothing) < noise and abs(score.chance - nothing) < 0.03, score
    for score in units(model, text, Symbols.of_text(quoted, "char")).scores:
        assert abs(score.score - score.untrained) < 0.25, score


def test_a_score_is_the_auc_and_the_rank_correlation(
    network: Callable[..., Any], text_of: Callable[..., Any], quoted: str
) -> None:
    """If this fails, AUC or Spearman's ρ are computed wrongly, or on the characters that the unit was chosen on."""
    model = network(len(ALPHABET), cell="gru", hidden=5)
    text, symbols = text_of(_ids(quoted), len(ALPHABET)), Symbols.of_text(quoted, "char")
    found = units(model, text, symbols)
    values = hidden_states(model, text).astype(np.float16)[:, 0].astype(float)[found.chosen_on :]
    features = {feature.name: feature.values[found.chosen_on :] for feature in module.features(quoted)}
    for score in found.scores:
        own, feature = score.sign * values[:, score.unit], features[score.feature]
        if score.measure == "auc":
            high, low = own[feature], own[~feature]
            naive = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
        else:
            naive = np.corrcoef(_naive_ranks(own), _naive_ranks(feature))[0, 1]
        assert score.score == pytest.approx(naive, abs=1e-4)


def _naive_ranks(values: Any) -> np.ndarray:
    return np.array([(values < value).sum() + (values == value).sum() / 2 for value in values])


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=40))
def test_ranks_with_ties(keys: list[int]) -> None:
    """If this fails, ties or the largest values get the ranks of others."""
    found = _ranks(np.array(keys, dtype=np.uint16))
    assert found == pytest.approx(_naive_ranks(np.array(keys)) / len(keys) - 0.5, abs=1e-6)


def test_a_long_text_is_read_in_blocks(
    network: Callable[..., Any], text_of: Callable[..., Any], quoted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, memory grows with the text, or only its beginning is looked at."""
    monkeypatch.setattr(module, "POSITIONS", 4000)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    monkeypatch.setattr(module, "_LEAD", 100)
    model = network(len(ALPHABET), cell="gru", hidden=5)
    told: list[tuple[int, int]] = []
    text, symbols = text_of(_ids(quoted), len(ALPHABET)), Symbols.of_text(quoted, "char")
    found = units(model, text, symbols, progress=lambda *told_now: told.append(told_now))
    assert (found.chosen_on, found.measured_on) == (2400, 1600)
    assert told[-1] == (8000, 8000)
    assert any(score.passage[0] > len(quoted) * 0.6 for score in found.scores)
    blocks = module._blocks(symbols, 4000)
    assert blocks[0][1] == 0 and blocks[-1][2] == len(quoted) and all(stop - start == 1000 for _, start, stop in blocks)
    assert all(start - 100 <= lead <= start for lead, start, _ in blocks)


def test_a_unit_over_a_passage(network: Callable[..., Any], text_of: Callable[..., Any], quoted: str) -> None:
    """If this fails, another unit's values are shown, or those of other characters."""
    model = network(len(ALPHABET), hidden=5, layers=2)
    text = text_of(_ids(quoted), len(ALPHABET))
    for state in ("h", "c"):
        expected = hidden_states(model, text, state)[700:750, 1, 3]
        assert trace(model, text, state, 1, 3, 700, 750) == pytest.approx(expected, abs=1e-6)
    for place, field in ((("h", 2, 0), "unit"), (("h", 0, 5), "unit"), (("x", 0, 0), "state")):
        with pytest.raises(UsageError) as raised:
            trace(model, text, *place, 0, 10)
        assert raised.value.parameter == field


def test_a_short_text_and_infinite_weights_are_explained(network: Callable[..., Any], text_of: Callable[..., Any]) -> None:
    """If this fails, the user gets a traceback, or scores of a network that is broken."""
    model = network(len(ALPHABET), hidden=5)
    with pytest.raises(CorpusError, match="longer text"):
        units(model, text_of(_ids("ab"), len(ALPHABET)), Symbols.of_text("ab", "char"))
    with torch.no_grad():
        model.layers[0].weight_hh.fill_(float("nan"))
    text = "ab X. " * 200
    with pytest.raises(DivergedError):
        units(model, text_of(_ids(text), len(ALPHABET)), Symbols.of_text(text, "char"))
