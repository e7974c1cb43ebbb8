"""YAML 1.2 of recipes and cards: scalars, errors, limits, and the round trip."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.errors import RecipeError
from charlm.yaml_text import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-3", 0.001),
        ("2E4", 20000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-0.25", -0.25),
        (".inf", math.inf),
        ("12", 12),
        ("+12", 12),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-31", "2024-01-31"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("'12'", "12"),
        ('"a\\nb"', "a\nb"),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, value: object) -> None:
    """If this fails, a value has the wrong type: lr 1e-3 becomes a string, the prompt `no` a boolean."""
    found = parse_yaml(f"key: {scalar}", "here")["key"]
    assert (found, type(found)) == (value, type(value))


def test_a_doubled_key_is_an_error_with_its_line() -> None:
    """If this fails, one of two values of the same key silently wins."""
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 4, column 3: the key 'lr' is given twice"):
        parse_yaml("corpus: a\ntrain:\n  lr: 1\n  lr: 2\n", "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"here, line \d+, column \d+"),
        ("a: b: c", r"here, line 1, column \d+"),
        ("1: x", "expected a word as key, found 1"),
        ("a: \x07", "here: not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    """If this fails, a typing error in a recipe ends in a traceback, or code in a recipe runs."""
    with pytest.raises(RecipeError, match=message):
        parse_yaml(text, "here")


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(_values)
def test_what_is_dumped_is_parsed_back_unchanged(value: object) -> None:
    """If this fails, a run's config.yaml does not repeat the run."""
    assert parse_yaml(dump_yaml(value), "dumped") == value


@pytest.mark.parametrize("text", ["no", "1e-3", "12:30", "null", "", "0x10", " a ", "a: b", "# c", "\n", "ﬁ\u2028\x85é"])
def test_awkward_strings_survive_a_round_trip(text: str) -> None:
    """If this fails, a prompt comes back from config.yaml as a number, a boolean or nothing."""
    found = parse_yaml(dump_yaml({"prompt": text}), "dumped")["prompt"]
    assert found == text
    assert isinstance(found, str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcde", "bcdef", strict=True)),
         "line 3, column 12: more than 10 aliases"),
        ("a: &a [*a]", "recursive"),
        ("&a [*a]", "recursive"),
        ("[" * 3000, "column 51: nested more than 50 levels"),
        ("a: " + "9" * 5000, "line 1, column 4: a number of 5,000 digits"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 digits"),
        ("a: !!int abc", "line 1, column 4: expected an integer, found 'abc'"),
        ("a: !!float abc", "expected a number, found 'abc'"),
        ("a: !!bool abc", "expected true or false, found 'abc'"),
        ("a: !!timestamp 2024-99-99", "could not determine a constructor"),
        ("a: !!binary x", "could not determine a constructor"),
        ("!!map [1]", "expected a mapping"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ('a: "\\U00110000"', "line 1, column 7: not YAML"),
        ('a: "\\UFFFFFFFF"', "line 1, column 7: not YAML"),
        ("%YAML " + "9" * 5000 + ".1\n--- a", "not YAML"),
        ("x" * 1_000_001, "too long for a recipe"),
    ],
    ids=range(17),
)  # fmt: skip
def test_hostile_yaml_is_refused_at_once(text: str, message: str) -> None:
    """If this fails, a small file takes minutes or gigabytes, or ends in a traceback."""
    with pytest.raises(RecipeError, match=message):
        parse_yaml(text, "here")


def test_a_few_aliases_are_fine() -> None:
    """If this fails, the limits refuse recipes that people write."""
    assert parse_yaml("a: &x 3\nb: *x\nc: [*x, *x]\n", "here") == {"a": 3, "b": 3, "c": [3, 3]}
