"""Recognises unchanged files without reading them, so that only the first run on a large text hashes it.

A file counts as unchanged while its path, size, mtime (in nanoseconds) and inode are the same as when it was last hashed.
The cache has a small JSON record for each file, or for each sequence of files that is one text. A lost record costs only
time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from charlm.data.folders import cache_part
from charlm.errors import CorpusError
from charlm.files import make_private_folder, whole_file

_BLOCK = 1 << 20  # bytes

# A file written twice within one tick of the file system's clock keeps its mtime. A file modified less than this many
# nanoseconds before reading began is therefore not recorded.
_TICK = 100_000_000


@dataclass(frozen=True)
class Stamp:
    """Metadata of a file. Equal stamps mean equal content."""

    path: str
    size: int
    """Bytes."""
    modified_ns: int
    inode: int


def stamps(paths: Sequence[Path]) -> list[Stamp]:
    """The stamp of each file; the files are not read.

    Raises:
        CorpusError: a file does not exist or is not accessible.
    """
    result = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise CorpusError(f"cannot read {path}: {error.strerror}") from None
        result.append(Stamp(str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino))
    return result


def cached_sha256(files: Sequence[Stamp]) -> str | None:
    """The recorded sha256 of the files' bytes, one file after the other; ``None`` if there is none or a file has changed."""
    try:
        record = json.loads(_record(files).read_text(encoding="utf-8"))
        return str(record["sha256"]) if record["stamps"] == _digest(files) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no record, or a damaged one


def cache_sha256(files: Sequence[Stamp], sha256: str, *, began_ns: int) -> None:
    """Record the sha256 of the files' bytes. A read-only cache is no error: the files are hashed again next time.

    Args:
        files: stamps from before the files were read.
        sha256: of all their bytes, one file after the other.
        began_ns: when reading began (``time.time_ns()``).
    """
    if any(file.modified_ns > began_ns - _TICK for file in files):
        return
    record = _record(files)
    with suppress(OSError):
        make_private_folder(record.parent)
        with whole_file(record, mode=0o600) as file:
            file.write(json.dumps({"stamps": _digest(files), "sha256": sha256}).encode())


def sha256_of(path: Path, *, verify: bool = False) -> str:
    """The sha256 of a file's content.

    Args:
        path: the file.
        verify: hash it even if it looks unchanged.

    Raises:
        CorpusError: it cannot be read.
    """
    began_ns = time.time_ns()
    seen = stamps([path])
    known = None if verify else cached_sha256(seen)
    if known is not None:
        return known
    hasher = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from None
    if stamps([path]) == seen:
        cache_sha256(seen, hasher.hexdigest(), began_ns=began_ns)
    return hasher.hexdigest()


def _record(files: Sequence[Stamp]) -> Path:
    names = json.dumps([file.path for file in files]).encode()
    return cache_part("fingerprints") / f"{hashlib.sha256(names).hexdigest()[:32]}.json"


def _digest(files: Sequence[Stamp]) -> str:
    return hashlib.sha256(json.dumps([astuple(file) for file in files]).encode()).hexdigest()
