"""Batches: every target once, in order; any batch of any epoch can be computed directly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import TrainSection
from charlm.data.streams import IGNORED, Batches, batches_of, fit_batch

sizes = {"N": st.integers(2, 120), "B": st.integers(1, 9), "T": st.integers(1, 17)}


def _batches(text: Any, unknown_rate: float = 0.0, **section: Any) -> Batches:
    return Batches(text, TrainSection(**section), unknown_rate)


def _epoch(batches: Batches, epoch: int = 0) -> list[Any]:
    return [batches.batch(epoch, index) for index in range(batches.epoch_length(epoch))]


def _pairs(batches: list[Any]) -> list[list[tuple[int, int]]]:
    """(input, target) of every scored position, by stream, in reading order."""
    streams: list[list[tuple[int, int]]] = [[] for _ in range(batches[0].inputs.shape[1])]
    for batch in batches:
        for stream, pairs in enumerate(streams):
            columns = zip(batch.inputs[:, stream].tolist(), batch.targets[:, stream].tolist(), strict=True)
            pairs += [(given_, target) for given_, target in columns if target != IGNORED]
    return streams


def test_the_drawn_example(text_of: Callable[..., Any]) -> None:
    """If this fails, the diagram in streams.py is wrong."""
    letters = "abcdefghijklm"
    batches = _batches(text_of(range(13)), batch=3, seq_length=2)
    shown = [
        tuple(
            "/".join("".join(letters[i] for i in column) for column in part.t().tolist())
            for part in (batch.inputs, batch.targets)
        )
        for batch in _epoch(batches)
    ]
    assert shown == [("ab/ef/ij", "bc/fg/jk"), ("cd/gh/kl", "de/hi/lm")]
    assert [batch.fresh for batch in _epoch(batches)] == [True, False]


@given(**sizes)
def test_every_target_counts_exactly_once(text_of: Callable[..., Any], N: int, B: int, T: int) -> None:
    """If this fails, some characters are targets never or twice in an epoch. Inputs and targets differ by one position."""
    epoch = _epoch(_batches(text_of(range(N)), batch=B, seq_length=T))
    pairs = [pair for stream in _pairs(epoch) for pair in stream]
    assert pairs == [(n, n + 1) for n in range(N - 1)], "streams, one after the other, are not the text"
    assert sum(batch.scored for batch in epoch) == N - 1
    assert all(batch.scored == int((batch.targets != IGNORED).sum()) > 0 for batch in epoch)


@given(**sizes)
def test_streams_start_where_the_design_says(text_of: Callable[..., Any], N: int, B: int, T: int) -> None:
    """If this fails, streams differ in length by more than one, and part of every last batch is wasted."""
    batches = _batches(text_of(range(N)), batch=B, seq_length=T)
    streams = _pairs(_epoch(batches))
    width = batches.shape.batch
    assert [stream[0][0] for stream in streams] == [i * (N - 1) // width for i in range(width)]
    lengths = [len(stream) for stream in streams]
    assert max(lengths) - min(lengths) <= 1


@given(**sizes)
def test_a_stream_goes_on_where_the_batch_before_stopped(text_of: Callable[..., Any], N: int, B: int, T: int) -> None:
    """If this fails, the carried state belongs to another position in the text."""
    epoch = _epoch(_batches(text_of(range(N)), batch=B, seq_length=T))
    for before, after in itertools.pairwise(epoch):
        assert not after.fresh
        assert (before.targets != IGNORED).all(), "a batch other than the last is masked"
        going_on = after.targets[0] != IGNORED
        assert (after.inputs[0] == before.targets[-1])[going_on].all()
    assert epoch[0].fresh


def test_the_last_chunk_is_masked(text_of: Callable[..., Any]) -> None:
    """If this fails, positions past a stream's end are scored. 9 targets in 2 streams: of 4 and 5 characters."""
    epoch = _epoch(_batches(text_of(range(10)), batch=2, seq_length=3))
    last = epoch[-1]
    assert last.targets.tolist() == [[4, 8], [IGNORED, 9]]
    assert last.inputs.tolist() == [[3, 7], [0, 8]]
    assert last.scored == 3


