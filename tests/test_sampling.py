"""Writing text: the distribution, the draw, the stop, and the same text for the same seed on every engine."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.vocabulary import Vocabulary
from charlm.errors import UsageError
from charlm.runtime import derived_seed
from charlm.sampling import (
    SamplingParams,
    distribution,
    draw,
    generate,
    generate_parallel,
    opening,
    prefill,
    sample,
    truncate_at_stop,
    until_separator,
)

LETTERS = Vocabulary("char", tuple(map(ord, "\nabcdefgh")))
LOGITS = np.log([0.4, 0.3, 0.2, 0.1])


@pytest.fixture
def model(network: Callable[..., Any]) -> Callable[..., Any]:
    """``model("torch")``: a network over ``LETTERS`` with decided opinions."""

    def make(engine: str = "torch", vocabulary: Vocabulary = LETTERS, **section: Any) -> Any:
        made = network(len(vocabulary), engine, **{"cell": "gru", "hidden": 16, "layers": 2, **section})
        with torch.no_grad():
            for weight in made.parameters():
                weight.mul_(3)
        return made.eval()

    return make


# -- the distribution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), [0.4, 0.3, 0.2, 0.1]),
        (SamplingParams(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (SamplingParams(temperature=0), [1, 0, 0, 0]),
        (SamplingParams(temperature=0, top_k=3, top_p=0.9), [1, 0, 0, 0]),
        (SamplingParams(temperature=0, banned=frozenset({0})), [0, 1, 0, 0]),
        (SamplingParams(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParams(top_k=9), [0.4, 0.3, 0.2, 0.1]),
        (SamplingParams(top_k=1), [1, 0, 0, 0]),
        (SamplingParams(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParams(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (SamplingParams(top_p=0.05), [1, 0, 0, 0]),
        (SamplingParams(banned=frozenset({1})), [4 / 7, 0, 2 / 7, 1 / 7]),
        (SamplingParams(banned=frozenset({0}), top_k=2), [0, 3 / 5, 2 / 5, 0]),
        (SamplingParams(top_k=3, top_p=0.8), [4 / 9, 3 / 9, 2 / 9, 0]),
        (SamplingParams(temperature=0.5, top_p=0.8), [16 / 25, 9 / 25, 0, 0]),
    ],
    ids=str,
)
def test_the_distribution_by_hand(params: SamplingParams, expected: list[float]) -> None:
    """If this fails, a sampling option does something else than it is documented to do."""
    np.testing.assert_allclose(distribution(LOGITS, params), expected, rtol=1e-12, atol=0)


def test_a_high_temperature_is_uniform_and_huge_logits_are_fine() -> None:
    """If this fails, extreme values overflow."""
    np.testing.assert_allclose(distribution(LOGITS, SamplingParams(temperature=1e9)), [0.25] * 4, rtol=1e-6)
    np.testing.assert_allclose(distribution([1e4, -1e4, 1e4], SamplingParams()), [0.5, 0, 0.5])
    np.testing.assert_allclose(distribution([5.0, 1.0], SamplingParams(temperature=1e-6)), [1, 0])


def test_ties_go_to_the_smaller_id() -> None:
    """If this fails, top-k keeps more than k, or greedy sampling depends on the engine."""
    assert distribution([1.0, 2.0, 2.0, 2.0], SamplingParams(top_k=2)).tolist() == [0, 0.5, 0.5, 0]
    assert distribution([1.0, 2.0, 2.0], SamplingParams(temperature=0)).tolist() == [0, 1, 0]


@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=12),
    temperature=st.just(0.0) | st.floats(1e-6, 5),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1),
)
def test_it_is_always_a_distribution(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    """If this fails, some combination of options leaves nothing to draw."""
    found = distribution(logits, SamplingParams(temperature, top_k, top_p))
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert found[int(np.argmax(logits))] == found.max() > 0, "the likeliest was cut"
    if top_k:
        assert np.count_nonzero(found) <= top_k


def test_tastes_that_cannot_be() -> None:
    """If this fails, a nonsensical option is taken for something."""
    for wrong in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}):
        with pytest.raises(UsageError, match=r"^t"):
            SamplingParams(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="all characters are banned"):
        distribution([1.0, 2.0], SamplingParams(banned=frozenset({0, 1})))


# -- the draw --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uniform", "index"), [(0.0, 1), (0.24, 1), (0.26, 3), (0.7499, 3), (0.751, 4), (1 - 1e-16, 4)])
def test_a_draw_is_a_place_in_the_cumulative_sum(uniform: float, index: int) -> None:
    """If this fails, ids are drawn with other probabilities, or an impossible one is drawn (here 0, 2 and 5)."""
    assert draw(np.array([0, 0.25, 0, 0.5, 0.25, 0]), uniform) == index


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    """If this fails, samples are not from the model's distribution."""
    p = distribution(LOGITS, SamplingParams())
    drawn = np.bincount([draw(p, u) for u in (np.arange(10_000) + 0.5) / 10_000])
    np.testing.assert_allclose(drawn / 10_000, p, atol=1e-3)


