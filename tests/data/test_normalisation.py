"""The named normalisations against the formulas they stand for, however the text is cut into pieces."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.normalisation import NORMALISATIONS, normalisation
from charlm.errors import RecipeError

# Few different characters, so that runs of spaces and line ends, which are where it can go wrong, are common.
TEXTS = st.text(alphabet="aB \n\r,é\U0001f600", max_size=40)
FORMULAS = {
    "none": lambda text: text,
    "d2l-lines": lambda text: "".join(re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in text.split("\n")),
    "d2l-whole": lambda text: re.sub("[^A-Za-z]+", " ", text).lower(),
}


def test_every_normalisation_is_held_against_a_formula() -> None:
    """If this fails, a normalisation was added that the property below does not test."""
    assert FORMULAS.keys() == NORMALISATIONS.keys()


@pytest.mark.parametrize("name", FORMULAS)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=6))
def test_any_cutting_gives_what_the_formula_gives(name: str, text: str, cuts: list[int]) -> None:
    """If this fails, a text is normalised otherwise than d2l does, or otherwise at the border of two blocks."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    assert "".join(NORMALISATIONS[name](pieces)) == FORMULAS[name](text)


def test_pieces_come_out_as_they_go_in() -> None:
    """If this fails, a normalisation collects the text in memory before it yields."""
    for normalise in NORMALISATIONS.values():
        taken = []
        result = normalise(taken.append(number) or "some words\n" for number in range(100))
        next(result)
        assert len(taken) <= 2


def test_a_name_that_does_not_exist() -> None:
    """If this fails, a misspelled normalisation is not refused with the names there are."""
    with pytest.raises(RecipeError, match="d2l-lines"):
        normalisation("d2l")
