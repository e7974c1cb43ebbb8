"""The cache stays within its size limit, and entries in use are kept."""

import os
import time
from pathlib import Path
from typing import Any

from charlm.data.cache import MAX_AGE, MAX_BYTES, prune
from charlm.data.corpora import locate
from charlm.data.encoded import Encoded
from charlm.data.encoding import encode
from charlm.data.folders import cache_folder

DAY = 24 * 3600


def encoded(path: Path) -> Encoded:
    return encode(locate(str(path), Path.cwd()), unit="char", encoding="utf-8", newlines="unix", normalise="none")


def entry_used(days_ago: float, tmp_path: Path, text: str) -> tuple[Path, Encoded]:
    """Encode a text; return its entry, with its last use ``days_ago`` days ago."""
    path = tmp_path / f"{text[0]}.txt"
    path.write_text(text, encoding="utf-8")
    result = encoded(path)
    entry = Path(str(result.ids.filename)).parent  # type: ignore[attr-defined]
    then = time.time() - days_ago * DAY
    os.utime(entry, (then, then))
    return entry, result


def test_old_entries_are_removed(tmp_path: Path) -> None:
    """If this fails, encoded texts are never removed from the cache."""
    young, _ = entry_used(80, tmp_path, "young")
    old, in_use = entry_used(100, tmp_path, "old")
    fingerprint = cache_folder() / "fingerprints" / "old.json"
    fingerprint.parent.mkdir(exist_ok=True)
    fingerprint.write_text("{}")
    os.utime(fingerprint, (1, 1))
    assert prune() > 0
    assert young.exists()
    assert not old.exists()
    assert not fingerprint.exists()
    assert in_use.ids.tolist() == [0, 1, 2], "a run that uses a removed entry has lost its text"
    assert [path.name for path in (cache_folder() / "encodings").iterdir()] == [young.name]


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """If this fails, the cache exceeds its limit, or a text in daily use is removed and encoded again."""
    entries = {days: entry_used(days, tmp_path, f"{days} days ago")[0] for days in (3, 1, 2)}
    size = sum(file.stat().st_size for file in entries[1].iterdir())
    prune(max_bytes=2 * size + size // 2)
    assert {days for days, entry in entries.items() if entry.exists()} == {1, 2}
    prune(max_bytes=0, keep=entries[2])
    assert {days for days, entry in entries.items() if entry.exists()} == {2}


def test_a_new_encoding_prunes(tmp_path: Path) -> None:
    """If this fails, the cache is never pruned."""
    old, _ = entry_used(MAX_AGE / DAY + 1, tmp_path, "old")
    entry_used(0, tmp_path, "new")
    assert not old.exists()
    assert MAX_BYTES == 20_000_000_000, "the guide states it"


def test_a_use_is_recorded(tmp_path: Path) -> None:
    """If this fails, a text in daily use is removed as unused."""
    entry, _ = entry_used(50, tmp_path, "text")
    encoded(tmp_path / "t.txt")
    assert entry.stat().st_mtime > time.time() - DAY


def test_entries_of_killed_processes_are_removed(tmp_path: Path, texts: Any) -> None:
    """If this fails, each killed encoder leaves a copy of its text in the cache forever."""
    encodings = cache_folder() / "encodings"
    for name in (".new-old", ".new-young"):
        (encodings / name).mkdir(parents=True)
        (encodings / name / "ids.bin").write_bytes(b"x")
    for path in (encodings / ".new-old" / "ids.bin", encodings / ".new-old"):
        texts.age(path)
    texts.encode(texts.write(tmp_path, b"text"))
    assert [entry.name for entry in texts.entries() if entry.name.startswith(".new")] == [".new-young"]
