"""Paths that a user typed, and how they differ from bare names."""

from __future__ import annotations

from pathlib import Path

from charlm.config.values import shown
from charlm.errors import UsageError


def is_path(name: str) -> bool:
    """Tell a path (contains ``/`` or a suffix) from the bare name of something shipped."""
    return "/" in name or "\\" in name or Path(name).suffix != "" or name.startswith((".", "~"))


def path_of(text: str) -> Path:
    """The path that a user typed, with ``~`` and ``~user`` expanded.

    Raises:
        UsageError: it is empty, contains a NUL character, or names a user who does not exist.
    """
    if not text or "\0" in text:
        raise UsageError(f"expected a path, found {shown(text)}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: this user has no known home folder; write the full path") from None
