"""Paths and bare names."""

from __future__ import annotations

from pathlib import Path

import pytest

from charlm.config import is_path, path_of
from charlm.errors import UsageError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shakespeare", False),
        ("my-text", False),
        ("mine.txt", True),
        ("./mine", True),
        ("a/b", True),
        ("..", True),
        ("~", True),
    ],
)
def test_paths_are_told_from_bare_names(name: str, expected: bool) -> None:
    """If this fails, a file is looked for among the shipped names, or a shipped name among the files."""
    assert is_path(name) is expected


@pytest.mark.parametrize(
    ("text", "message"), [("", "expected a path"), ("a\0", "expected a path"), ("~nobody-x/a", "nobody-x")]
)
def test_impossible_paths_are_refused(text: str, message: str) -> None:
    """If this fails, a wrong path ends in a traceback, or names the current folder."""
    with pytest.raises(UsageError, match=message):
        path_of(text)


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If this fails, a run is written to a folder whose name is `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/a") == tmp_path / "a"
