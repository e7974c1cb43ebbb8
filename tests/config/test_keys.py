"""The list of keys and the JSON Schema."""

from __future__ import annotations

import json

from charlm.config import (
    Recipe,
    field_names,
    fields,
    json_schema,
    value_at,
)
from charlm.resources import shipped_folder


def test_every_field_is_explained() -> None:
    """If this fails, the help and the editors' schema have a gap."""
    assert [name for name, info in fields() if not info.description] == []


def test_the_schema_file_is_up_to_date() -> None:
    """If this fails, editors complete and check recipes by an old schema: write charlm.config.json_schema() there."""
    stored = json.loads((shipped_folder("configs") / "recipe.schema.json").read_text(encoding="utf-8"))
    assert stored == json_schema()


def test_dotted_names_reach_their_values() -> None:
    """If this fails, a field is skipped when two recipes are compared."""
    recipe = Recipe(corpus="x")
    names = list(field_names())
    assert len(names) == len(set(names))
    assert (value_at(recipe, "train.lr"), value_at(recipe, "reported.value"), value_at(recipe, "corpus")) == (2e-3, None, "x")
