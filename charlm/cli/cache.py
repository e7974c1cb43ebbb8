"""``charlm cache``: the cache of encoded texts, its size, and the removal of entries."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli.console import json_line, notice, out, size, table, visible_word
from charlm.cli.help import App
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.data.cache import CacheEntry

cache_app = App(no_args_is_help=False)

_SECONDS = {"d": 86400, "h": 3600, "m": 60}

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
OlderThan = Annotated[
    str | None, typer.Option(metavar="AGE", help="Only texts that were not used for 30d, 12h or 90m.", show_default="all")
]


@cache_app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    """The cache of encoded texts: show it, make it smaller. Without a command: show."""
    if context.invoked_subcommand is None:
        show()


@cache_app.command()
def show(older_than: OlderThan = None, as_json: Json = False) -> None:
    """List the encoded texts, the least recently used first. Nothing is removed.

    With --older-than: those that `charlm cache prune` would remove.

    Examples:
        charlm cache show
        charlm cache show --older-than 30d
    """
    from charlm.data.cache import encodings, part_size
    from charlm.data.cache_entry import describe
    from charlm.data.folders import cache_folder

    age = _seconds(older_than)
    entries = [entry for entry in encodings() if _is_older(entry, age)]
    total = sum(entry.bytes for entry in entries)
    downloads, downloaded = part_size("corpora")
    described = [(entry, describe(entry.path)) for entry in entries]
    if as_json:
        texts = [
            {
                "folder": str(entry.path),
                "name": facts.name if facts else None,
                "characters": facts.characters if facts else None,
                "unit": facts.unit if facts else None,
                "normalise": facts.normalise if facts else None,
                "bytes": entry.bytes,
                "used": datetime.fromtimestamp(entry.used, UTC).date().isoformat(),
            }
            for entry, facts in described
        ]
        json_line({"folder": str(cache_folder()), "bytes": total, "downloaded_bytes": downloaded, "texts": texts})
        return
    rows = []
    for entry, facts in described:
        text = ["(damaged)", "–", ""] if facts is None else [facts.name or "–", f"{facts.characters:,}", facts.unit]
        rows.append([*text, size(entry.bytes), _day(entry.used)])
    if rows:
        table(None, ["text", "length", "unit", "size", "last used"], rows)
    out(visible_word(f"{_texts(entries)}, {size(total)}, in {cache_folder()}"))
    if downloads:
        out(f"{downloads} downloaded text{'s' * (downloads != 1)}, {size(downloaded)}, which prune keeps")
    if rows:
        notice(f"to remove them: charlm cache prune{f' --older-than {older_than}' if older_than else ''}")


@cache_app.command()
def prune(older_than: OlderThan = None, as_json: Json = False) -> None:
    """Remove encoded texts. They are encoded again when they are needed; texts and downloads stay.

    A training that uses one keeps its data until it ends. `charlm cache show` lists what would be removed.

    Examples:
        charlm cache prune --older-than 30d
    """
    from charlm.data.cache import encodings, remove_abandoned
    from charlm.data.cache import prune as remove
    from charlm.data.folders import cache_part

    age = _seconds(older_than)
    before = [entry for entry in encodings() if _is_older(entry, age)]
    remove_abandoned(cache_part("encodings"))
    freed = remove(max_bytes=math.inf, max_age=age) if older_than else remove(max_bytes=-1, max_age=age)
    left = {entry.path for entry in encodings()}
    kept = [entry for entry in before if entry.path in left]
    if as_json:
        json_line({"removed": len(before) - len(kept), "bytes": freed, "kept": [str(entry.path) for entry in kept]})
        return
    out(f"removed {_texts([entry for entry in before if entry.path not in left])}, {size(freed)}")
    if kept:
        notice(f"{_texts(kept)} cannot be removed: the cache is not writable")


def _seconds(age: str | None) -> float:
    """An age such as ``30d`` in seconds; 0 for none.

    Raises:
        UsageError: not an age.
    """
    if age is None:
        return 0.0
    match = re.fullmatch(r"([0-9]{1,6})([dhm])", age)
    if match is None:
        raise UsageError(f"{age}: expected an age such as 30d, 12h or 90m", parameter="older_than")
    return float(match[1]) * _SECONDS[match[2]]


def _is_older(entry: CacheEntry, age: float) -> bool:
    return age == 0 or entry.used < time.time() - age


def _day(used: float) -> str:
    days = int((time.time() - used) // 86400)
    return "today" if days < 1 else f"{days} day{'s' * (days != 1)} ago"


def _texts(entries: Sequence[CacheEntry]) -> str:
    return f"{len(entries)} encoded text{'s' * (len(entries) != 1)}"
