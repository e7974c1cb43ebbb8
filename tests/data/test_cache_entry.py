"""Cache entries: found again, verified, private, and safe with many processes."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from charlm.data import cache_entry
from charlm.data.corpora import locate
from charlm.data.encoding import encode
from charlm.data.folders import cache_folder
from charlm.errors import CorpusError


def change_ids(entry: Path) -> None:
    """Change the ids of an entry, but neither their number nor their mtime."""
    ids = entry / "ids.bin"
    status = ids.stat()
    ids.chmod(0o600)
    ids.write_bytes(bytes(reversed(ids.read_bytes())))
    os.utime(ids, ns=(status.st_atime_ns, status.st_mtime_ns))


def _encode(path: str) -> bytes:
    sources = locate(path, Path.cwd())
    result = encode(sources, unit="char", encoding="utf-8", newlines="unix", normalise="none")
    return result.symbols(0, result.characters).utf8(0, result.characters, "char")


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, texts: Any, reads: Callable[[], int]) -> None:
    """If this fails, every run on a ten-gigabyte text reads it again."""
    path = texts.write(tmp_path, b"a text")
    first = texts.encode(path)
    assert texts.text_of(texts.encode(path)) == texts.text_of(first)
    assert reads() == 1
    texts.encode(path, verify=True)
    assert reads() == 2
    assert len(texts.entries()) == 1


def test_other_settings_are_another_entry(tmp_path: Path, texts: Any) -> None:
    """If this fails, a recipe reads a text that was encoded with other settings."""
    path = texts.write(tmp_path, b"A\r\n")
    assert texts.text_of(texts.encode(path)) == "A\n"
    assert texts.text_of(texts.encode(path, newlines="keep")) == "A\r\n"
    assert texts.text_of(texts.encode(path, normalise="d2l-lines")) == "a"
    assert texts.encode(path, unit="byte").characters == 3


def test_a_changed_file_is_noticed(tmp_path: Path, texts: Any) -> None:
    """If this fails, training uses an outdated copy of the text."""
    path = texts.write(tmp_path, b"before")
    assert texts.text_of(texts.encode(path)) == "before"
    path.write_bytes(b"behind")
    assert texts.text_of(texts.encode(path)) == "behind"
    texts.age(path)  # now only verify can detect a change
    texts.write(tmp_path, b"before")
    path.write_bytes(b"beyond")
    texts.age(path)
    assert texts.text_of(texts.encode(path, verify=True)) == "beyond"
    assert texts.text_of(texts.encode(path)) == "beyond"


def test_a_file_written_just_now_is_not_recorded(tmp_path: Path, texts: Any, reads: Callable[[], int]) -> None:
    """If this fails, a second write within one tick of the file system's clock goes unnoticed."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"first")
    stamp = path.stat()
    texts.encode(path)
    path.write_bytes(b"later")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert texts.text_of(texts.encode(path)) == "later"


def test_where_files_end_matters(tmp_path: Path, texts: Any) -> None:
    """If this fails, two collections with the same bytes but other file boundaries share one entry."""
    for name, first, second in (("one", b"a\r", b"\nb"), ("two", b"a\r\n", b"b")):
        texts.write(tmp_path / name, first, "1.txt")
        texts.write(tmp_path / name, second, "2.txt")
    assert texts.text_of(texts.encode(tmp_path / "one")) == "a\n\nb"
    assert texts.text_of(texts.encode(tmp_path / "two")) == "a\nb"


@pytest.mark.parametrize("damage", ["truncated", "missing", "no json", "other json", "no meta"])
def test_a_damaged_entry_is_rebuilt(tmp_path: Path, texts: Any, damage: str) -> None:
    """If this fails, a damaged cache entry stops charlm, or is used."""
    path = texts.write(tmp_path, b"some text")
    texts.encode(path)
    (entry,) = texts.entries()
    if damage == "truncated":
        os.truncate(entry / "ids.bin", 3)
    elif damage == "missing":
        (entry / "ids.bin").unlink()
    elif damage == "no meta":
        (entry / "meta.json").unlink()
    else:
        (entry / "meta.json").write_text("{" if damage == "no json" else json.dumps({"width": 1}))
    assert texts.text_of(texts.encode(path)) == "some text"
    assert texts.entries() == [entry]


