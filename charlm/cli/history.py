"""The lines that a user typed into ``charlm write``: private, bounded, kept between sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from charlm.files import make_private_folder, whole_file

MOST_LINES, MOST_CHARACTERS = 1000, 1000
"""Maximum number of lines, and length of a line; longer lines are not kept."""


def recalled(path: Path) -> list[str]:
    """The kept lines, oldest first; none if the file cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(4 * MOST_LINES * (MOST_CHARACTERS + 1)).decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if _is_kept(line)][-MOST_LINES:]


def remember(path: Path, lines: Sequence[str]) -> None:
    """Add lines to the file, which another session may have extended meanwhile. Only this user can read it.

    Raises:
        OSError: it cannot be written.
    """
    new = [line for line in lines if _is_kept(line)]
    if new:
        make_private_folder(path.parent)
        kept = [*recalled(path), *new][-MOST_LINES:]
        with whole_file(path, mode=0o600) as file:
            file.write("".join(f"{line}\n" for line in kept).encode("utf-8", "replace"))


def _is_kept(line: str) -> bool:
    return 0 < len(line) <= MOST_CHARACTERS and "\n" not in line and "\0" not in line
