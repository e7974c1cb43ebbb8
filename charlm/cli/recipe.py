"""``charlm recipe``: the shipped recipes and their schema."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import asdict
from itertools import takewhile
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import completion
from charlm.cli.console import out, size
from charlm.cli.help import App
from charlm.files import to_json

if TYPE_CHECKING:
    from pathlib import Path

    from charlm.config.keys import Key
    from charlm.data.cards import Card

recipe_app = App(help="Shipped recipes, and the keys of a recipe.")


@recipe_app.command("list")
def list_() -> None:
    """List the shipped recipes: minutes, size of the text, result, description.

    Examples:
        charlm recipe list
    """
    from charlm.config import load_recipe
    from charlm.data.cards import cards
    from charlm.resources import shipped_files

    known, files = cards(), shipped_files("configs")
    width = max(map(len, files))
    columns = min(get_terminal_size().columns, 100)
    out(f"{'recipe':<{width}}  minutes     text  result")
    for name, path in files.items():
        recipe = load_recipe(name).recipe
        reported = recipe.reported
        minutes = "" if reported is None or reported.minutes is None else _minutes(reported.minutes)
        result = f"{_metric(reported.metric)} {reported.value:g}" if reported else "not measured yet"
        out(f"{name:<{width}}  {minutes:>7}  {_text_size(known[recipe.corpus]):>7}  {result}")
        out(_filled("    ", _description(path), 4, columns))
    out("\nminutes: of the whole run, on two cores")


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}" if minutes >= 0.1 else "< 0.1"


def _metric(metric: str) -> str:
    return metric.removesuffix("_per_character").replace("_", " ")


def _text_size(card: Card) -> str:
    """The size of a card's text; a text of this machine has none before it is read."""
    count = card.bytes if card.text is None else len(card.text.encode())
    return "–" if count is None else size(count)


def _description(path: Path) -> str:
    """The first sentence of a recipe's first comment."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    comment = " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=\.) ", comment, maxsplit=1)[0]


@recipe_app.command()
def show(name: Annotated[str, typer.Argument(autocompletion=completion.recipes, help="A shipped recipe's name.")]) -> None:
    """Print a shipped recipe with its comments, as a start for your own.

    The reported result is left out. The schema is given by its full path.

    Examples:
        charlm recipe show shakespeare > mine.yaml
    """
    from charlm.config import find_recipe

    out(_as_template(find_recipe(name).read_text(encoding="utf-8")).rstrip("\n"))


def _as_template(text: str) -> str:
    """A shipped recipe's text without its result, with a schema address that is valid in any folder of this machine."""
    from charlm.resources import shipped_folder

    schema = (shipped_folder("configs") / "recipe.schema.json").as_uri()
    text = text.replace("$schema=recipe.schema.json", f"$schema={schema}", 1)
    reported = re.compile(r"^reported:.*\n(?:[ \t#].*\n|\n)*", re.MULTILINE)
    return reported.sub("# `charlm recipe list` shows the result of the shipped recipe.\n", text)


@recipe_app.command()
def keys(
    prefix: Annotated[
        str,
        typer.Argument(
            autocompletion=completion.keys, help="Only this section (train) or key (train.lr).", show_default="all keys"
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line: a list with an object for each key.")] = False,
) -> None:
    """List the keys of a recipe: meaning, allowed values, default.

    Examples:
        charlm recipe keys
        charlm recipe keys train.lr
        charlm recipe keys model --json
    """
    from charlm.config import list_keys

    found = list_keys(prefix)
    if as_json:
        out(to_json([asdict(key) for key in found]))
        return
    width = max(len(key.key) for key in found) + 2
    columns = max(width + 30, min(get_terminal_size().columns, 100))
    for key in found:
        out(_filled(key.key.ljust(width), key.help.partition(_UNSET)[0], width, columns))
        out(_filled(" " * width, _facts(key), width, columns))
    legend = [_PLANNED] * any(key.planned for key in found) + [_FIXED] * any(key.fixed for key in found)
    for number, text in enumerate(legend):
        out("\n" * (number == 0) + _filled("", text, 9, columns))


_UNSET = " Unset: "
_PLANNED = (
    "planned: if the recipe gives no length (train.epochs or train.total_steps), charlm chooses this value from the length of "
    "the text."
)
_FIXED = "fixed:   cannot change when a run is resumed."


def _filled(start: str, text: str, indent: int, columns: int) -> str:
    """A paragraph of this width; its first line begins with ``start``, the others with ``indent`` spaces."""
    return textwrap.fill(
        text, columns, initial_indent=start, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def _facts(key: Key) -> str:
    """Allowed values, default, and whether a resumed run can change it, such as ``integer, 1 to 1000; default: 1; fixed``."""
    allowed = " | ".join(key.allowed) if key.allowed else "true | false" if key.type == "boolean" else key.type + _bounds(key)
    section, unset = key.key.rpartition(".")[0], key.help.partition(_UNSET)[2].rstrip(".")
    if key.required:
        default = f"required in {section}" if section else "required"
    else:
        default = f"default: {unset or _plain(key.default) + ' (planned)' * key.planned}"
    return "; ".join([allowed, default, *["fixed"] * key.fixed])


def _bounds(key: Key) -> str:
    if key.minimum is None or key.maximum is None:
        return ""
    above, below = "above " * key.exclusive_minimum, "below " * key.exclusive_maximum
    return f", {above}{_plain(key.minimum)} to {below}{_plain(key.maximum)}"


def _plain(value: Any) -> str:
    """A value as in YAML, but numbers with separators, and large and small round ones as powers of ten (``1e9``)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    power = re.sub(r"e\+?(-?)0*(\d)", r"e\1\2", f"{value:.0e}")
    if float(power) == value and (value >= 1e9 or 0 < value <= 1e-6):
        return power
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML.

    Examples:
        charlm recipe schema > recipe.schema.json
    """
    from charlm.config import json_schema

    out(json.dumps(json_schema(), indent=2, ensure_ascii=False))