def test_a_cache_that_cannot_be_written(tmp_path: Path, texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a read-only home folder ends in a traceback."""
    texts.write(tmp_path, b"not a folder", "cache-file")
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache-file"))
    with pytest.raises(CorpusError, match="set CHARLM_CACHE"):
        texts.encode(texts.write(tmp_path, b"text"))


def test_many_processes_at_once(tmp_path: Path, texts: Any) -> None:
    """If this fails, concurrent runs on one text damage each other's cache entry."""
    path = texts.write(tmp_path, "naïve text, again and again\n".encode() * 20000)
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        results = set(pool.map(_encode, [str(path)] * 6))
    assert results == {path.read_bytes()}
    assert len(texts.entries()) == 1


def test_changed_ids_are_noticed(tmp_path: Path, texts: Any) -> None:
    """If this fails, a damaged cache gives another perplexity under the correct sha256."""
    path = texts.write(tmp_path, b"some text")
    change_ids(texts.entry_of(path))
    assert texts.text_of(texts.encode(path)) == "some text"
    assert len(texts.entries()) == 1


def test_verify_hashes_ids_that_look_unchanged(tmp_path: Path, texts: Any) -> None:
    """If this fails, verify does not find damage that left the file's metadata unchanged."""
    path = texts.write(tmp_path, b"some text")
    entry = texts.entry_of(path)
    change_ids(entry)
    cache_entry._write_stamp(entry, (entry / "ids.bin").stat())
    assert texts.text_of(texts.encode(path, verify=True)) == "some text"
    assert texts.text_of(texts.encode(path)) == "some text"


def test_unchanged_ids_are_not_hashed_again(tmp_path: Path, texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, every run on a ten-gigabyte text hashes it again, always or with a copied cache."""
    path = texts.write(tmp_path, b"some text")
    entry = texts.entry_of(path)
    hashed = 0
    original = hashlib.file_digest

    def counting(*arguments: object) -> object:
        nonlocal hashed
        hashed += 1
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counting)
    texts.encode(path)
    assert hashed == 0
    (entry / "ids.bin").touch()
    texts.encode(path)
    texts.encode(path)
    assert hashed == 1


@pytest.mark.parametrize("key", ["alphabet", "bytes", "sha256", "ids_sha256"])
def test_a_changed_description_is_noticed(tmp_path: Path, texts: Any, key: str) -> None:
    """If this fails, a changed number in the entry's JSON turns the same ids into another text."""
    path = texts.write(tmp_path, b"some text")
    entry = texts.entry_of(path)
    record = json.loads((entry / "meta.json").read_text())
    changed = {"alphabet": list(reversed(record["meta"]["alphabet"])), "bytes": 7}.get(key, "0" * 64)
    (entry / "meta.json").write_text(json.dumps({**record, "meta": {**record["meta"], key: changed}}))
    result = texts.encode(path)
    assert (texts.text_of(result), result.bytes) == ("some text", 9)
    assert result.sha256 == hashlib.sha256(b"some text").hexdigest()


def test_an_entry_under_another_name_is_not_used(tmp_path: Path, texts: Any) -> None:
    """If this fails, a renamed entry is used for another text of the same length."""
    path = texts.write(tmp_path, b"some text")
    first = texts.entry_of(path)
    other = texts.write(tmp_path, b"text some", "other.txt")
    texts.encode(other)
    (second,) = [entry for entry in texts.entries() if entry != first]
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert texts.text_of(texts.encode(other)) == "text some"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_cache_is_private(tmp_path: Path, texts: Any, umask: int) -> None:
    """If this fails, other users of the machine can read private texts."""
    path = texts.write(tmp_path, b"a secret")
    before = os.umask(umask)
    try:
        texts.encode(path)
    finally:
        os.umask(before)
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in [cache_folder(), *cache_folder().rglob("*")]}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes
    assert modes["ids.bin"] == 0o400, "an accident can shorten a file that a run has mapped"


def test_an_existing_cache_becomes_private_unless_it_is_read_only(tmp_path: Path, texts: Any) -> None:
    """If this fails, others can read an old cache, or a cache that is shared on purpose becomes private."""
    path = texts.write(tmp_path, b"some text")
    texts.encode(path)
    encodings = cache_folder() / "encodings"
    for opened, then in ((0o755, 0o700), (0o555, 0o555)):
        encodings.chmod(opened)
        texts.encode(path)
        assert stat.S_IMODE(encodings.stat().st_mode) == then


def test_a_read_only_cache_is_used(tmp_path: Path, texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a read-only cache for all users of a machine cannot be used."""
    path = texts.write(tmp_path, b"some text")
    entry = texts.entry_of(path)
    shutil.rmtree(cache_folder() / "fingerprints")
    (entry / "ids.bin").chmod(0o444)  # changes what the file looks like, so it is hashed

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in (
        "fingerprint.whole_file",
        "fingerprint.make_private_folder",
        "cache_entry.whole_file",
        "encoding.make_private_folder",
    ):
        monkeypatch.setattr(f"charlm.data.{name}", refuse)
    assert texts.text_of(texts.encode(path, verify=True)) == "some text"
    with pytest.raises(CorpusError, match="set CHARLM_CACHE"):
        texts.encode(texts.write(tmp_path, b"another text", "other.txt"))
