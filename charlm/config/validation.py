"""Plain values → a validated recipe. All problems are reported at once, each with its origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from charlm.config.names import SECTIONS, field_names, fields
from charlm.config.overrides import PARAMETER
from charlm.config.recipe import Recipe
from charlm.config.renames import RENAMED
from charlm.config.suggestions import did_you_mean, suggestions
from charlm.config.values import shown
from charlm.errors import RecipeError


@dataclass(frozen=True)
class _Problem:
    key: str
    text: str


def validate_recipe(raw: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """Turn plain values into a :class:`Recipe`.

    Args:
        raw: section → key → value.
        origin: the source of the values, such as a file name.
        overrides: ``KEY=VALUE`` texts that were applied to ``raw``; a problem with one of their keys is reported as theirs.

    Raises:
        RecipeError: all problems, each with its origin.
    """
    # An empty section (`model:` with all its keys commented out) is null in YAML and means its defaults.
    raw = {key: value for key, value in raw.items() if not (value is None and key in SECTIONS)}
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        found = [_problem(details) for details in error.errors(include_url=False)]
    problems = list({problem.key: problem for problem in reversed(found)}.values())[::-1]  # a union reports each branch
    by_key = {override.partition("=")[0].strip(): override for override in overrides}
    of_overrides: dict[str, list[_Problem]] = {}
    of_file: dict[str, list[_Problem]] = {}
    for problem in problems:
        own = [override for key, override in by_key.items() if problem.key == key or problem.key.startswith(f"{key}.")]
        if own:
            of_overrides.setdefault(own[-1], []).append(problem)
        else:  # values of a section can contradict an override
            involved = " and ".join(override for key, override in by_key.items() if key.startswith(f"{problem.key}."))
            of_file.setdefault(f"{origin} with {involved}" if involved else origin, []).append(problem)
    lines = _report(", ".join(of_overrides), [problem for group in of_overrides.values() for problem in group])
    for blamed, group in of_file.items():
        lines += _report(blamed, group)
    raise RecipeError("\n".join(lines), parameter=PARAMETER if of_overrides else "")


def _report(blamed: str, problems: Sequence[_Problem]) -> list[str]:
    """The lines about one origin; none without problems."""
    if not problems:
        return []
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return [f"{blamed}: {count}", *(f"  {problem.key}: {problem.text}" for problem in problems)]


def _problem(details: Any) -> _Problem:
    """One of pydantic's errors, in charlm's words."""
    place = [str(part) for part in details["loc"]]
    key = ".".join(part for part in place if not part.startswith(("list[", "SplitFiles"))) or "recipe"
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        if key in RENAMED:
            return _Problem(key, f"this key is now called {RENAMED[key]}")
        return _Problem(key, f"unknown key{did_you_mean(suggestions(key, [*field_names(), *SECTIONS]))}")
    if kind == "missing":
        return _Problem(key, f"missing; {dict(fields())[key].description}")
    message = str(details["msg"]).removeprefix("Value error, ")
    if kind != "value_error":
        message = f"{message[:1].lower()}{message[1:]}, found {shown(found)}"
    return _Problem(key, message)