# -- generating ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text_on_every_engine(model: Callable[..., Any]) -> None:
    """If this fails, a sample cannot be repeated."""
    texts = {
        (engine, seed, number): sample(model(engine), LETTERS, "abc", 120, SamplingParams(), seed, number)
        for engine in ("reference", "torch")
        for seed in (1, 2)
        for number in (0, 1)
    }
    for seed, number in itertools.product((1, 2), (0, 1)):
        assert texts["reference", seed, number] == texts["torch", seed, number]
    assert len(set(texts.values())) == 4, "another seed or number gives the same text"
    torch.manual_seed(5)
    assert sample(model("torch"), LETTERS, "abc", 120, SamplingParams(), 1, 0) == texts["torch", 1, 0]


def test_generating_is_reading_what_was_written(model: Callable[..., Any]) -> None:
    """If this fails, the state that generation carries is not that of the text it wrote."""
    network = model()
    prompt = LETTERS.encode("abcab")
    ids = list(itertools.islice(generate(network, LETTERS, prompt, SamplingParams(), 3), 40))
    random = iter(np.random.default_rng(derived_seed(3, "sample", 0)).random(40))
    for n, index in enumerate(ids):
        logits, _ = prefill(network, prompt + ids[:n])
        expected = draw(distribution(logits, SamplingParams(banned=frozenset({0}))), next(random))
        assert index == expected


def test_greedy_text_is_the_likeliest_each_time(model: Callable[..., Any]) -> None:
    """If this fails, temperature 0 is not greedy."""
    network = model()
    ids = list(itertools.islice(generate(network, LETTERS, [2, 3], SamplingParams(temperature=0), 1), 20))
    for n, index in enumerate(ids):
        logits, _ = prefill(network, [2, 3, *ids[:n]])
        assert index == 1 + int(np.argmax(logits[1:]))
    assert ids == list(itertools.islice(generate(network, LETTERS, [2, 3], SamplingParams(temperature=0), 99, 7), 20))


def test_unknown_and_banned_characters_are_never_drawn(model: Callable[..., Any]) -> None:
    """If this fails, sampled text holds <unk> or a character that was banned."""
    network = model()
    with torch.no_grad():
        network.output_bias[0] = 20.0  # <unk> is by far the likeliest
        network.output_bias[2] = 15.0
    params = SamplingParams(temperature=2.0, banned=frozenset({2}))
    ids = set(itertools.islice(generate(network, LETTERS, [], params, 1), 500))
    assert ids <= set(range(1, 10)) - {2}
    assert len(ids) > 3


def test_an_empty_prompt_starts_after_a_line_end(model: Callable[..., Any]) -> None:
    """If this fails, a sample without prompt starts from nowhere, or crashes."""
    assert opening(LETTERS, []) == [LETTERS.id_of(10)] == [1]
    assert opening(Vocabulary("char", (97, 98)), []) == [1]
    assert opening(Vocabulary.of_bytes(), []) == [10]
    one, other = (sample(model(), LETTERS, prompt, 20, SamplingParams(), 1) for prompt in ("", "\n"))
    assert one == other


