"""The help of every command: usage, meaning, examples, and the options in panels.

Typer's own help shows types (``<int range>``) and breaks at 80 columns. This one shows a word for each value, and looks the
same with every release of Typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_WIDTH = 100  # columns at most; longer lines are hard to read
_LEFT = 28  # columns at most for an option and its value
_EXAMPLES = "Examples:\n"


class Command(TyperCommand):
    """A command. A paragraph of its docstring that begins with ``Examples:`` has a command line per line."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _print_help(self, ctx)


class Group(TyperGroup):
    """A command that has commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _print_help(self, ctx)


class App(typer.Typer):
    """A group of commands with this help."""

    def __init__(self, *, cls: type[TyperGroup] = Group, no_args_is_help: bool = True, **settings: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=no_args_is_help, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a command."""
        return super().command(name, **({"cls": Command} | settings))


def examples(command: Any) -> list[str]:
    """The command lines that a command's help shows."""
    return _parts(command.help)[1]


def _parts(text: str | None) -> tuple[str, list[str]]:
    """A docstring's description and its examples."""
    description, _, shown = inspect.cleandoc(text or "").partition(_EXAMPLES)
    paragraphs = description.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs), [line.strip() for line in shown.splitlines()]


def _print_help(command: Any, ctx: Any) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH)
    parameters = [parameter for parameter in command.get_params(ctx) if not getattr(parameter, "hidden", False)]
    arguments = [(_argument(parameter), _help(parameter)) for parameter in parameters if _is_argument(parameter)]
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        if not _is_argument(parameter):
            panel = getattr(parameter, "rich_help_panel", None) or ""
            panels.setdefault(panel, []).append((_option(parameter), _help(parameter)))
    others = panels.pop("", [])
    names = [_argument(p) if p.required else f"[{_argument(p)}]" for p in parameters if _is_argument(p)]
    commands = [
        (name, _first_sentence(one)) for name, one in getattr(command, "commands", {}).items() if not one.hidden
    ]  # fmt: skip
    rows = {
        "Arguments": arguments, "Commands": commands, **panels,
        ("Other options" if panels else "Options"): others,
    }  # fmt: skip
    description, lines = _parts(command.help)
    usage = " ".join([ctx.command_path, "[OPTIONS]", *names, *["COMMAND ..."] * bool(commands)])
    console.print(Padding(Text.assemble(("Usage: ", "bold"), usage), (1, 1)))
    console.print(Padding(description, (0, 1, 1, 1)), markup=False)
    if lines:
        _print_panel(console, "Examples", [(line,) for line in lines])
    width = min(_LEFT, max(len(row[0]) for shown in rows.values() for row in shown))
    for title, shown in rows.items():
        if shown:
            _print_panel(console, title, shown, width)


def _print_panel(console: Any, title: str, rows: Iterable[tuple[str, ...]], width: int | None = None) -> None:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=width, style="bold cyan" if width else "", overflow="fold")
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    """``-o, --output FILE``; the value is named by the last word of the option's name unless it has a metavar."""
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.is_flag:
        return names
    return f"{names} {parameter.metavar or parameter.opts[0].rpartition('-')[2].upper()}"


def _help(parameter: Any) -> str:
    """The meaning of an argument or option, and its default."""
    shown, default = parameter.show_default, parameter.default
    if not isinstance(shown, str):
        default = default.value if isinstance(default, Enum) else default
        shown = "" if isinstance(default, bool) or default in (None, "", (), []) or parameter.required else str(default)
    return f"{parameter.help or ''}{f' [default: {shown}]' if shown else ''}".strip()


def _first_sentence(command: Any) -> str:
    return _parts(command.help)[0].split("\n\n")[0]
