"""Overrides of a recipe's values: ``KEY=VALUE`` texts, typed by the schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from charlm.config.names import SECTIONS, field_names, fields
from charlm.config.renames import RENAMED
from charlm.config.suggestions import did_you_mean, suggestions
from charlm.errors import RecipeError
from charlm.yaml_text import parse_yaml

PARAMETER = "set"
"""The parameter that errors about an override name; the command line shows its flag."""

_ALTERNATIVES = {"train.epochs": "total_steps", "train.total_steps": "epochs"}
"""Keys of which a recipe has at most one."""

_NULL = ("", "~", "null", "Null", "NULL")
"""YAML's forms of null."""


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``raw`` with each ``section.key=value`` set.

    Raises:
        RecipeError: an override without ``=``, with an unknown key, or with a value that is not YAML.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals:
            raise RecipeError(f"{override}: expected KEY=VALUE, such as train.lr=1e-3", parameter=PARAMETER)
        check_key(key, override, parameter=PARAMETER)
        section, _, name = key.rpartition(".")
        other = _ALTERNATIVES.get(key)
        if other and isinstance(result.get(section), dict):
            result[section].pop(other, None)  # an override replaces the alternative in the file
        target = result.setdefault(section, {}) if section else result
        if target is None:
            target = result[section] = {}
        if isinstance(target, dict):  # a wrong type is left for the schema to report
            target[name] = _typed(key, value, override)
    return result


def _typed(key: str, value: str, override: str) -> Any:
    """The value of an override: YAML, but text if the schema expects text (`sample.prompt=1603`, `data.records=|`)."""
    annotation = dict(fields())[key].annotation
    is_optional = annotation == str | None
    try:
        parsed = parse_yaml(value, override)
    except RecipeError as error:
        if is_optional:
            return value
        raise RecipeError(str(error), parameter=PARAMETER) from None
    if is_optional:
        is_null = parsed is None and value.strip(" ") in _NULL
        return parsed if is_null or (isinstance(parsed, str) and parsed) else value
    wants_text = annotation is str or annotation == str | list[str]
    return value if wants_text and not isinstance(parsed, str | list) else parsed


def check_key(key: str, given: str, *, parameter: str = "") -> None:
    """Refuse an unknown key.

    Args:
        key: a dotted name.
        given: the user's text, such as ``model.hiden=64``.
        parameter: the parameter that the text came from.

    Raises:
        RecipeError: names the closest key.
    """
    if key in SECTIONS:
        example = next(name for name in field_names() if name.startswith(f"{key}."))
        raise RecipeError(f"{given}: {key} is a section; set a key of it, such as {example}=…", parameter=parameter)
    if key in RENAMED:
        raise RecipeError(f"{given}: the key {key} is now called {RENAMED[key]}", parameter=parameter)
    known = list(field_names())
    if key not in known:
        raise RecipeError(f"{given}: no key {key!r}{did_you_mean(suggestions(key, known))}", parameter=parameter)
