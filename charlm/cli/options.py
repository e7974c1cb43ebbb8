"""Options that several commands share."""

from enum import StrEnum


class Unknown(StrEnum):
    """What happens to characters outside a model's vocabulary."""

    error = "error"
    skip = "skip"
    map = "map"


class Split(StrEnum):
    """The parts of a corpus."""

    train = "train"
    validation = "validation"
    test = "test"
