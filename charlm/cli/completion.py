"""What the Tab key offers: recipes, runs, corpora, keys and values. Fast: no torch, and the schema is read as a file.

Each function receives the word that is being typed and returns whole words. Where none fits, shells offer files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from charlm.cells import cell_names
from charlm.resources import shipped_files, shipped_folder
from charlm.run_files import CONFIG, RUNS, is_checkpoint

_TEXTS = (".yaml", ".yml", ".txt")


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes."""
    return _starting(incomplete, shipped_files("configs"))


def recipes_and_texts(incomplete: str) -> list[str]:
    """Shipped recipes, and the YAML files and texts of the current folder."""
    here = [path.name for path in _entries(Path()) if path.suffix.lower() in _TEXTS and path.is_file()]
    return recipes(incomplete) + _starting(incomplete, here)


def runs(incomplete: str) -> list[str]:
    """The names of the runs in the default folder; in a path, the folders and checkpoints."""
    start, slash, _ = incomplete.rpartition("/")
    if not slash:
        return _starting(incomplete, (path.name for path in _entries(RUNS) if (path / CONFIG).is_file()))
    entries = _entries(Path(start or "/").expanduser())
    found = [f"{path.name}/" if path.is_dir() else path.name for path in entries if path.is_dir() or is_checkpoint(path.name)]
    return _starting(incomplete, (f"{start}/{name}" for name in found))


def corpora(incomplete: str) -> list[tuple[str, str]]:
    """The corpora with a card, and their descriptions."""
    from charlm.data.cards import cards

    return [(name, card.description) for name, card in cards().items() if name.startswith(incomplete)]


def cell(incomplete: str) -> list[str]:
    """The cells."""
    return _starting(incomplete, cell_names())


def cells(incomplete: str) -> list[str]:
    """A comma-separated list of cells, with one more cell."""
    start, comma, last = incomplete.rpartition(",")
    given = start.split(",")
    return [f"{start}{comma}{name}" for name in cell_names() if name.startswith(last) and name not in given]


def keys(incomplete: str) -> list[tuple[str, str]]:
    """The keys of a recipe, and their meaning."""
    return [(key, _meaning(entry)) for key, entry in _schema().items() if key.startswith(incomplete)]


def overrides(incomplete: str) -> list[tuple[str, str]]:
    """``KEY=VALUE``: first the keys, then the values of a key that has few."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [(f"{name}=", meaning) for name, meaning in keys(incomplete)]
    if key == "corpus":
        return [(f"corpus={name}", description) for name, description in corpora(value)]
    return [(f"{key}={one}", "") for one in _starting(value, _values(_schema().get(key, {})))]


def _schema() -> dict[str, dict[str, Any]]:
    """Dotted key → its JSON Schema."""
    schema = json.loads((shipped_folder("configs") / "recipe.schema.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for name, entry in schema["properties"].items():
        section = next((form["$ref"] for form in [entry, *entry.get("anyOf", [])] if "$ref" in form), None)
        if section is None:
            found[name] = entry
        else:
            inside = schema["$defs"][section.rpartition("/")[2]]["properties"]
            found |= {f"{name}.{key}": one for key, one in inside.items()}
    return found


def _values(entry: dict[str, Any]) -> list[str]:
    """The values of a key that has few, else its default."""
    found: list[str] = []
    for form in entry.get("anyOf", [entry]):
        found += form.get("enum", [form["const"]] if "const" in form else [])
        found += ["true", "false"] if form.get("type") == "boolean" else []
    default = entry.get("default")
    return found or ([json.dumps(default)] if isinstance(default, int | float) else [])


def _meaning(entry: dict[str, Any]) -> str:
    return str(entry.get("description", "")).partition(". ")[0]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without hidden files; nothing if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _starting(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
