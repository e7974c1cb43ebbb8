"""Features of a text: the rules do what their descriptions say, in prose, code and LaTeX."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.evaluation.features import Syntax, bracket_events, environments, features, quotations


def marked(text: str, name: str) -> str:
    """The characters of a text that have a feature, without spaces and line ends."""
    values = {feature.name: feature.values for feature in features(text)}[name]
    return "".join("".join(character for character, value in zip(text, values, strict=True) if value).split())


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("inside double quotes", 'a "b c" d', '"bc'),
        ("inside double quotes", "a “b” c", "“b"),
        ("inside double quotes", r'a "b\" c" d', r'"b\"c'),
        ("inside double quotes", 'a "b\n\nc "d" e', '"b"d'),
        ("inside double quotes", r"\begin{a}``b'' c\end{a}", "`b'"),
        ("inside single quotes", "he said, 'I don't,' and 'go'", "'Idon't,'go"),
        ("inside ( )", "a (b (c) d) e", "(b(c)d"),
        ("inside { }", "f {\n\n g} h)", "{g"),
        ("inside ( )", ":( x\n\n(y) z", "(x(y"),
        ("start of a word", "it's so", "iss"),
        ("inside a word", "it's so", "itsso"),
        ("upper case", "aBc D", "BD"),
        ("digits", "a12 b3", "123"),
        ("inside a comment", "# a\n# b\n# c\nx = '# no'  # d\n", "#a#b#c#d"),
        ("inside a comment", "a /* b\nc */ d # e", "/*bc*/"),
        ("inside a comment", "%a\n%b\n%c\n50\\% \\begin{x}\\end{x} %d", "%a%b%c%d"),
        ("inside math", r"\begin{a}x $y$ \$5 \(z\) $$w$$\end{a}", r"$y(z\$w$"),
        ("inside math", r"\begin{align*}x\end{align*} y", r"}x\end{align*"),
        ("inside an environment", r"o \begin{a}x\end{a} o", r"}x\end{a"),
    ],
)
def test_a_rule_finds_what_it_should(name: str, text: str, expected: str) -> None:
    """If this fails, a unit is said to track something that the text does not have there."""
    assert marked(text, name) == expected


def test_numbers_count_from_the_start_of_the_line() -> None:
    """If this fails, positions, indentation or depth are those of another line or bracket."""
    values = {feature.name: feature.values.tolist() for feature in features("ab\n  c(d[e])\n")}
    assert values["characters since the newline"] == [1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert values["indentation"] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0]
    assert values["bracket depth"] == [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 1, 0, 0]
    assert values["position in the line"][:3] == [1 / 3, 2 / 3, 0]


def test_places_of_closing_symbols_and_their_openings() -> None:
    """If this fails, distances between an opening and its closing symbol are wrong."""
    assert list(bracket_events("(a[b)]")) == [(0, "(", -1), (2, "[", -1), (4, ")", -1), (5, "]", 2)]
    assert list(bracket_events("(a[b])")) == [(0, "(", -1), (2, "[", -1), (4, "]", 2), (5, ")", 0)]
    text = r"\begin{ab}x\begin{c*}y\end{c*}\end{ab}"
    assert [(name, text[start:stop]) for name, start, stop, _ in environments(text)] == [
        ("c*", r"y\end{"),
        ("ab", r"x\begin{c*}y\end{c*}\end{"),
    ]
    assert quotations('say "no", "yes', Syntax("", False, False)) == [("double", 4, 7)]


@given(st.text(alphabet="ab \n\t\\\"'`()[]{}#%$*/1“é😀", max_size=60))
def test_any_text_has_every_feature_at_every_character(text: str) -> None:
    """If this fails, some text ends in a traceback or in features of another length."""
    for syntax in (None, Syntax("%", True, True)):
        for feature in features(text, syntax):
            assert feature.values.shape == (len(text),)
            assert feature.is_binary or (np.isfinite(feature.values).all() and feature.values.min(initial=0) >= 0)
