"""Lists the keys of a recipe with their allowed values and defaults: for people, and as JSON Schema for editors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from charlm.config.names import SECTIONS, field_names, fields
from charlm.config.recipe import Recipe
from charlm.config.renames import RENAMED
from charlm.config.suggestions import did_you_mean, suggestions
from charlm.config.values import FIXED
from charlm.errors import UsageError

PLANNED = frozenset(
    {
        "model.hidden", "model.init", "model.dropout", "model.input_dropout", "train.batch", "train.seq_length", "train.lr",
        "train.lr_final", "train.weight_decay", "train.average", "train.epochs", "evaluate.characters",
    }
)  # fmt: skip
"""Keys that training chooses from the length of the text if the recipe gives no length (docs/guide.md, Know the defaults)."""


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        key: its dotted name.
        type: such as ``integer`` or ``list of number or null``.
        allowed: the values to choose from; ``None``: any of the type within the bounds.
        minimum: smallest number; ``None``: no bound.
        maximum: largest number; ``None``: no bound.
        exclusive_minimum: whether ``minimum`` itself is refused.
        exclusive_maximum: whether ``maximum`` itself is refused.
        required: whether a recipe (``corpus``) or its section (``reported``) must contain the key.
        default: ``None`` for null, or for a required key. The help says how an unset value is chosen.
        planned: whether it is one of :data:`PLANNED`.
        fixed: whether it must keep its value when a run is resumed.
        help: one line.
    """

    key: str
    type: str
    allowed: list[str] | None
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    exclusive_maximum: bool
    required: bool
    default: Any
    planned: bool
    fixed: bool
    help: str


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of recipes, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def list_keys(prefix: str = "") -> list[Key]:
    """Describe the keys of a recipe, in the order of the schema.

    Args:
        prefix: a section such as ``train``, or a key such as ``train.lr``; empty: all keys.

    Raises:
        UsageError: no such section or key; names the closest.
    """
    schema = json_schema()
    found = [(name, info) for name, info in fields() if not prefix or f"{name}.".startswith(f"{prefix}.")]
    if found:
        return [_described(name, info, schema) for name, info in found]
    if prefix in RENAMED:
        raise UsageError(f"the key {prefix} is now called {RENAMED[prefix]}")
    raise UsageError(f"no key or section {prefix!r}{did_you_mean(suggestions(prefix, [*SECTIONS, *field_names()]))}")


def _described(name: str, info: FieldInfo, schema: dict[str, Any]) -> Key:
    section, _, key = name.rpartition(".")
    owner = schema["$defs"][SECTIONS[section].__name__] if section else schema
    entry = owner["properties"][key]
    forms = [form for form in entry.get("anyOf", [entry]) if form.get("type") != "null"]
    bounds = forms[0].get("items", forms[0]) if len(forms) == 1 else {}  # a union has no bounds of its own
    allowed = bounds.get("enum", [bounds["const"]] if "const" in bounds else None)
    lowest, highest = bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum")
    return Key(
        key=name,
        type=" or ".join(dict.fromkeys(_type(form) for form in entry.get("anyOf", [entry]))),
        allowed=allowed,
        minimum=bounds.get("minimum", lowest),
        maximum=bounds.get("maximum", highest),
        exclusive_minimum=lowest is not None,
        exclusive_maximum=highest is not None,
        required=info.is_required(),
        default=entry.get("default"),
        planned=name in PLANNED,
        fixed=info.json_schema_extra == FIXED,
        help=" ".join(entry["description"].split()),
    )


def _type(form: dict[str, Any]) -> str:
    """A JSON Schema type in words."""
    if "$ref" in form:
        return "mapping"
    return f"list of {_type(form['items'])}s" if form["type"] == "array" else str(form["type"])
