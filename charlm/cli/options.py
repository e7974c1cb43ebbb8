"""Options that several commands share."""

from enum import StrEnum


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