def test_a_prompt_longer_than_a_chunk(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a long prompt's beginning is forgotten at a chunk's border."""
    prompt = LETTERS.encode("abcdefgh" * 5)
    whole, state = prefill(model(), prompt)
    monkeypatch.setattr("charlm.sampling._PROMPT_CHUNK", 7)
    pieces, again = prefill(model(), prompt)
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    torch.testing.assert_close(again[0], state[0], rtol=0, atol=1e-6)


def test_byte_models_write_bytes(model: Callable[..., Any]) -> None:
    """If this fails, a model over bytes cannot be sampled."""
    vocabulary = Vocabulary.of_bytes()
    network = model("torch", vocabulary, hidden=4, layers=1)
    ids = list(itertools.islice(generate(network, vocabulary, vocabulary.encode("é"), SamplingParams(), 1), 600))
    assert all(0 <= i < 256 for i in ids)
    assert 0 in ids, "byte 0 is taken for <unk>"
    assert isinstance(sample(network, vocabulary, "é", 10, SamplingParams(), 1), str)


def test_memory_is_flat(model: Callable[..., Any]) -> None:
    """If this fails, text without end needs memory without end."""
    ids = generate(model(), LETTERS, [1], SamplingParams(), 1)

    def live() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for _ in range(50):
        next(ids)
    tensors = live()
    tracemalloc.start()
    for _ in range(200):  # until what is kept once is there
        next(ids)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(400):
        next(ids)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert live() <= tensors
    assert after - before < 20_000, "bytes kept for 400 characters"


# -- stopping --------------------------------------------------------------------------------------------------------

_small = st.binary(max_size=12).map(lambda data: bytes(b"ab"[byte % 2] for byte in data))


@given(pieces=st.lists(_small, max_size=8), stop=_small)
def test_until_cuts_at_the_first_stop(pieces: list[bytes], stop: bytes) -> None:
    """If this fails, text after the stop is passed on, or text before it is lost, for some way of cutting the stream."""
    whole = b"".join(pieces)
    assert b"".join(truncate_at_stop(iter(pieces), stop)) == (whole.split(stop)[0] if stop else whole)


@given(pieces=st.lists(_small, max_size=8), stop=_small.filter(bool))
def test_until_passes_on_what_cannot_become_the_stop(pieces: list[bytes], stop: bytes) -> None:
    """If this fails, a reader waits for text that is certain, or sees part of the stop text."""
    given_, passed = b"", b""

    def feed() -> Any:
        nonlocal given_
        for piece in pieces:
            held = given_[len(passed) :]
            assert len(held) < len(stop), "more is held back than could be the stop"
            assert stop.startswith(held)
            given_ += piece
            yield piece

    for piece in truncate_at_stop(feed(), stop):
        passed += piece
        assert stop not in passed


def test_until_stops_reading() -> None:
    """If this fails, a model continues after the stop text: an endless stream must end."""
    assert b"".join(truncate_at_stop(itertools.cycle([b"x", b"y."]), b".x")) == b"xy"


# -- records ---------------------------------------------------------------------------------------------------------

RECORDS = Vocabulary("char", (10, 97, 98, 99)).with_separator(10)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_a_record_begins_after_the_separator_and_ends_before_it(network: Callable[..., Any], engine: str) -> None:
    """If this fails, a sample of records begins in a state that training never had, or runs into the next record."""
    model = network(len(RECORDS), engine, hidden=8)
    stream = Vocabulary("char", RECORDS.symbols)
    for prompt in ([], [2, 3]):
        for number in range(20):
            record = list(generate(model, RECORDS, prompt, SamplingParams(), 1, number))
            ids = generate(model, stream, [1, *prompt], SamplingParams(), 1, number)
            assert record == list(itertools.takewhile(lambda index: index != 1, ids))


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_records_drawn_in_parallel_are_those_drawn_alone(network: Callable[..., Any], engine: str) -> None:
    """If this fails, `charlm sample --num 100` writes other records than a hundred calls, or never ends."""
    model = network(len(RECORDS), engine, hidden=8)
    alone = [list(generate(model, RECORDS, [2], SamplingParams(), 1, number)) for number in range(12)]
    rows = list(generate_parallel(model, RECORDS, [2], SamplingParams(), 1, range(12)))
    assert len(rows) == max(map(len, alone)) + 1
    assert [list(until_separator(one, RECORDS)) for one in zip(*rows, strict=True)] == alone


def test_a_sample_of_records_can_be_shorter_than_its_length(network: Callable[..., Any]) -> None:
    """If this fails, training samples of a model of records are padded with further records."""
    model = network(len(RECORDS), hidden=8)
    texts = [sample(model, RECORDS, "ab", 1000, SamplingParams(), 1, number) for number in range(10)]
    assert all(len(text) < 200 and "\n" not in text for text in texts)
    assert len(sample(model, RECORDS, "", 2, SamplingParams(banned=frozenset({1})), 1)) == 2


def test_the_opening_of_a_record(network: Callable[..., Any]) -> None:
    """If this fails, a prompt is read as the middle of a record."""
    assert opening(RECORDS, []) == [1]
    assert opening(RECORDS, [2, 3]) == [1, 2, 3]
    assert opening(Vocabulary.of_bytes().with_separator(0), []) == [0]
