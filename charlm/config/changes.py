"""Changes of a recipe between two attempts at a run.

Fields marked :data:`~charlm.config.values.FIXED` define the model, the order of the text or the arithmetic, and must keep
their values. For all other fields the newest recipe wins.
"""

from __future__ import annotations

from pydantic import BaseModel

from charlm.config.data import SplitFiles
from charlm.config.names import fields, value_at
from charlm.config.recipe import Recipe
from charlm.config.values import FIXED, shown
from charlm.errors import RecipeError


def reconcile(before: Recipe, now: Recipe) -> list[str]:
    """Compare the recipe of an earlier attempt with the present one.

    Returns:
        A sentence for each changed field that may change.

    Raises:
        RecipeError: fixed fields changed; lists all of them with both values.
    """
    changed = [
        (key, info, old, new)
        for key, info in fields()
        if (old := value_at(before, key)) != (new := value_at(now, key)) and not _names_texts(key, old, new)
    ]
    fixed = [(key, old, new) for key, info, old, new in changed if info.json_schema_extra == FIXED]
    if fixed:
        lines = [f"  {key}: was {_plain(old)}, is now {_plain(new)}" for key, old, new in fixed]
        raise RecipeError(
            "these values cannot change when a run is resumed:\n" + "\n".join(lines),
            advice={"restore the old values": {}, "start again": {"overwrite": True}, "use another folder": {"out": "DIR"}},
        )
    return [
        f"{key}: was {_plain(old)}, continues with {_plain(new)}"
        for key, _, old, new in changed
        if not key.startswith("reported")
    ]


def _names_texts(key: str, old: object, new: object) -> bool:
    """Whether a field names texts. Texts are compared by content, not by path."""
    return key == "corpus" or (isinstance(old, SplitFiles) and isinstance(new, SplitFiles))


def _plain(value: object) -> str:
    return shown(value.model_dump() if isinstance(value, BaseModel) else value)