@given(seed=st.integers(0, 1000), epoch=st.integers(0, 5), drop_last=st.booleans(), **sizes)
def test_what_is_skipped_is_said(
    text_of: Callable[..., Any], seed: int, epoch: int, drop_last: bool, N: int, B: int, T: int
) -> None:
    """If this fails, random_offset or drop_last skip other characters than the run reports."""
    batches = _batches(text_of(range(N)), batch=B, seq_length=T, random_offset=True, drop_last=drop_last, seed=seed)
    read = _epoch(batches, epoch)
    pairs = sorted(pair for stream in _pairs(read) for pair in stream)
    assert len(pairs) == len(set(pairs)) == N - 1 - batches.skipped(epoch)
    assert all(target == given_ + 1 for given_, target in pairs)
    assert pairs[0][0] < batches.shape.seq_length, "more than T - 1 characters are skipped at the start"
    if drop_last:
        assert all(batch.targets.shape == (batches.shape.seq_length, batches.shape.batch) for batch in read)
        assert all((batch.targets != IGNORED).all() for batch in read)
    else:
        assert pairs == [(n, n + 1) for n in range(pairs[0][0], N - 1)], "only the start may be skipped"


def test_the_offset_is_another_one_each_epoch(text_of: Callable[..., Any]) -> None:
    """If this fails, random_offset has no effect: every epoch cuts the text at the same positions."""
    batches = _batches(text_of(range(500)), batch=4, seq_length=20, random_offset=True)
    starts = {int(batches.batch(epoch, 0).inputs[0, 0]) for epoch in range(40)}
    assert len(starts) > 10
    assert starts <= set(range(20))
    fixed = _batches(text_of(range(500)), batch=4, seq_length=20)
    assert {int(fixed.batch(epoch, 0).inputs[0, 0]) for epoch in range(5)} == {0}
    assert fixed.skipped(3) == 0


def test_drop_last_in_the_protocol_of_d2l(text_of: Callable[..., Any]) -> None:
    """If this fails, results are not comparable with published ones: 10,000 characters at 32 × 35 are 8 batches."""
    batches = _batches(text_of(range(10_000)), batch=32, seq_length=35, random_offset=True, drop_last=True)
    assert {batches.epoch_length(epoch) for epoch in range(10)} == {8}
    assert batches.skipped(0) == 9_999 - 8 * 32 * 35


@given(
    seed=st.integers(0, 50),
    at=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    N=st.integers(3, 99),
    B=st.integers(1, 6),
    T=st.integers(1, 9),
)
def test_windows_are_stretches_of_the_text(
    text_of: Callable[..., Any], seed: int, at: tuple[int, int], N: int, B: int, T: int
) -> None:
    """If this fails, a window extends past the end of the text, or its targets are not the next characters."""
    batch = _batches(text_of(range(N)), batch=B, seq_length=T, batching="windows", seed=seed).batch(*at)
    assert batch.fresh
    assert (batch.targets == batch.inputs + 1).all()
    assert (batch.inputs[1:] == batch.inputs[:-1] + 1).all()
    assert batch.scored == batch.inputs.numel()


def test_windows_follow_from_seed_epoch_and_index(text_of: Callable[..., Any]) -> None:
    """If this fails, a resumed run reads other windows, or every epoch reads the same ones."""
    text = text_of(range(5000))
    drawn = {
        (seed, epoch, index): tuple(
            _batches(text, batch=8, seq_length=10, batching="windows", seed=seed).batch(epoch, index).inputs[0].tolist()
        )
        for seed in (1, 2)
        for epoch in (0, 1)
        for index in (0, 1)
    }
    assert len(set(drawn.values())) == 8
    again = _batches(text, batch=8, seq_length=10, batching="windows", seed=2)
    again.batch(0, 0), again.batch(5, 3)
    assert tuple(again.batch(1, 1).inputs[0].tolist()) == drawn[2, 1, 1]


def test_windows_reach_the_whole_text(text_of: Callable[..., Any]) -> None:
    """If this fails, the text's first or last characters are never in a window."""
    batches = _batches(text_of(range(12)), batch=50, seq_length=4, batching="windows", seed=3)
    batch = Batches.batch(batches, 0, 0)
    assert batches.shape.shrunk
    starts = {int(s) for index in range(60) for s in batches.batch(index, 0).inputs[0]}
    assert starts == set(range(8)), "12 characters, T = 4: a window can start at 0 … 7"
    assert batch.targets.shape[0] == 4


