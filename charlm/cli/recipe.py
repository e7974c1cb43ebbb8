"""``charlm recipe``: the shipped recipes and their schema."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from charlm.cells import entry_of
from charlm.cli.console import out, table

recipe_app = typer.Typer(help="List, show and describe recipes.", no_args_is_help=True)


@recipe_app.command("list")
def list_() -> None:
    """List the shipped recipes with the result that each one reached."""
    from charlm.config import load_recipe
    from charlm.resources import shipped_files

    rows = []
    for name in shipped_files("configs"):
        recipe = load_recipe(name).recipe
        model, reported = recipe.model, recipe.reported
        result = f"{reported.metric.replace('_', ' ')} {reported.value:g}" if reported else ""
        rows.append((name, recipe.corpus, f"{model.layers} × {entry_of(model).label} {model.hidden}", result))
    table(None, ["recipe", "corpus", "model", "reached"], rows)


@recipe_app.command()
def show(name: Annotated[str, typer.Argument(help="A shipped recipe's name.")]) -> None:
    """Print a recipe, comments and all: the start of your own.

    What it reached is left out, since yours is another one; the schema is named by its full path.
    """
    from charlm.config import find_recipe

    out(as_start_of_another(find_recipe(name).read_text(encoding="utf-8")).rstrip("\n"))


def as_start_of_another(text: str) -> str:
    """A shipped recipe's text for a copy anywhere on this machine, and without what its author reached."""
    from charlm.resources import shipped_folder

    schema = (shipped_folder("configs") / "recipe.schema.json").as_uri()
    text = text.replace("$schema=recipe.schema.json", f"$schema={schema}", 1)
    reached = re.compile(r"^reported:.*\n(?:[ \t#].*\n|\n)*", re.MULTILINE)
    return reached.sub("# `charlm recipe list` shows what the shipped recipe reached.\n", text)


@recipe_app.command()
def keys() -> None:
    """List every key of a recipe: its default, whether it is fixed once a run has begun, and what it means."""
    from charlm.config import FIXED, fields, one_line

    rows = []
    for key, info in fields():
        default = "required" if info.is_required() else json.dumps(info.get_default(call_default_factory=True), default=str)
        on_resume = "fixed" if info.json_schema_extra == FIXED else ""
        rows.append((key, "" if default == "null" else default, on_resume, one_line(info)))
    table(None, ["key", "default", "on resume", "meaning"], rows)


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML."""
    from charlm.config import json_schema

    out(json.dumps(json_schema(), indent=2, ensure_ascii=False))
