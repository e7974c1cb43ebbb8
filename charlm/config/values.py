"""Building blocks of the recipe's sections: the strict base class, value types, bounds and their checks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import CoreSchema, core_schema

from charlm.errors import UsageError

FIXED: dict[str, Any] = {"on_resume": "fixed"}
"""Marks a field that must keep its value when a run is resumed; see :mod:`charlm.config.changes`."""

# Upper bounds far beyond any sensible value, so that a typing error is refused instead of starting an endless run.
MAX_STEPS = 10**12
MAX_CHARACTERS_READ = 10**12
MAX_SECONDS = 1e9
MAX_TEMPERATURE = 1e9
MAX_SEED = 2**63 - 1
MAX_THREADS = 4096
MAX_WIDTH = 1_000_000
MAX_LAYERS = 1000

_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(s|m|h)?\s*$")


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are strictly typed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class OneOf:
    """The allowed values of a text field, read from a table. A ``Literal`` would need them in the source."""

    values: tuple[str, ...]

    def __get_pydantic_core_schema__(self, _source: object, _handler: object) -> CoreSchema:
        return core_schema.literal_schema(list(self.values))


def shown(value: object) -> str:
    """A value in an error message: as JSON, at most 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list that contains itself
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def parse_duration(value: object) -> object:
    """Convert ``90``, ``90s``, ``5m`` or ``1.5h`` to seconds. Values that are not text are returned unchanged.

    Raises:
        ValueError: text that is not a duration.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.match(value)
    if not match:
        raise ValueError(f"expected a duration such as 90s, 5m or 1h, found {value!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def time_limit(given: float | str | None, parameter: str = "max_time") -> float | None:
    """Convert a time limit to seconds; it is a number of seconds or a duration such as ``5m``.

    Args:
        parameter: the argument that gives it.

    Raises:
        UsageError: not a duration, zero, or longer than :data:`MAX_SECONDS`.
    """
    if given is None:
        return None
    try:
        seconds = float(parse_duration(given))  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"{given}: {error}", parameter=parameter) from None
    if seconds == 0:
        raise UsageError(f"{given}: expected more than zero, such as 90s", parameter=parameter)
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"{given}: expected at most {MAX_SECONDS:,.0f} seconds", parameter=parameter)
    return seconds


def check_temperature(temperature: float) -> float:
    """Refuse a temperature outside 0 (greedy) and the range in which division by it is safe.

    Raises:
        ValueError: neither 0 nor in the range.
    """
    if temperature == 0 or 1e-6 <= temperature <= MAX_TEMPERATURE:  # false for NaN
        return temperature
    raise ValueError(f"expected 0, or 1e-06 to {MAX_TEMPERATURE:g}, found {temperature:g}")


def check_split(split: Sequence[float]) -> None:
    """Refuse a split that is neither three fractions (sum at most 1) nor three counts.

    Raises:
        ValueError: says what was expected.
    """
    if len(split) != 3 or any(part < 0 for part in split) or split[0] <= 0:
        raise ValueError("expected three parts, training first and not empty: [0.9, 0.05, 0.05] or [10000, 5000, 0]")
    whole = all(float(part).is_integer() for part in split)
    if not whole and sum(split) > 1 + 1e-9:
        raise ValueError(f"fractions must sum to at most 1, these sum to {sum(split):g}")


def _path_text(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"expected a name or a path, found {shown(text)}")
    return text


Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS), BeforeValidator(parse_duration)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
PathText = Annotated[str, AfterValidator(_path_text)]
