"""The rows of a comparison: recipes × cells × varied values."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from charlm.cells import cells_with, option_default, option_keys, option_text
from charlm.config import LoadedRecipe, check_key, load_recipe
from charlm.errors import RecipeError, UsageError
from charlm.yaml_text import parse_yaml

CELL = "model.cell"


@dataclass(frozen=True)
class Candidate:
    """One row of a comparison: ``charlm train SOURCE --set …`` trains it.

    Attributes:
        name: names its row and, with the seed, the folders of its runs.
        source: a recipe's name or path.
        overrides: ``section.key=value``.
    """

    name: str
    source: str
    overrides: tuple[str, ...] = ()

    def but(self, *more: str) -> Candidate:
        """The same row with further overrides."""
        return Candidate(self.name, self.source, (*self.overrides, *more))

    def load(self, *more: str) -> LoadedRecipe:
        """The recipe, with further overrides."""
        return load_recipe(self.source, (*self.overrides, *more))


def candidates(
    recipes: Sequence[str], cells: Sequence[str] = (), vary: Sequence[str] = (), overrides: Sequence[str] = ()
) -> list[Candidate]:
    """Every recipe with every cell and every varied value, in this order. The first is the baseline for the others.

    Args:
        recipes: names or paths.
        cells: from :func:`charlm.cells.cell_names`; empty: each recipe's own.
        vary: ``KEY=V1,V2,…``; several are combined.
        overrides: ``KEY=VALUE``, for all candidates.

    Raises:
        RecipeError: a wrong recipe, cell, key or value.
        UsageError: two candidates have the same name.
    """
    choices = [[f"{CELL}={cell}" for cell in cells]] if cells else []
    choices += [variations(text) for text in vary]
    keys = [choice[0].partition("=")[0] for choice in choices]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"{key} is varied twice; list all its values once, separated by commas")
    found = [candidate(source, chosen, overrides) for source in recipes for chosen in itertools.product(*choices)]
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"two candidates have the name {name}; list each recipe and value once, and give files different names"
            )
    return found


def variations(text: str, parameter: str = "vary") -> list[str]:
    """``model.hidden=64,256`` → the overrides ``model.hidden=64`` and ``model.hidden=256``. Values are YAML.

    Args:
        parameter: the argument that has the text.

    Raises:
        RecipeError: no values, or a key that no recipe has.
    """
    key, (_, equals, values) = varied_key(text), text.partition("=")
    if not equals or not values.strip():
        raise RecipeError(f"{text}: expected KEY=VALUE,VALUE,… such as model.hidden=64,256,512", parameter=parameter)
    try:
        check_key(key, text)
        found = parse_yaml(f"[{values}]", text)
    except RecipeError as error:
        raise RecipeError(str(error), parameter=parameter) from None
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for value in found]


def varied_key(text: str) -> str:
    """The key of ``KEY=V1,V2,…``."""
    return text.partition("=")[0].strip()


def candidate(source: str, chosen: Sequence[str], overrides: Sequence[str]) -> Candidate:
    """A recipe with chosen values. If they name a cell, options of other cells in the recipe get their defaults.

    Args:
        source: name or path.
        chosen: ``section.key=value``; they name the candidate.
        overrides: further ones.

    Raises:
        RecipeError: a wrong recipe, key or value.
    """
    cell = next((override.partition("=")[2].strip('"') for override in chosen if override.startswith(f"{CELL}=")), None)
    foreign = [
        f"model.{key}={option_text(option_default(key))}"
        for key in option_keys()
        if cell is not None and cell not in cells_with(key)
    ]  # a recipe's options for its own cell do not apply to another
    unnamed = Candidate("", source, (*overrides, *foreign, *chosen))
    name = "-".join([unnamed.load().name, *map(_label, chosen)])
    return Candidate(name, source, unnamed.overrides)


def _label(override: str) -> str:
    """The part of a candidate's name (and folder) for one choice: ``gru``, ``hidden=256``."""
    key, _, value = override.partition("=")
    value = re.sub(r"[^\w.+-]+", "-", value.strip('"'))
    return value if key == CELL else f"{key.rpartition('.')[2]}={value}"
