"""The normalisations against their formulas, for any division of the text into pieces."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.data.normalisation import NORMALISATIONS, normalisation
from charlm.errors import RecipeError

# Few distinct characters: errors occur at runs of spaces and line ends, so these must be frequent.
TEXTS = st.text(alphabet="aB _\n\r,é\U0001f600", max_size=40)
FORMULAS = {
    "none": lambda text: text,
    "d2l-lines": lambda text: "".join(re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in text.split("\n")),
    "d2l-whole": lambda text: re.sub("[^A-Za-z]+", " ", text).lower(),
    "spaced": lambda text: text.translate({ord(" "): None, ord("_"): " "}),
}


def test_every_normalisation_has_a_formula() -> None:
    """If this fails, a normalisation was added without a formula to test it."""
    assert FORMULAS.keys() == NORMALISATIONS.keys()


@pytest.mark.parametrize("name", FORMULAS)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=6))
def test_every_division_gives_the_formula(name: str, text: str, cuts: list[int]) -> None:
    """If this fails, the result differs from d2l's, or depends on block boundaries."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    assert "".join(NORMALISATIONS[name](pieces)) == FORMULAS[name](text)


def test_spaced_characters_become_the_text() -> None:
    """If this fails, a result on the Penn Treebank counts other characters than published results do."""
    text = "<unk> was n't a\nblack monday\n"
    written = "".join(f"{'_' if character == ' ' else character} " for character in text)
    assert written.startswith("< u n k > _ w a s _ n ' t _ a \n b l")
    assert "".join(NORMALISATIONS["spaced"]([written])) == text


def test_pieces_come_out_as_they_go_in() -> None:
    """If this fails, a normalisation collects the text in memory before it yields."""
    for normalise in NORMALISATIONS.values():
        taken = []
        result = normalise(taken.append(number) or "some words\n" for number in range(100))
        next(result)
        assert len(taken) <= 2


def test_a_name_that_does_not_exist() -> None:
    """If this fails, the error for a misspelled normalisation does not list the valid names."""
    with pytest.raises(RecipeError, match="d2l-lines"):
        normalisation("d2l")