@given(targets=st.integers(1, 400), batch=st.integers(1, 50), seq_length=st.integers(1, 80))
def test_fit_shrinks_only_what_it_must(targets: int, batch: int, seq_length: int) -> None:
    """If this fails, a tiny text gives empty batches, or the batch of a long text is shrunk."""
    shape = fit_batch(targets, batch, seq_length)
    assert 1 <= shape.seq_length == min(seq_length, targets)
    assert 1 <= shape.batch <= batch
    assert shape.batch * shape.seq_length <= targets
    assert shape.shrunk == (batch * seq_length > targets)
    if shape.batch < batch:
        assert (shape.batch + 1) * shape.seq_length > targets, "fewer streams than the text allows"


def test_two_characters_are_enough(text_of: Callable[..., Any]) -> None:
    """If this fails, training on the shortest possible text fails."""
    batches = _batches(text_of([0, 1]), batch=32, seq_length=64, random_offset=True, drop_last=True)
    (batch,) = _epoch(batches)
    assert (batch.inputs.tolist(), batch.targets.tolist(), batch.scored) == ([[0]], [[1]], 1)


# -- <unk> -----------------------------------------------------------------------------------------------------------


def _with_rare(text_of: Callable[..., Any]) -> Any:
    """2,000 characters: id 1 often, ids 2 … 401 once each at every fifth place. Id 0 is <unk> and not in the text."""
    ids = np.ones(2000, dtype=np.int64)
    ids[::5] = np.arange(2, 402)
    return text_of(ids, 402)


def test_a_text_of_rare_characters_is_read_as_it_is(text_of: Callable[..., Any]) -> None:
    """If this fails, a tiny text cannot be learned: most of its characters occur once and would be replaced by <unk>."""
    for ids, replaced in (([1, 2, 3, 3, 4], False), ([1, 1, 1, 2], True), ([1, 1, 2], False)):
        batches = _batches(text_of(ids), 1.0, batch=1, seq_length=8)
        assert any(bool((batches.batch(epoch, 0).targets == 0).any()) for epoch in range(3)) is replaced


def test_only_characters_seen_once_are_read_as_unknown(text_of: Callable[..., Any]) -> None:
    """If this fails, frequent characters are replaced by <unk>, or <unk> is never trained."""
    text = _with_rare(text_of)
    original = text.ids(0, len(text))
    rate = 0.3
    replaced = []
    for epoch in range(4):
        batches = _batches(text, rate, batch=4, seq_length=25)
        read = [pair for stream in _pairs(_epoch(batches, epoch)) for pair in stream]
        inputs = np.array([read[0][0], *(target for _, target in read)])
        changed = inputs != original
        assert (inputs[changed] == 0).all()
        assert (original[changed] >= 2).all(), "a character that is seen often was replaced"
        assert all(given_ == target for (_, target), (given_, _) in itertools.pairwise(read) if given_), "not alike"
        replaced.append(frozenset(np.flatnonzero(changed).tolist()))
    assert len(set(replaced)) == 4, "every epoch replaces the same characters"
    assert np.mean([len(positions) for positions in replaced]) / 400 == pytest.approx(rate, abs=0.06)


def test_what_is_unknown_is_the_same_when_asked_again(text_of: Callable[..., Any]) -> None:
    """If this fails, a resumed run reads another text, or a target differs from the next input."""
    text = _with_rare(text_of)
    first = _batches(text, 0.5, batch=4, seq_length=25)
    straight = [first.batch(2, index) for index in range(first.epoch_length(2))]
    again = _batches(text, 0.5, batch=4, seq_length=25)
    for index in reversed(range(len(straight))):
        batch = again.batch(2, index)
        assert (batch.inputs == straight[index].inputs).all()
        assert (batch.targets == straight[index].targets).all()
    for before, after in itertools.pairwise(straight):
        assert (before.targets[-1] == after.inputs[0]).all()
    assert (text.ids(0, 2000) != 0).all(), "the text itself was changed"


def test_no_replacement_without_a_rate(text_of: Callable[..., Any]) -> None:
    """If this fails, unknown_rate: 0 still replaces characters."""
    text = _with_rare(text_of)
    assert all((batch.inputs[batch.targets != IGNORED] != 0).all() for batch in _epoch(_batches(text, 0.0, batch=3)))


# -- records ---------------------------------------------------------------------------------------------------------

records = st.lists(st.integers(1, 40), min_size=2, max_size=60)


def _records(text_of: Callable[..., Any], lengths: list[int]) -> tuple[Any, list[list[int]]]:
    """A text of records of these lengths, S = 0, and the records with S before and after. All other symbols differ."""
    ids, parts, symbol = [0], [], 1
    for length in lengths:
        own = list(range(symbol, symbol + length))
        ids += [*own, 0]
        parts.append([0, *own, 0])
        symbol += length
    return replace(text_of(ids), separator=0), parts


