"""An encoded text in the cache: a folder with ids and their description, verified when it is loaded.

The folder's name is a hash of content and settings. A checksum protects the description, a sha256 the ids. The ids are
hashed again only if their file looks changed, or on request.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from charlm.data.encoded import Encoded, EncodingSettings
from charlm.data.fingerprint import Stamp
from charlm.data.folders import cache_part
from charlm.data.ids import IdsWriter, dtype_of
from charlm.data.sources import Sources
from charlm.data.text_pass import PassResult, read_text
from charlm.files import flush_folder, temporary_sibling, whole_file
from charlm.progress import Progress

_META, _STAMP, _IDS = "meta.json", "stamp.json", "ids.bin"
_FORMAT = 2  # increase it when the same bytes and settings give another result
_DAY = 24 * 3600  # seconds


def entry_path(content_sha256: str, sources: Sources, stamps: list[Stamp], settings: EncodingSettings) -> Path:
    """The folder of an entry.

    File boundaries are part of the key: a CRLF across two files is two line ends. Names are part of it only in
    collections, where skipped files are reported by name.

    Args:
        content_sha256: of the bytes of all files.
        sources: the files.
        stamps: of the files.
        settings: how they are read.
    """
    key = {
        "format": _FORMAT,
        "content": content_sha256,
        "sizes": [stamp.size for stamp in stamps],
        "labels": [file.label for file in sources.files] if sources.is_collection else None,
        "settings": settings.to_json(),
    }
    return cache_part("encodings") / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def write_ids(
    folder: Path, sources: Sources, settings: EncodingSettings, progress: Progress | None
) -> tuple[PassResult, dict[str, Any]]:
    """Encode a corpus into a folder.

    Returns:
        The result of the pass, and the description for :func:`write_description`.

    Raises:
        CorpusError: a file cannot be read, or is not text.
    """
    with IdsWriter(folder / _IDS) as writer:
        found = read_text(sources, settings, writer, progress)
        width = writer.finish()
        # The file is never written again. Read-only, it cannot be truncated by accident while a run has mapped it.
        os.fchmod(writer.fileno(), 0o400)
        os.fsync(writer.fileno())  # else a power failure can leave a file of the right size, full of zeros
        meta = {
            "format": _FORMAT,
            "name": sources.name,
            "settings": settings.to_json(),
            "width": width,
            "characters": writer.characters,
            "ids_sha256": writer.digest(),
            "alphabet": writer.alphabet,
            "sha256": found.digest.sha256,
            "bytes": found.digest.bytes,
            "file_lengths": found.file_lengths,
            "crlf": found.converted_line_ends,
            "marks": found.byte_order_marks,
            "skipped": found.skipped,
            "empty_records": found.empty_records,
        }
    return found, meta


def write_description(folder: Path, meta: dict[str, Any]) -> None:
    """Complete an entry: write the description of its ids, with a checksum, and the stamp of the ids' file."""
    with whole_file(folder / _META, mode=0o600) as out:
        out.write(json.dumps({"checksum": _checksum(meta), "meta": meta}).encode())
    _write_stamp(folder, (folder / _IDS).stat())


def install(folder: Path, entry: Path, verify: bool) -> None:
    """Rename a complete folder to its place in the cache. An intact entry that another process wrote first is kept."""
    try:
        folder.rename(entry)
    except OSError:
        if load(entry, verify) is not None:
            return
        if not entry.exists():
            raise
        aside = temporary_sibling(entry)
        entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(entry)
    flush_folder(entry.parent)


def load(entry: Path, verify: bool = False) -> Encoded | None:
    """Load an entry; ``None`` if there is none, or if it is damaged and must be rebuilt.

    Args:
        entry: its folder.
        verify: hash its ids even if their file looks unchanged.
    """
    try:
        record: dict[str, Any] = json.loads((entry / _META).read_bytes())
        meta = record["meta"]
        if record["checksum"] != _checksum(meta) or meta["key"] != entry.name:
            return None
        dtype, characters = dtype_of(meta["width"]), int(meta["characters"])
        with open(str(entry / _IDS), "rb") as file:  # noqa: PTH123 - the map's filename is then a str too
            if os.fstat(file.fileno()).st_size != characters * dtype.itemsize:
                return None
            if not _are_intact(entry, file, meta["ids_sha256"], verify):
                return None
            ids = np.memmap(file, dtype=dtype, mode="r", shape=(characters,))
        _record_use(entry)
        alphabet = np.array(meta["alphabet"], dtype=np.uint32)
        alphabet.setflags(write=False)
        return Encoded(
            ids=ids,
            alphabet=alphabet,
            file_lengths=tuple(meta["file_lengths"]),
            sha256=str(meta["sha256"]),
            bytes=int(meta["bytes"]),
            converted_line_ends=int(meta["crlf"]),
            byte_order_marks=int(meta["marks"]),
            skipped=tuple(meta["skipped"]),
            empty_records=int(meta.get("empty_records", 0)),  # entries of earlier versions have none
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class EntryFacts:
    """What an entry says about its text.

    Attributes:
        name: of the corpus that was encoded first; empty in entries of earlier versions.
        characters: of the text; bytes if ``unit`` is ``byte``.
        unit: ``char`` or ``byte``.
        normalise: name of the normalisation.
    """

    name: str
    characters: int
    unit: str
    normalise: str


def describe(entry: Path) -> EntryFacts | None:
    """Read the description of an entry, without its ids; ``None`` if it is damaged."""
    try:
        record: dict[str, Any] = json.loads((entry / _META).read_bytes())
        meta = record["meta"]
        if record["checksum"] != _checksum(meta):
            return None
        settings = meta["settings"]
        return EntryFacts(str(meta.get("name", "")), int(meta["characters"]), settings["unit"], settings["normalise"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _stamp(status: os.stat_result) -> list[int]:
    # Unlike mtime, ctime cannot be set back after a change.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _write_stamp(entry: Path, status: os.stat_result) -> None:
    with whole_file(entry / _STAMP, mode=0o600) as out:
        out.write(json.dumps(_stamp(status)).encode())


def _are_intact(entry: Path, ids: BufferedReader, sha256: str, verify: bool) -> bool:
    """Whether the ids are those that were written: their file looks unchanged, or has the right sha256."""
    status = os.fstat(ids.fileno())
    with suppress(OSError, ValueError):
        if not verify and json.loads((entry / _STAMP).read_bytes()) == _stamp(status):
            return True
    if hashlib.file_digest(ids, "sha256").hexdigest() != sha256:
        return False
    with suppress(OSError):  # read-only cache: hash again next time
        _write_stamp(entry, status)
    return True


def _record_use(entry: Path) -> None:
    """Set the entry's mtime, its time of last use, at most once a day; see :func:`charlm.data.cache.prune`."""
    with suppress(OSError):
        if entry.stat().st_mtime < time.time() - _DAY:
            os.utime(entry)
