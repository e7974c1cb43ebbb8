"""Cutting a text into contiguous training, validation and test parts."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

from charlm.config import check_split
from charlm.errors import RecipeError

PARTS = ("train", "validation", "test")
DEFAULT_SPLIT = [0.9, 0.05, 0.05]


def split_offsets(characters: int, split: Sequence[float]) -> dict[str, tuple[int, int]]:
    """Say where each part starts and stops.

    Args:
        characters: N, the length of the text.
        split: three fractions of the text that sum to at most 1, or three counts of characters. Whole numbers are
            counts, unless they sum to at most 1: ``[1, 0, 0]`` is the whole text.

    Returns:
        ``train``, ``validation`` and ``test``, one after the other from 0, each as (start, stop). Of fractions, a part
        stops at ⌊N · (their sum so far) + 1e-9⌋.

    Raises:
        RecipeError: neither fractions nor counts, or counts that go beyond the text.
    """
    try:
        check_split(split)
    except ValueError as error:
        raise RecipeError(f"the split {list(split)}: {error}") from None
    if all(float(part).is_integer() for part in split) and sum(split) > 1:
        stops = [int(stop) for stop in accumulate(split)]
        if stops[-1] > characters:
            raise RecipeError(
                f"the split {list(split)} counts {stops[-1]:,} characters, but the text has {characters:,}; "
                "take smaller counts, or fractions such as [0.9, 0.05, 0.05]"
            )
    else:
        # Summed as the decimals that were written: 0.7 + 0.2 + 0.1 falls short of 1 in binary, and of a text of
        # 1e9 characters the last one would silently be left out.
        sums = accumulate(Fraction(str(part)) for part in split)
        stops = [min(characters, math.floor(characters * total + Fraction(1, 10**9))) for total in sums]
    return dict(zip(PARTS, zip([0, *stops[:-1]], stops, strict=True), strict=True))
