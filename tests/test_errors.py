"""The text of an error: arguments in Python's form, or as flags."""

from __future__ import annotations

import pickle

import pytest

from charlm.cli.app import _flag
from charlm.errors import CharlmError, UsageError

ADVICE = {"resume it": {"resume": "auto"}, "start a new run": {"overwrite": True, "init": "a b"}, "wait": {}}


@pytest.mark.parametrize(
    ("error", "python", "command"),
    [
        (CharlmError("found x"), "found x", "found x"),
        (UsageError("5: expected 4", parameter="top_k"), "top_k 5: expected 4", "--top-k 5: expected 4"),
        (CharlmError("found:\n  x", advice={"wait": {}}), "found:\n  x\nWait.", "found:\n  x\nWait."),
        (CharlmError("found x", advice={"wait": {}}), "found x; wait", "found x; wait"),
        (
            CharlmError("found x", advice=ADVICE),
            "found x; resume it (resume='auto'), start a new run (overwrite=True init='a b') or wait",
            "found x; resume it (--resume auto), start a new run (--overwrite --init 'a b') or wait",
        ),
    ],
)
def test_arguments_are_named_as_the_caller_writes_them(error: CharlmError, python: str, command: str) -> None:
    """If this fails, a Python user is told to use flags, or a command-line user to use keyword arguments."""
    assert str(error) == python == str(pickle.loads(pickle.dumps(error)))
    assert error.text(_flag) == command
