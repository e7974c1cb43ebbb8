"""The help of every command: readable at 80 columns, with examples that are true."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from charlm.cli.app import app
from charlm.cli.help import examples
from charlm.config import apply_overrides, field_names
from charlm.resources import shipped_files


def _walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands and groups, with the words that call them."""
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from _walk(one, (*path, name))


ROOT = typer.main.get_command(app)
COMMANDS = dict(_walk(ROOT))
QUESTIONS = {path: one for path, one in COMMANDS.items() if not hasattr(one, "commands")}
GROUPED = ["train", "sample", "compare", "tune", "eval perplexity"]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_and_has_no_types(
    charlm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], columns: int
) -> None:
    """Failing would mean that help wraps in a common terminal, or shows types such as ``<int range>``."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = charlm(*path, "--help")
    assert shown.code == 0
    assert max(map(len, shown.text.splitlines())) <= columns
    assert not re.search(r"<(bool|str|int|float|list|path|choice)|range|\[0<=|INTEGER|BOOLEAN|\{\w+\}", shown.text)
    assert f"Usage: {' '.join(('charlm', *path))}" in shown.text


@pytest.mark.parametrize("path", QUESTIONS, ids=" ".join)
def test_every_command_has_examples_that_are_accepted(path: tuple[str, ...]) -> None:
    """Failing would mean that a command has no example, or that its help shows a command line that charlm refuses."""
    command = QUESTIONS[path]
    lines = examples(command)
    assert 1 <= len(lines) <= 3
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])
        assert tuple(words[: len(path) + 1]) == ("charlm", *path)
        assert len(line) <= 76, "it would wrap at 80 columns"
        parameters = command.make_context(path[-1], words[len(path) + 1 :]).params
        overrides = [*(parameters.get("set_") or []), *(text.partition(",")[0] for text in parameters.get("vary") or [])]
        apply_overrides({}, overrides)
        given = parameters.get("recipe") or parameters.get("recipes") or []
        for recipe in [given] if isinstance(given, str) else given:
            assert "." in recipe or recipe in shipped_files("configs"), f"there is no recipe {recipe}"
        if parameters.get("prefix"):
            assert any(key.startswith(parameters["prefix"]) for key in field_names())


@pytest.mark.parametrize("name", GROUPED)
def test_long_helps_are_in_groups(charlm: Callable[..., Any], name: str) -> None:
    """Failing would mean that a user reads fifteen options in a row to find one."""
    titles = re.findall(r"^╭─ (.+?) ─", charlm(*name.split(), "--help").text, re.MULTILINE)
    assert titles[:2] == ["Examples", "Arguments"]
    assert len(titles) >= 5 and titles[-1] == "Other options"
