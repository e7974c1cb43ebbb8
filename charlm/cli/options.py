"""Options that several commands share."""

from enum import StrEnum

from charlm.errors import UsageError


class Unknown(StrEnum):
    """What happens to characters outside a model's vocabulary."""

    error = "error"
    skip = "skip"
    map = "map"


class Precision(StrEnum):
    """The operands of matrix products."""

    fp32 = "fp32"
    bf16 = "bf16"


class Split(StrEnum):
    """The parts of a corpus."""

    train = "train"
    validation = "validation"
    test = "test"


class ResumeChoice(StrEnum):
    """Values of ``--resume``."""

    never = "never"
    auto = "auto"
    must = "must"


def parse_limit(max_time: str | None) -> float | None:
    """``--max-time`` in seconds.

    Raises:
        UsageError: it is no duration, or none at all.
    """
    from charlm.config import parse_duration

    if max_time is None:
        return None
    try:
        seconds = float(parse_duration(max_time))  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"--max-time: {error}") from None
    if seconds == 0:
        raise UsageError("--max-time: expected more than no time at all, such as 90s")
    return seconds
