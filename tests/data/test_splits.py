"""Splits: exact boundaries, contiguous, no characters lost."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.splits import split_offsets
from charlm.errors import RecipeError


@pytest.mark.parametrize(
    ("characters", "split", "stops"),
    [
        (1_115_394, [0.9, 0.1, 0], (1_003_854, 1_115_394, 1_115_394)),
        (1_771_230, [0.85, 0.05, 0.1], (1_505_545, 1_594_107, 1_771_230)),
        (6, [1, 0, 0], (6, 6, 6)),
        (10, [0.7, 0.2, 0.1], (7, 9, 10)),  # 0.7 + 0.2 is less than 0.9 in binary
        (1_000_000_000, [0.7, 0.2, 0.1], (700_000_000, 900_000_000, 1_000_000_000)),
        (20_000, [10_000, 5_000, 0], (10_000, 15_000, 15_000)),
        (2, [1, 1, 0], (1, 2, 2)),  # sums to more than 1: counts
        (100, [0.5, 0.25, 0.0], (50, 75, 75)),
    ],
)
def test_where_the_parts_are(characters: int, split: list[float], stops: tuple[int, int, int]) -> None:
    """If this fails, results are not comparable with published ones, or characters are lost."""
    train, validation, test = stops
    assert split_offsets(characters, split) == {
        "train": (0, train),
        "validation": (train, validation),
        "test": (validation, test),
    }


@given(characters=st.integers(1, 10**11), percents=st.tuples(st.integers(1, 98), st.integers(0, 98)))
def test_fractions_that_sum_to_one_cover_the_text(characters: int, percents: tuple[int, int]) -> None:
    """If this fails, the last characters of some text belong to no part."""
    train, validation = percents[0], min(percents[1], 100 - percents[0])
    split = [train / 100, validation / 100, (100 - train - validation) / 100]
    parts = split_offsets(characters, split)
    assert parts["test"][1] == characters
    assert parts["train"][1] == characters * Fraction(train, 100) // 1


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([10, 5, 0], "needs 15 characters, but the text has 14"),
        ([0.9, 0.2, 0.1], "sum to at most 1"),
        ([0.9, 0.1], "three parts"),
        ([0, 1, 0], "training first and not empty"),
    ],
)
def test_invalid_splits(split: list[float], message: str) -> None:
    """If this fails, an invalid split is accepted, or refused without a reason."""
    with pytest.raises(RecipeError, match=message):
        split_offsets(14, split)