def _read_records(batches: list[Any]) -> list[list[tuple[int, int]]]:
    """(input, target) of each record; all columns begin another one where the state is zeroed."""
    found: list[list[tuple[int, int]]] = []
    columns: list[list[tuple[int, int]]] = []
    for batch in batches:
        if batch.fresh:
            columns = [[] for _ in range(batch.inputs.shape[1])]
            found += columns
        for column, pairs in zip(columns, _pairs([batch]), strict=True):
            column += pairs
    return [record for record in found if record]


@given(lengths=records, B=st.integers(1, 9), T=st.integers(1, 50), epoch=st.integers(0, 3))
def test_every_record_is_read_once_from_a_zero_state(
    text_of: Callable[..., Any], lengths: list[int], B: int, T: int, epoch: int
) -> None:
    """If this fails, a record is left out or read twice, a target crosses a boundary, or the state of a record leaks."""
    text, parts = _records(text_of, lengths)
    batches = batches_of(text, TrainSection(batch=B, seq_length=T), 0.0)
    assert batches.shape.batch == min(B, len(lengths))
    read = _epoch(batches, epoch)
    assert sorted(_read_records(read)) == sorted(list(itertools.pairwise(part)) for part in parts)
    assert sum(batch.scored for batch in read) == len(text) - 1
    for batch in read:
        assert batch.inputs.shape[1] == batches.shape.batch
        assert batch.scored == int((batch.targets != IGNORED).sum()) > 0
        assert (batch.targets[-1] != IGNORED).any(), "a batch has steps that no stream needs"
        assert len(batch.inputs) <= T


def test_the_drawn_records(text_of: Callable[..., Any]) -> None:
    """If this fails, the diagram of RecordBatches is wrong."""
    letters = "Sabcdefghijk"
    text, _ = _records(text_of, [5, 4, 1, 1])
    batches = batches_of(text, TrainSection(batch=2, seq_length=4), 0.0)
    batches._order = lambda epoch: np.arange(4)  # type: ignore[attr-defined]
    shown = [
        tuple(
            "/".join("".join(" " if i == IGNORED else letters[i] for i in column) for column in part.t().tolist())
            for part in (batch.inputs.where(batch.targets != IGNORED, IGNORED), batch.targets)
        )
        for batch in _epoch(batches)
    ]
    assert shown == [("Sabc/Sfgh", "abcd/fghi"), ("de/i ", "eS/S "), ("Sj/Sk", "jS/kS")]
    assert [batch.fresh for batch in _epoch(batches)] == [True, False, True]


def test_records_are_shuffled_and_any_batch_can_be_computed_directly(text_of: Callable[..., Any]) -> None:
    """If this fails, every epoch has the same order, or a resumed run reads other records than the run that it continues."""
    lengths = np.random.default_rng(5).integers(1, 30, 200).tolist()
    text, _ = _records(text_of, lengths)
    section = TrainSection(batch=8, seq_length=12, seed=3)
    batches = batches_of(text, section, 0.0)
    epochs = [_epoch(batches, epoch) for epoch in range(3)]
    assert batches.steps_in(3) == sum(map(len, epochs))
    firsts = [batch.inputs[1].tolist() for epoch in epochs for batch in epoch[:1]]
    assert len({tuple(first) for first in firsts}) == 3
    for epoch, index in [(2, 5), (0, 0), (1, 7), (0, 3)]:
        alone = batches_of(text, section, 0.0).batch(epoch, index)
        assert alone.fresh == epochs[epoch][index].fresh
        for part in ("inputs", "targets"):
            assert torch.equal(getattr(alone, part), getattr(epochs[epoch][index], part))
    other = batches_of(text, section.model_copy(update={"seed": 4}), 0.0).batch(0, 0)
    assert not torch.equal(other.inputs[1], epochs[0][0].inputs[1])


def test_little_of_a_batch_of_records_is_masked(text_of: Callable[..., Any]) -> None:
    """If this fails, short records are padded to the length of the longest, and training takes several times as long."""
    lengths = np.random.default_rng(1).geometric(0.12, 4000).tolist()
    text, _ = _records(text_of, lengths)
    epoch = _epoch(batches_of(text, TrainSection(batch=32, seq_length=64), 0.0))
    computed = sum(batch.targets.numel() for batch in epoch)
    assert computed < 1.1 * (len(text) - 1)
