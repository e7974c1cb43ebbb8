"""Options that several commands share."""

from enum import Enum


class Unknown(str, Enum):
    """What happens to characters outside a model's vocabulary."""

    error = "error"
    skip = "skip"
    map = "map"


class Split(str, Enum):
    """The parts of a corpus."""

    train = "train"
    validation = "validation"
    test = "test"
