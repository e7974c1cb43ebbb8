"""What can go wrong, as types.

Library code raises one of these; only ``charlm.cli`` prints them and exits. A message says what was found, what was
expected and what to do. ``exit_code`` is the process's status: 2 where the command or the recipe is wrong, 1 otherwise.
"""


class CharlmError(Exception):
    """Anything charlm can explain. Everything else is a bug and keeps its traceback."""

    exit_code = 1


class UsageError(CharlmError):
    """The caller asks for something that cannot be: a missing file, two options that exclude each other.

    Args:
        message: if ``parameter`` is given, it begins with the value that was found.
        parameter: which one has a wrong value; the text of the error begins with its name. The command line shows the
            flag instead.
    """

    exit_code = 2

    def __init__(self, message: str, *, parameter: str = "") -> None:
        super().__init__(f"{parameter} {message}" if parameter else message)
        self.parameter = parameter


class RecipeError(UsageError):
    """A recipe (YAML configuration) has a wrong key, a wrong value, or values that contradict each other."""


class CorpusError(CharlmError):
    """A text cannot be had or read: not downloadable, not decodable, empty."""


class CheckpointError(CharlmError):
    """A checkpoint cannot be read or does not fit."""


class RunFolderError(CharlmError):
    """A run's folder cannot be used: locked by another process, not writable."""


class DivergedError(CharlmError):
    """Loss, gradient, weights or scores stopped being finite; a run keeps its last good state."""
