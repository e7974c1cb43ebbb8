"""What the Tab key offers: recipes, runs, corpora, keys and values. Fast: no torch, and the schema is read as a file.

Each function receives the word that is being typed and returns whole words. Where none fits, shells offer files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

from charlm.cells import cell_names
from charlm.resources import shipped_files, shipped_folder
from charlm.run_files import CONFIG, RUNS, is_checkpoint

_TEXTS = (".yaml", ".yml", ".txt")
_KEY = "_CHARLM_COMPLETE_KEY"  # environment variable: the key whose value is completed


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
    """``KEY=VALUE``: first the keys, then the values of a key that has few.

    A single key comes with its values, so that a shell adds no space after ``=``.
    """
    if (split_key := os.environ.get(_KEY)) is not None:
        return _assigned(split_key, incomplete)
    key, equals, value = incomplete.partition("=")
    if not equals:
        found = [(f"{name}=", meaning) for name, meaning in keys(incomplete)]
        key = found[0][0][:-1] if len(found) == 1 else ""
        return found + [(f"{key}={one}", meaning) for one, meaning in _assigned(key, "")]
    return [(f"{key}={one}", meaning) for one, meaning in _assigned(key, value)]


def join_assignment(environment: MutableMapping[str, str]) -> None:
    """Prepare the words of a command line from bash, which splits ``KEY=VALUE`` into three words and completes the last.

    Only VALUE stays in the words, as the value of ``--set`` or ``--vary``; :func:`overrides` finds KEY in the environment.
    """
    words = environment.get("COMP_WORDS", "").split("\n")
    last = min(int(environment.get("COMP_CWORD", "0")), len(words) - 1)
    equals = last if words[last] == "=" else last - 1
    if equals < 2 or words[equals] != "=" or words[equals - 2] not in ("--set", "--vary"):
        return
    environment[_KEY] = words[equals - 1]
    value = words[last] if last > equals else ""
    environment["COMP_WORDS"] = "\n".join([*words[: equals - 1], value])
    environment["COMP_CWORD"] = str(equals - 1)


def _assigned(key: str, incomplete: str) -> list[tuple[str, str]]:
    """The values of a key."""
    if key == "corpus":
        return corpora(incomplete)
    return [(value, "") for value in _starting(incomplete, _values(_schema().get(key, {})))]


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
    if found or default in (None, "") or isinstance(default, list):
        return found
    return [default if isinstance(default, str) else json.dumps(default)]


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
