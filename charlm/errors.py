"""The errors that charlm raises on purpose, and their exit codes.

Library code raises one of these; only ``charlm.cli`` prints them and exits. A message says what was found, what was
expected and what to do. Arguments are named as in Python. The command line shows them as flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Advice = Mapping[str, Mapping[str, object]]
"""What to do → the arguments that do it, such as ``{"resume it": {"resume": "auto"}}``; the arguments may be empty."""


class CharlmError(Exception):
    """An error that charlm can explain. Everything else is a bug and keeps its traceback.

    Args:
        message: what was found and what was expected. With ``parameter``, it begins with the value that was found.
        parameter: the argument that has a wrong value; the text begins with its name.
        advice: what to do; the text ends with it: ``…; resume it (resume='auto') or use another folder (out='DIR')``. After a
            message of several lines it is a line of its own.

    Attributes:
        exit_code: the status of the process: 2 if the command or the recipe is wrong, else 1.
    """

    exit_code = 1

    def __init__(self, message: str, *, parameter: str = "", advice: Advice | None = None) -> None:
        super().__init__(message)
        self.message, self.parameter, self.advice = message, parameter, advice or {}

    def __str__(self) -> str:
        return self.text(lambda name, value: name if value is None else f"{name}={value!r}")

    def text(self, argument: Callable[[str, object], str]) -> str:
        """The whole text.

        Args:
            argument: writes an argument, given its name and value; ``None``: only its name.
        """
        actions = [
            f"{action} ({' '.join(argument(name, value) for name, value in arguments.items())})" if arguments else action
            for action, arguments in self.advice.items()
        ]
        *others, last = actions or [""]
        advice = f"{', '.join(others)}{' or ' if others else ''}{last}"
        if advice:
            advice = f"\n{advice[0].upper()}{advice[1:]}." if "\n" in self.message else f"; {advice}"
        return f"{argument(self.parameter, None)} {self.message}{advice}" if self.parameter else f"{self.message}{advice}"


class UsageError(CharlmError):
    """The caller asks for something impossible: a missing file, two options that exclude each other."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe (YAML configuration) has a wrong key, a wrong value, or values that contradict each other."""


class CorpusError(CharlmError):
    """A text cannot be found or read: not downloadable, not decodable, empty."""


class CheckpointError(CharlmError):
    """A checkpoint cannot be read or does not fit."""


class RunFolderError(CharlmError):
    """A run's folder cannot be used: locked by another process, not writable."""


class DivergedError(CharlmError):
    """Loss, gradient, weights or scores are no longer finite; a run keeps its last good state."""


class WorkerError(CharlmError):
    """A process that trained a run beside others died or was stopped."""
