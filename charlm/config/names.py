"""Dotted names of a recipe's fields, such as ``train.lr``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from charlm.config.recipe import Recipe
from charlm.config.values import Section


def _section_of(info: FieldInfo) -> type[Section] | None:
    for candidate in (info.annotation, *getattr(info.annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


SECTIONS: dict[str, type[Section]] = {
    name: section for name, info in Recipe.model_fields.items() if (section := _section_of(info))
}


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and the definition of every field."""
    for name, info in Recipe.model_fields.items():
        if name in SECTIONS:
            yield from ((f"{name}.{key}", inner) for key, inner in SECTIONS[name].model_fields.items())
        else:
            yield name, info


def field_names() -> Iterator[str]:
    """Yield the dotted name of every field."""
    return (name for name, _ in fields())


def value_at(recipe: Recipe, key: str) -> Any:
    """The value of a field; ``None`` if its section is absent.

    Args:
        key: the dotted name of a field.
    """
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    return value
