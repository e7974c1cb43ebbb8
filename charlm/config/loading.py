"""Finds and reads recipes: shipped ones by name, YAML files by path, and the default recipe of a text."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from charlm.config.overrides import apply_overrides
from charlm.config.paths import is_path, path_of
from charlm.config.recipe import Recipe
from charlm.config.renames import with_present_names
from charlm.config.validation import validate_recipe
from charlm.config.values import shown
from charlm.errors import RecipeError
from charlm.resources import shipped_files
from charlm.run_files import CONFIG, LAST
from charlm.yaml_text import MAX_CHARACTERS, parse_yaml

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class LoadedRecipe:
    """A validated recipe, the name of its run, and the folder that its relative paths start from.

    Attributes:
        of_text: whether the user named a text, and this is the default recipe for it.
    """

    name: str
    recipe: Recipe
    folder: Path
    of_text: bool = False


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, stored: bool = False) -> LoadedRecipe:
    """Read a recipe and apply ``KEY=VALUE`` overrides.

    Args:
        name_or_path: the bare name of a shipped recipe, the path of a YAML file, or a text: the path of any other file, of a
            folder, or a glob.
        overrides: ``section.key=value``; the value is read as YAML and typed by the schema.
        stored: whether it is a run's own ``config.yaml``, which an earlier version may have written.

    Raises:
        RecipeError: no such recipe or text, not YAML, or wrong keys and values: all of them, in one message.
    """
    if _is_text(name_or_path):
        if (path_of(name_or_path) / LAST).exists():
            config = Path(name_or_path) / CONFIG
            raise RecipeError(
                f"{name_or_path} is a run's folder, not a text; its recipe is {config}",
                advice={"to resume the run, train that recipe": {"out": name_or_path, "resume": "auto"}},
            )
        recipe = validate_recipe(apply_overrides({"corpus": name_or_path}, overrides), f"the text {name_or_path}", overrides)
        return LoadedRecipe(recipe_name(name_or_path), recipe, Path.cwd(), of_text=True)
    path = find_recipe(name_or_path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)  # one more than parse_yaml accepts
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a recipe: byte {error.start} is not UTF-8 text") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a recipe: expected keys such as `corpus: FILE`, found {_kind(raw)}")
    raw = with_present_names(raw) if stored else raw
    recipe = validate_recipe(apply_overrides(raw, overrides), str(path), overrides)
    return LoadedRecipe(name=path.stem, recipe=recipe, folder=path.resolve().parent)


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else shown(value)


def _is_text(name_or_path: str) -> bool:
    """Whether a path names a text to train on: a folder, a glob, or a file that is not YAML."""
    path = path_of(name_or_path)
    if has_magic(name_or_path) and not path.exists():
        return True
    return is_path(name_or_path) and (path.is_dir() or (path.exists() and path.suffix.lower() not in _YAML))


def recipe_name(name_or_path: str) -> str:
    """The name of a recipe's run: the file name without suffix. The name of a text is converted to a bare word."""
    path = path_of(name_or_path)
    if not _is_text(name_or_path):
        return path.stem
    parts = (path.stem, path.resolve().stem, *path.resolve().parent.parts[:0:-1])  # a glob may contain no word
    names = (re.sub(r"[^\w+-]+", "-", part).strip("-") for part in parts)
    return next((name for name in names if name), "text")


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe.

    Args:
        name_or_path: the bare name of a shipped recipe, or a path.

    Raises:
        RecipeError: there is none; names the closest shipped recipe.
    """
    if is_path(name_or_path):
        try:
            path = path_of(name_or_path)
            is_file = path.is_file()
        except OSError as error:  # such as a name that is too long
            raise RecipeError(f"cannot read the recipe {name_or_path}: {error.strerror}") from None
        if not is_file:
            found = "is a folder" if path.is_dir() else "does not exist"
            raise RecipeError(f"{path} {found}; expected a YAML file, a text to train on, or a shipped recipe: {_listing()}")
        return path
    shipped = shipped_files("configs")
    if name_or_path in shipped:
        return shipped[name_or_path]
    close = difflib.get_close_matches(name_or_path, shipped, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    own = f"The path of your own file needs a suffix or a /, such as ./{name_or_path}"
    if Path(name_or_path).exists():
        kind = "folder" if Path(name_or_path).is_dir() else "file"
        own = f"This folder contains a {kind} of that name; to train on it, write ./{name_or_path}"
    raise RecipeError(f"no shipped recipe is called {name_or_path!r}{hint}\nShipped: {_listing()}\n{own}")


def _listing() -> str:
    return ", ".join(shipped_files("configs"))
