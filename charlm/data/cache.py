"""Keeps the cache of encoded texts small: removes entries that are old, and the least recently used beyond a total size.

A removed entry is encoded again when it is needed. A process that has mapped it keeps its data until it ends.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from charlm.data.folders import cache_part
from charlm.files import temporary_sibling

MAX_BYTES = 20_000_000_000
"""Maximum size of all encoded texts together."""

MAX_AGE = 90 * 24 * 3600
"""Seconds since the last use after which an encoded text is removed."""

_ABANDONED_AFTER = 24 * 3600  # seconds without a write: the process that wrote the entry was killed


@dataclass(frozen=True)
class CacheEntry:
    """An encoded text in the cache.

    Attributes:
        path: its folder.
        bytes: size of its files.
        used: last use, to the day, in seconds since the epoch.
    """

    path: Path
    bytes: int
    used: float


def encodings() -> list[CacheEntry]:
    """The encoded texts in the cache, the least recently used first."""
    found = []
    for path in _children(cache_part("encodings")):
        if not path.name.startswith("."):  # hidden: another process is writing it
            with suppress(OSError):
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(CacheEntry(path, size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def part_size(name: str) -> tuple[int, int]:
    """Number and bytes of the files in one part of the cache: ``corpora`` (downloads) or ``fingerprints``."""
    sizes = []
    for path in _children(cache_part(name)):
        with suppress(OSError):
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def prune(*, max_bytes: float = MAX_BYTES, max_age: float = MAX_AGE, keep: Path | None = None) -> int:
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
    entries = encodings()
    total, freed = sum(entry.bytes for entry in entries), 0
    for entry in entries:
        if entry.path == keep or (entry.used >= oldest and total - freed <= max_bytes):
            continue
        with suppress(OSError):
            aside = temporary_sibling(entry.path)  # no process can find half of an entry
            entry.path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            freed += entry.bytes
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
