"""Keeping the cache of encodings bounded: what was not used for long, or is too much, is removed.

A removed entry can be made again from its text. A run that has it mapped keeps its data: the system frees them when the
last process that uses them ends.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from charlm.data.folders import cache_part
from charlm.files import temporary_sibling

MAX_BYTES = 20_000_000_000
"""Of all encodings together."""

MAX_AGE = 90 * 24 * 3600
"""Seconds after its last use that an encoding is kept."""


def prune(*, max_bytes: int = MAX_BYTES, max_age: float = MAX_AGE, keep: Path | None = None) -> int:
    """Remove the encodings and fingerprints that were not used for long, then the least recently used encodings.

    Downloaded texts stay. What cannot be removed (a read-only cache) stays too.

    Args:
        max_bytes: what all encodings may take together.
        max_age: seconds since the last use.
        keep: an entry that is in use; it counts but stays.

    Returns:
        Bytes that were freed.
    """
    oldest = time.time() - max_age
    for record in _inside(cache_part("fingerprints")):
        with suppress(OSError):
            if record.stat().st_mtime < oldest:
                record.unlink()
    entries = []
    for entry in _inside(cache_part("encodings")):
        if not entry.name.startswith("."):  # another process writes it
            with suppress(OSError):
                entries.append((entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir()), entry))
    total, freed = sum(size for _, size, _ in entries), 0
    for used, size, entry in sorted(entries):
        if entry == keep or (used >= oldest and total - freed <= max_bytes):
            continue
        with suppress(OSError):
            aside = temporary_sibling(entry)  # nobody finds half of an entry
            entry.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            freed += size
    return freed


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
