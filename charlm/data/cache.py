"""Keeps the cache of encoded texts small: removes entries that are old, and the least recently used beyond a total size.

A removed entry is encoded again when it is needed. A process that has mapped it keeps its data until it ends.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from charlm.data.folders import cache_part
from charlm.files import temporary_sibling

MAX_BYTES = 20_000_000_000
"""Maximum size of all encoded texts together."""

MAX_AGE = 90 * 24 * 3600
"""Seconds since the last use after which an encoded text is removed."""

_ABANDONED_AFTER = 24 * 3600  # seconds without a write: the process that wrote the entry was killed


def prune(*, max_bytes: int = MAX_BYTES, max_age: float = MAX_AGE, keep: Path | None = None) -> int:
    """Remove old encoded texts and fingerprints, then the least recently used encoded texts.

    Downloaded texts are kept, and so is everything that cannot be removed (a read-only cache).

    Args:
        max_bytes: size limit for all encoded texts together.
        max_age: seconds since the last use.
        keep: an entry that is in use; it counts towards the size but is kept.

    Returns:
        Bytes freed.
    """
    oldest = time.time() - max_age
    for record in _children(cache_part("fingerprints")):
        with suppress(OSError):
            if record.stat().st_mtime < oldest:
                record.unlink()
    entries = []
    for entry in _children(cache_part("encodings")):
        if not entry.name.startswith("."):  # hidden: another process is writing it
            with suppress(OSError):
                entries.append((entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir()), entry))
    total, freed = sum(size for _, size, _ in entries), 0
    for used, size, entry in sorted(entries):
        if entry == keep or (used >= oldest and total - freed <= max_bytes):
            continue
        with suppress(OSError):
            aside = temporary_sibling(entry)  # no process can find half of an entry
            entry.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            freed += size
    return freed


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished entries of killed processes; each can be as large as its text."""
    for work in folder.glob(".new-*"):
        times = [file.stat().st_mtime for file in (work, *work.glob("*")) if file.exists()]
        if max(times, default=0) < time.time() - _ABANDONED_AFTER:
            shutil.rmtree(work, ignore_errors=True)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
