"""Splits a text into contiguous training, validation and test parts."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from charlm.config import check_split
from charlm.errors import RecipeError

PARTS = ("train", "validation", "test")
DEFAULT_SPLIT = [0.9, 0.05, 0.05]


def split_offsets(characters: int, split: Sequence[float]) -> dict[str, tuple[int, int]]:
    """The boundaries of each part.

    Args:
        characters: N, the length of the text.
        split: three fractions of the text that sum to at most 1, or three numbers of characters. Integers are numbers of
            characters unless they sum to at most 1: ``[1, 0, 0]`` is the whole text.

    Returns:
        ``train``, ``validation`` and ``test``, contiguous from 0, each as (start, stop). With fractions, a part stops at
        ⌊N · (cumulative sum) + 1e-9⌋.

    Raises:
        RecipeError: neither fractions nor numbers of characters, or more characters than the text has.
    """
    try:
        check_split(split)
    except ValueError as error:
        raise RecipeError(f"the split {list(split)}: {error}") from None
    if all(float(part).is_integer() for part in split) and sum(split) > 1:
        stops = [int(stop) for stop in accumulate(split)]
        if stops[-1] > characters:
            raise RecipeError(
                f"the split {list(split)} needs {stops[-1]:,} characters, but the text has {characters:,}; "
                "use smaller numbers, or fractions such as [0.9, 0.05, 0.05]"
            )
    else:
        # Exact decimal sums: 0.7 + 0.2 + 0.1 is less than 1 in binary, which would silently drop the last of 1e9
        # characters.
        sums = accumulate(Fraction(str(part)) for part in split)
        stops = [min(characters, math.floor(characters * total + Fraction(1, 10**9))) for total in sums]
    return dict(zip(PARTS, zip([0, *stops[:-1]], stops, strict=True), strict=True))


def split_records(splits: dict[str, tuple[int, int]], bounds: npt.NDArray[np.int64]) -> dict[str, tuple[int, int]]:
    """Move the boundaries of parts so that no record is cut: the record in which a part stops belongs to that part.

    Each part begins and ends with a separator, so two neighbours share one. A part is empty if no record is left for it.

    Args:
        splits: from :func:`split_offsets`.
        bounds: the places of the separators.
    """
    moved, start = {}, 0
    for part, (first, stop) in splits.items():
        at = max(stop - 1, start + (stop > first))  # a part that is not empty has one record at least, if any is left
        end = int(bounds[min(int(np.searchsorted(bounds, at)), len(bounds) - 1)])
        moved[part] = (start, end + 1) if end > start else (start, start)
        start = end
    return moved
