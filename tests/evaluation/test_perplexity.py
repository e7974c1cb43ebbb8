"""Perplexity: exact where it says exact, and every result a sum of nats over a count of characters."""

from __future__ import annotations

import itertools
import math
import os
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.checkpoint import load
from charlm.data.dataset import open_dataset
from charlm.evaluation import perplexity
from charlm.evaluation.perplexity import Score, carried, reset, segments

V = 11
CELLS: list[dict[str, Any]] = [
    {"cell": "rnn"},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
    {"cell": "lstm"},
]


@pytest.fixture
def model(network: Callable[..., Any]) -> Any:
    """A model whose predictions depend strongly on what it read."""
    made = network(V, "torch", cell="lstm", hidden=16, layers=2, input="embedding", embedding=6)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3)
    return made.eval()


@pytest.fixture
def text(text_of: Callable[..., Any]) -> Any:
    """1,501 characters of 11 kinds."""
    return text_of(np.random.default_rng(1).integers(0, V, 1501), V)


def _naive_nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """−ln softmax(logits)[target] of each position, in float64."""
    largest = logits.max(-1, keepdims=True)
    log_sum = largest[..., 0] + np.log(np.exp(logits - largest).sum(-1))
    return log_sum - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


class CountingModel:
    """Stands in for a network: its state is how many characters it has read, and it writes down what it is asked.

    A target's cost is 1 + target / 1000 nats or so: what matters here is which characters are scored, not how well.
    """

    vocabulary_size = 500
    is_thread_invariant = True

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def zero_state(self, streams: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, streams, 1),)

    def features(self, ids: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        steps = torch.arange(1, len(ids) + 1)[:, None]
        context = state[0][0, :, 0] + steps
        self.read += list(zip(ids.flatten().tolist(), context.flatten().tolist(), strict=True))
        return torch.stack([ids.float(), context], dim=-1), (state[0] + len(ids),)

    def nll(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.scored = [*getattr(self, "scored", []), features.clone()]
        return (targets >= 0).double() * math.log(self.vocabulary_size)


# -- carried ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "torch"])
@pytest.mark.parametrize("section", CELLS, ids=lambda s: "-".join(map(str, s.values())))
def test_carried_is_the_textbook_figure(
    network: Callable[..., Any],
    numpy_model: Callable[..., Any],
    text_of: Callable[..., Any],
    section: dict[str, Any],
    engine: str,
) -> None:
    """If this fails, perplexity is not what its definition says: a step-by-step float64 computation of the whole model."""
    if engine == "torch" and section.get("reset_after") is False:
        pytest.skip("this engine does not run this cell")
    ids = np.random.default_rng(2).integers(0, V, 300)
    for keys in ({"input": "one-hot", "layers": 2}, {"input": "embedding", "embedding": 5}, {"tied": True}):
        model = network(V, engine, hidden=12, **section, **keys).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(2)
        expected = _naive_nats(numpy_model(model, ids[:-1, None])[:, 0], ids[1:]).sum()
        score = carried(model, text_of(ids, V))
        assert score.characters == 299
        assert score.nats == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("section", [{"cell": "gru"}, {"cell": "lstm", "layers": 2}], ids=["gru", "lstm"])
def test_carried_does_not_depend_on_chunk_or_engine(network: Callable[..., Any], text: Any, section: dict[str, Any]) -> None:
    """If this fails, an exact result depends on a memory setting (1e-6 relative)."""
    results = [
        carried(network(V, engine, hidden=16, **section), text, chunk=chunk).nats
        for engine in ("reference", "torch")
        for chunk in (1, 7, 1000, 1024, 0)
    ]
    assert max(results) / min(results) - 1 < 1e-6


def test_the_output_layer_in_blocks_changes_nothing(model: Any, text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a large vocabulary is scored otherwise than a small one."""
    whole = carried(model, text).nats
    monkeypatch.setattr(perplexity, "_LOGITS_AT_ONCE", 40)
    assert carried(model, text).nats == pytest.approx(whole, rel=1e-7)


@given(size=st.integers(2, 60), chunk=st.integers(0, 70))
def test_carried_scores_every_character_but_the_first(text_of: Callable[..., Any], size: int, chunk: int) -> None:
    """If this fails, characters at chunk borders are lost or counted twice."""
    stub = CountingModel()
    seen: list[tuple[int, int]] = []
    score = carried(stub, text_of(range(size), 500), chunk=chunk, progress=lambda *where: seen.append(where))  # type: ignore[arg-type]
    assert stub.read == [(n, n + 1) for n in range(size - 1)], "each after all before it"
    assert score.nats == pytest.approx((size - 1) * math.log(500))
    assert score.characters == size - 1
    assert seen[-1] == (size - 1, size - 1)


def test_unknown_characters_are_counted(model: Any, text: Any) -> None:
    """If this fails, a report hides how many characters the model did not know; the first one is not scored."""
    ids = text.ids(0, len(text))
    expected = int((ids[1:] == 3).sum())
    for chunk in (1, 13, 0):
        assert carried(model, text, chunk=chunk, unknown_id=3).unknown_characters == expected
    assert reset(model, text, window=50, unknown_id=3).unknown_characters == expected
    assert carried(model, text).unknown_characters == 0


# -- reset -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 7, 100, 1500, 5000])
def test_reset_is_each_window_from_a_zero_state(model: Any, numpy_model: Callable[..., Any], text: Any, window: int) -> None:
    """If this fails, `reset:N` is not the naive definition: windows one after the other, the last may be shorter."""
    ids = text.ids(0, len(text))
    total = 0.0
    for start in range(0, len(ids) - 1, window):
        piece = ids[start : start + window + 1]
        total += _naive_nats(numpy_model(model, piece[:-1, None])[:, 0], piece[1:]).sum()
    score = reset(model, text, window=window)
    assert score.characters == len(ids) - 1
    assert score.nats == pytest.approx(total, rel=1e-6)


def test_reset_and_carried_agree_on_one_window(model: Any, text: Any) -> None:
    """If this fails, one of the two modes starts from another state."""
    assert reset(model, text, window=len(text)).nats == pytest.approx(carried(model, text).nats, rel=1e-6)


# -- segments --------------------------------------------------------------------------------------------------------


@given(
    size=st.integers(2, 200),
    pieces=st.integers(1, 12),
    warm=st.integers(0, 50),
    limit=st.none() | st.integers(1, 250),
)
def test_segments_score_each_character_but_the_first_once(
    text_of: Callable[..., Any], size: int, pieces: int, warm: int, limit: int | None
) -> None:
    """If this fails, the loss that chooses `best` leaves characters out, or counts some twice."""
    stub = CountingModel()
    score = segments(stub, text_of(range(size), 500), pieces=pieces, warm=warm, characters=limit)  # type: ignore[arg-type]
    wanted = min(size - 1, limit or size)
    assert score.characters == wanted
    assert score.nats == pytest.approx(wanted * math.log(500))
    # Each scored position (its input is `n`) had read W characters before it, or all there were.
    contexts: dict[int, int] = {}
    for features in stub.scored:
        for n, context in features.tolist():
            contexts[int(n)] = max(contexts.get(int(n), 0), int(context))
    S = max(1, min(pieces, wanted // max(1, warm)))
    starts = [i * wanted // S + i * (size - 1 - wanted) // S for i in range(S)]
    lengths = [(i + 1) * wanted // S - i * wanted // S for i in range(S)]
    places = [start + n for start, length in zip(starts, lengths, strict=True) for n in range(length)]
    assert len(set(places)) == wanted and max(places) < size - 1
    assert all(contexts[n] >= min(n + 1, warm) for n in places)


def test_one_segment_is_exact(model: Any, text: Any) -> None:
    """If this fails, the cheap result differs from the exact one even where it reads everything."""
    exact = carried(model, text).nats
    assert segments(model, text, pieces=1).nats == pytest.approx(exact, rel=1e-6)
    assert segments(model, text, pieces=32, warm=len(text)).nats == pytest.approx(exact, rel=1e-6)


def test_segments_without_warming_are_pieces_from_zero(model: Any, text: Any, numpy_model: Callable[..., Any]) -> None:
    """If this fails, pieces are not cut where they are said to be, or the warming is not what makes the difference."""
    ids = text.ids(0, len(text))
    bounds = [i * 1500 // 8 for i in range(9)]
    total = sum(
        _naive_nats(numpy_model(model, ids[a:b, None])[:, 0], ids[a + 1 : b + 1]).sum() for a, b in itertools.pairwise(bounds)
    )
    assert segments(model, text, pieces=8, warm=0).nats == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("chunk", [1024, 64])
def test_segments_are_warmed_on_the_characters_before_them(
    model: Any, text: Any, numpy_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """If this fails, a piece starts from the state of other characters than the W before it, however many calls that takes."""
    monkeypatch.setattr(perplexity, "CHUNK", chunk)
    ids = text.ids(0, len(text))
    warm, bounds, total = 150, [i * 1500 // 8 for i in range(9)], 0.0
    for a, b in itertools.pairwise(bounds):
        start = max(0, a - warm)
        logits = numpy_model(model, ids[start:b, None])[:, 0]
        total += _naive_nats(logits, ids[start + 1 : b + 1])[a - start :].sum()
    assert segments(model, text, pieces=8, warm=warm).nats == pytest.approx(total, rel=1e-6)


def test_segments_can_be_capped(model: Any, text: Any) -> None:
    """If this fails, evaluate.characters scores another number of characters than it says."""
    score = segments(model, text, pieces=1, characters=200)
    assert score.characters == 200
    assert score.nats == pytest.approx(carried(model, text[slice(0, 201)]).nats, rel=1e-6)


def test_a_capped_figure_looks_at_the_whole_text(text_of: Callable[..., Any]) -> None:
    """If this fails, the beginning of a long validation text alone chooses `best`, however unlike the rest it is."""
    stub = CountingModel()
    segments(stub, text_of(range(401), 500), pieces=4, warm=10, characters=40)  # type: ignore[arg-type]
    scored = sorted(int(n) for features in stub.scored for n in features[:, 0].tolist())
    assert scored == [start + n for start in (0, 100, 200, 300) for n in range(10)]


def _three_texts(english: Callable[..., str]) -> dict[str, Any]:
    texts: dict[str, Any] = {"generated": english(60_000)}
    stdlib = Path(sysconfig.get_path("stdlib"))
    texts["python"] = "".join((stdlib / name).read_text(encoding="utf-8") for name in ("argparse.py", "inspect.py"))
    for folder in os.environ.get("CHARLM_CORPORA", "").split(os.pathsep):
        files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".txt", ".tex")) if folder else []
        for path in files[:2]:
            texts[path.name] = path.read_text(encoding="utf-8", errors="replace")[:120_000]
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_segments_are_close_to_exact_on_trained_models(
    tmp_path: Path,
    tiny_run: Callable[..., Any],
    recipe_for: Callable[..., Any],
    english: Callable[..., str],
    cell: str,
) -> None:
    """If this fails, the cheap validation is further than 1e-3 nats from the exact one, and `best` may not be."""
    keys = (f"model.cell={cell}", "model.hidden=48", "train.batch=16", "train.seq_length=32", "train.total_steps=150",
            "evaluate.every=1000", "evaluate.characters=500", "data.split=[0.6, 0.4, 0.0]")  # fmt: skip
    for name, text in _three_texts(english).items():
        path = tmp_path / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        run = tiny_run(path, tmp_path / name, *keys)
        model = load(run.folder / "last.safetensors").model(torch.device("cpu"))
        validation = open_dataset(recipe_for(path, *keys)).text("validation")
        exact, cheap = carried(model, validation), segments(model, validation)
        assert exact.characters == cheap.characters >= 20_000
        assert abs(exact.nats_per_character - cheap.nats_per_character) < 1e-3, name
        assert exact.nats_per_character < 3.2, f"{name}: the model has learned nothing, so this shows nothing"


# -- results ---------------------------------------------------------------------------------------------------------


def test_a_figure_is_never_a_mean_of_means(text_of: Callable[..., Any], model: Any) -> None:
    """If this fails, a short last chunk weighs as much as a full one."""
    # 9 characters that the model finds easy, one that it finds hard, alone in the last chunk.
    with torch.no_grad():
        model.output_bias[1] += 8
    text = text_of([*[1] * 10, 9], V)
    each = [carried(model, text[slice(0, n + 1)]).nats for n in range(1, 11)]
    nats = np.diff([0.0, *each])
    mean_of_means = (nats[:9].mean() + nats[9]) / 2
    assert abs(mean_of_means - nats.mean()) > 0.1, "this text would not show the difference"
    for score in (carried(model, text, chunk=9), reset(model, text, window=10), segments(model, text, pieces=1)):
        assert score.nats_per_character == pytest.approx(nats.mean(), rel=1e-5)


def test_a_score_in_its_three_units() -> None:
    """If this fails, nats, bits and perplexity of one score contradict each other."""
    score = Score(nats=20.0, characters=10)
    assert (score.nats_per_character, score.bits_per_character) == (2.0, 2.0 / math.log(2))
    assert score.perplexity == math.exp(2.0)
    assert perplexity.perplexity(1e4) == math.inf
    uniform = Score(nats=100 * math.log(50), characters=100)
    assert uniform.perplexity == pytest.approx(50)


# -- records ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(text_of: Callable[..., Any]) -> Any:
    """80 records of 1 to 60 characters, and one of 2,500; the separator is symbol 0."""
    random = np.random.default_rng(2)
    lengths = [*random.integers(1, 60, 40), 2500, *random.integers(1, 60, 40)]
    ids = [0]
    for length in lengths:
        ids += [*random.integers(1, V, length), 0]
    return replace(text_of(ids, V), separator=0)


def _naive_records(numpy_model: Callable[..., Any], model: Any, text: Any) -> np.ndarray:
    """−ln p of every symbol but the first, record by record, in float64 NumPy."""
    ids = text.ids(0, len(text))
    parts = []
    for start, stop in itertools.pairwise(np.flatnonzero(ids == 0).tolist()):
        logits = numpy_model(model, ids[start:stop, None])[:, 0]
        parts.append(_naive_nats(logits, ids[start + 1 : stop + 1]))
    return np.concatenate(parts)


@pytest.mark.parametrize("engine", ["reference", "torch", "native"])
@pytest.mark.parametrize("chunk", [0, 7, 1024])
def test_records_are_scored_one_by_one(
    numpy_model: Callable[..., Any], model: Any, records: Any, engine: str, chunk: int
) -> None:
    """If this fails, a record is scored with the state of another, or its separator is not scored exactly once."""
    expected = _naive_records(numpy_model, model, records)
    each = np.full(len(records) - 1, np.nan)
    score = carried(model.with_engine(engine), records, chunk=chunk, unknown_id=3, each=each)
    assert score.characters == len(records) - 1 == len(expected)
    assert np.allclose(each, expected, rtol=0, atol=2e-5)
    assert abs(score.nats - expected.sum()) < 1e-6 * len(expected)
    assert score.unknown_characters == int((records.ids(1, len(records)) == 3).sum())


def test_the_beginning_of_a_text_of_records(numpy_model: Callable[..., Any], model: Any, records: Any) -> None:
    """If this fails, a limit on the exact evaluation scores the last, cut record wrong."""
    expected = _naive_records(numpy_model, model, records)
    bounds = records.bounds()
    for length in (2, int(bounds[3]), int(bounds[3]) + 1, int(bounds[3]) + 2, int(bounds[40]) + 1500):
        score = carried(model, records[slice(0, length)])
        assert score.characters == length - 1
        assert score.nats == pytest.approx(expected[: length - 1].sum(), rel=1e-6)


@pytest.mark.parametrize("characters", [None, 100, 1000, 3000, 10_000])
def test_the_quick_validation_of_records_is_exact_on_what_it_scores(
    numpy_model: Callable[..., Any], model: Any, records: Any, characters: int | None
) -> None:
    """If this fails, the quick validation cuts records at their beginning, or scores more than `evaluate.characters`."""
    expected = _naive_records(numpy_model, model, records)
    score = segments(model, records, characters=characters)
    starts, lengths = perplexity.quick_parts(records, pieces=32, warm=1000, characters=characters)
    assert set(starts.tolist()) <= set(records.bounds().tolist())
    assert score.characters == lengths.sum() <= (characters or len(expected))
    assert score.characters >= min(characters or len(expected), len(expected)) / 4
    scored = np.concatenate([expected[start : start + length] for start, length in zip(starts, lengths, strict=True)])
    assert score.nats == pytest.approx(scored.sum(), rel=1e-6)


def test_progress_of_records_follows_the_text(model: Any, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a time limit that ends the exact evaluation counts characters that are not scored yet."""
    monkeypatch.setattr(perplexity, "_POOL", 500)
    each = np.full(len(records) - 1, np.nan)
    told = []

    def progress(done: int, total: int | None) -> None:
        assert np.isfinite(each[:done]).all()
        told.append((done, total))

    carried(model, records, each=each, progress=progress)
    assert len(told) > 4
    assert told[-1] == (len(each), len(each))
