"""From a corpus to integers on disk, independent of any vocabulary, read back as a memory map.

One pass over the bytes does everything: sha256, strict decoding, byte-order marks, line ends, normalisation, and the
index of each character in the order of first appearance. It is fast (plain English at about 200
megabytes a second) and its memory does not grow with the text. The result is kept in the cache by content and settings,
so it is made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charlm.data.cache import prune
from charlm.data.corpora import SourceFile, Sources
from charlm.data.fingerprint import Stamp, recall, remember, stamps
from charlm.data.folders import cache_part
from charlm.data.ids import Ids, IdsWriter, dtype_of
from charlm.data.normalisation import normalisation
from charlm.data.reading import NotTextError, TextReader, canonical_encoding
from charlm.errors import CorpusError, RecipeError
from charlm.files import flush_folder, make_private_folder, temporary_sibling, whole_file
from charlm.progress import Progress

_META, _STAMP, _IDS = "meta.json", "stamp.json", "ids.bin"
_FORMAT = 2  # of the cache; count it up whenever the same bytes and settings would give another result
_BLOCK = 1 << 20  # bytes that are read at a time: few enough to stay in the processor's cache
_DAY = 24 * 3600  # seconds: an older unfinished entry is that of a process that died; a use is recorded once in it


@dataclass(frozen=True)
class Encoded:
    """A corpus as integers.

    Attributes:
        ids: shape (characters,), a read-only memory map: indices into ``alphabet``, as uint8, uint16 or uint32.
        alphabet: code points (``unit: char``) or byte values (``unit: byte``), as uint32, in order of first appearance.
        file_lengths: characters from each file of the corpus, in order; 0 if it was skipped.
        sha256: of the bytes of the files that were read, one after the other.
        bytes: how many those are.
        crlf: line ends CRLF or CR that were read as LF.
        marks: files that began with a byte-order mark, which is not text.
        skipped: labels of a collection's files that are not text or hold none.
    """

    ids: Ids
    alphabet: npt.NDArray[np.uint32]
    file_lengths: tuple[int, ...]
    sha256: str
    bytes: int
    crlf: int
    marks: int
    skipped: tuple[str, ...]

    @property
    def characters(self) -> int:
        """N: the length of the text."""
        return len(self.ids)


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint says of its text: bytes and sha256 of the files that were read, one after the other."""

    bytes: int
    sha256: str


class OtherTextError(CorpusError):
    """Files are not the text that a checkpoint names. Nothing of them was kept."""


def utf8(encoded: Encoded, start: int, stop: int, unit: str) -> bytes:
    """The characters start … stop − 1 as UTF-8; for the unit ``byte`` the bytes themselves."""
    symbols = encoded.alphabet[encoded.ids[start:stop]]
    if unit == "byte":
        return symbols.astype(np.uint8).tobytes()
    return symbols.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class _Settings:
    """What decides the result besides the bytes; a part of the cache's key."""

    unit: str
    encoding: str
    newlines: str
    normalise: str

    @classmethod
    def checked(cls, unit: str, encoding: str, newlines: str, normalise: str) -> _Settings:
        normalisation(normalise)
        if unit == "char":
            return cls(unit, canonical_encoding(encoding), newlines, normalise)
        if normalise != "none":
            raise RecipeError(
                f"data.unit: byte reads bytes as they are, which data.normalise: {normalise} would change; "
                "use unit: char, or normalise: none"
            )
        return cls(unit, "utf-8", "keep", "none")  # bytes know no encodings and line ends: one entry serves all


def encode(
    sources: Sources,
    *,
    unit: str,
    encoding: str,
    newlines: str,
    normalise: str,
    verify: bool = False,
    recorded: Recorded | None = None,
    progress: Progress | None = None,
) -> Encoded:
    """Return the corpus as integers: from the cache if it has been encoded before, else newly made.

    Args:
        sources: from :func:`charlm.data.corpora.locate`.
        unit: ``char`` or ``byte``.
        encoding: of the files, for ``char``. A card's own text needs none.
        newlines: ``unix`` reads CRLF and CR as LF; ``keep`` leaves them.
        normalise: a name of :data:`charlm.data.normalisation.NORMALISATIONS`.
        verify: hash the files and the cache's entry even if they look unchanged.
        recorded: what the text must be. Files that a checkpoint names may be anybody's: until they have proved to be its text
            by size, then by sha256, nothing is written to the cache and nothing is said of their content.
        progress: of reading.

    Raises:
        OtherTextError: the files are not what was ``recorded``.
        RecipeError: an encoding or normalisation that does not exist or does not fit the unit.
        CorpusError: a file that cannot be read or is not text, no text at all, or a cache that cannot be written.
    """
    settings = _Settings.checked(unit, encoding, newlines, normalise)
    paths = [file.path for file in sources.files if file.path is not None]
    began_ns = time.time_ns()
    seen = stamps(paths)
    if recorded is not None:
        _possible(sources, recorded)
    if verify or not paths:
        content: str | None = _hash(sources, progress)
    else:
        content = recall(seen)
    if content is not None and (known := _load(_entry(content, sources, seen, settings), verify)) is not None:
        _same_text(sources, Recorded(known.bytes, known.sha256), recorded)
        remember(seen, content, began_ns=began_ns)
        return known
    if recorded is not None:
        _look(sources, settings, recorded, progress)
    return _make(sources, settings, seen, began_ns, verify, recorded, progress)


def _make(
    sources: Sources,
    settings: _Settings,
    seen: list[Stamp],
    began_ns: int,
    verify: bool,
    recorded: Recorded | None,
    progress: Progress | None,
) -> Encoded:
    folder = cache_part("encodings")
    work = temporary_sibling(folder / "entry")
    try:
        _remove_abandoned(folder)
        make_private_folder(work)
        content, meta = _encode_into(work, sources, settings, progress)
        _same_text(sources, Recorded(meta["bytes"], meta["sha256"]), recorded)
        if stamps([Path(stamp.path) for stamp in seen]) != seen:
            raise CorpusError(f"the corpus {sources.name} changed while it was read; start again when it is complete")
        entry = _entry(content, sources, seen, settings)
        _describe(work, {**meta, "key": entry.name})
        _keep(work, entry, verify)
    except OSError as error:
        raise CorpusError(
            f"cannot write the encoded text to the cache {folder}: {error.strerror}; "
            "it needs about a byte per character; set CHARLM_CACHE to a folder that can be written and has room"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    remember(seen, content, began_ns=began_ns)
    made = _load(entry)
    if made is None:
        raise CorpusError(f"cannot read back the encoded text {entry}; remove that folder and start again")
    prune(keep=entry)
    return made


# --------------------------------------------------------------------------------------------------------------------
# The pass over the bytes
# --------------------------------------------------------------------------------------------------------------------


class _Bytes:
    """Reads the corpus's bytes once, and hashes them on the way.

    ``content`` is the hash of all files; ``read`` that of the files read as text: the same until a file is skipped.
    """

    def __init__(self, sources: Sources, progress: Progress | None) -> None:
        self.content = hashlib.sha256()
        self.read = self.content
        self.done = self.done_of_read = 0
        self._progress = progress
        self._in_all = sum(_size(file) for file in sources.files)

    def blocks(self, file: SourceFile) -> Iterator[bytes]:
        for block in _blocks(file):
            self.content.update(block)
            if self.read is not self.content:
                self.read.update(block)
            self.done += len(block)
            self.done_of_read += len(block)
            yield block
            if self._progress is not None:
                self._progress(self.done, max(self.done, self._in_all))


class _Writer(Protocol):
    """Where symbols go."""

    characters: int

    def append(self, piece: bytes | str) -> None: ...
    def mark(self) -> tuple[int, int]: ...
    def rewind(self, mark: tuple[int, int]) -> None: ...


class _Nowhere:
    """Counts symbols and keeps none. More text than ``limit`` is refused at the end of a file."""

    def __init__(self, limit: int) -> None:
        self.characters = 0
        self._limit = limit

    def append(self, piece: bytes | str) -> None:
        self.characters += len(piece)

    def mark(self) -> tuple[int, int]:
        if self.characters > self._limit:
            raise CorpusError(f"more than {self._limit:,} characters")
        return self.characters, 0

    def rewind(self, mark: tuple[int, int]) -> None:
        self.characters, _ = mark


def _look(sources: Sources, settings: _Settings, recorded: Recorded, progress: Progress | None) -> None:
    """Find out whether files are a recorded text, without writing anything.

    Raises:
        OtherTextError: they are not.
    """
    size = sum(_size(file) for file in sources.files)
    if size == recorded.bytes:
        found = Recorded(size, _hash(sources, progress))
    else:  # the recorded sha256 leaves out the files that are not text
        data = _Bytes(sources, progress)
        try:
            _read(data, sources, settings, _Nowhere(recorded.bytes))
        except CorpusError:  # it could say what is in a file
            raise _other_text(sources, recorded) from None
        found = Recorded(data.done_of_read, data.read.hexdigest())
    _same_text(sources, found, recorded)


def _possible(sources: Sources, recorded: Recorded) -> None:
    """Refuse files that cannot be a recorded text, without opening them.

    Raises:
        OtherTextError: they have another size, or are no ordinary files.
    """
    # What the kernel shows as files of /proc and /sys can wait for events or never end. The text of a run is on a disk.
    kernel = {folder.stat().st_dev for folder in (Path("/proc"), Path("/sys")) if folder.is_dir()}
    for file in sources.files:
        if file.path is not None:
            status = file.path.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_dev in kernel:
                raise OtherTextError(f"{file.label} is not an ordinary file")
    size = sum(_size(file) for file in sources.files)
    if size < recorded.bytes or (size > recorded.bytes and not sources.is_collection):  # a collection's can be left out
        raise _other_text(sources, recorded)


def _same_text(sources: Sources, found: Recorded, recorded: Recorded | None) -> None:
    if recorded is not None and found != recorded:
        raise _other_text(sources, recorded)


def _other_text(sources: Sources, recorded: Recorded) -> OtherTextError:
    return OtherTextError(
        f"{sources.name} is not the text this model was trained on: expected {recorded.bytes:,} bytes with sha256 "
        f"{recorded.sha256[:12]}…"
    )


def _hash(sources: Sources, progress: Progress | None) -> str:
    data = _Bytes(sources, progress)
    for file in sources.files:
        for _ in data.blocks(file):
            pass
    return data.content.hexdigest()


def _encode_into(work: Path, sources: Sources, settings: _Settings, progress: Progress | None) -> tuple[str, dict[str, Any]]:
    """Write ``ids.bin``; return the sha256 of all the files' bytes, and what is to be kept beside the ids."""
    data = _Bytes(sources, progress)
    with IdsWriter(work / _IDS) as writer:
        read = _read(data, sources, settings, writer)
        width = writer.finish()
        # Nothing writes to it again. Without the permission to, an accident cannot shorten a file that a run has mapped.
        os.fchmod(writer.fileno(), 0o400)
        os.fsync(writer.fileno())  # or a power failure could leave a file of the right size, full of zeros
        meta = {
            "format": _FORMAT,
            "settings": asdict(settings),
            "width": width,
            "characters": writer.characters,
            "ids_sha256": writer.digest(),
            "alphabet": writer.alphabet,
            "sha256": data.read.hexdigest(),
            "bytes": data.done_of_read,
            **read,
        }
    return data.content.hexdigest(), meta


def _read(data: _Bytes, sources: Sources, settings: _Settings, writer: _Writer) -> dict[str, Any]:
    """Give the text to a writer; return what became of each file."""
    lengths, skipped, line_ends, marks = [], [], 0, 0
    for file in sources.files:
        before, hash_before, done_before = writer.mark(), data.read.copy(), data.done_of_read
        blocks = data.blocks(file)
        # A card's own text is in memory, as UTF-8; the recipe's encoding is about files.
        reader = TextReader(file.label, settings.encoding if file.path else "utf-8", settings.newlines)
        try:
            for piece in _pieces(reader, blocks, settings):
                writer.append(piece)
            if writer.mark() == before:
                found = "is empty" if data.done_of_read == done_before else "holds no text"
                raise NotTextError(f"{file.label} {found}; there is nothing to learn from it")
        except NotTextError:
            if not sources.is_collection:
                raise
            for _ in blocks:  # the rest of the file is part of the content's hash
                pass
            writer.rewind(before)
            data.read, data.done_of_read = hash_before, done_before
            skipped.append(file.label)
            lengths.append(0)
        else:
            lengths.append(writer.characters - before[0])
            line_ends += reader.line_ends
            marks += reader.has_mark
    if writer.characters == 0:
        raise CorpusError(_nothing_left(sources, skipped))
    return {"file_lengths": lengths, "crlf": line_ends, "marks": marks, "skipped": skipped}


def _pieces(reader: TextReader, blocks: Iterator[bytes], settings: _Settings) -> Iterable[bytes | str]:
    if settings.unit == "byte":
        return blocks
    pieces = reader.pieces(blocks)
    if settings.normalise == "none":
        return pieces
    texts = (piece.decode("ascii") if isinstance(piece, bytes) else piece for piece in pieces)
    return normalisation(settings.normalise)(texts)


def as_corpus(text: str, *, unit: str, newlines: str, normalise: str) -> str:
    """A text in memory as :func:`encode` would read it from a file with these settings."""
    if unit == "byte":
        return text
    text = text.removeprefix("\ufeff")
    if newlines == "unix":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(normalisation(normalise)([text]))


def _blocks(file: SourceFile) -> Iterator[bytes]:
    if file.path is None:
        yield (file.text or "").encode()
        return
    # Errors of the consumer must not be taken for errors of reading: only the reading is inside `try`.
    try:
        source = file.path.open("rb", buffering=0)
    except OSError as error:
        raise CorpusError(f"cannot read {file.path}: {error.strerror}") from None
    with source:
        while True:
            try:
                block = source.read(_BLOCK)
            except OSError as error:
                raise CorpusError(f"cannot read {file.path}: {error.strerror}") from None
            if not block:
                return
            yield block


def _size(file: SourceFile) -> int:
    return file.path.stat().st_size if file.path is not None else len((file.text or "").encode())


def _nothing_left(sources: Sources, skipped: list[str]) -> str:
    names = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
    return (
        f"the corpus {sources.name} holds no text: all {len(skipped)} files are empty or not text in the stated "
        f"encoding ({names}); say which it is (data.encoding: latin-1), or read them as bytes (data.unit: byte)"
    )


# --------------------------------------------------------------------------------------------------------------------
# The cache
# --------------------------------------------------------------------------------------------------------------------


def _entry(content: str, sources: Sources, seen: list[Stamp], settings: _Settings) -> Path:
    """The cache's folder for this content. Where each file ends matters too; names only for those that are skipped."""
    key = {
        "format": _FORMAT,
        "content": content,
        "sizes": [stamp.size for stamp in seen],
        "labels": [file.label for file in sources.files] if sources.is_collection else None,
        "settings": asdict(settings),
    }
    return cache_part("encodings") / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _keep(work: Path, entry: Path, verify: bool) -> None:
    """Give a finished entry its name. If another process was faster, its entry stays, unless that is damaged."""
    try:
        work.rename(entry)
    except OSError:
        if _load(entry, verify) is not None:
            return
        if not entry.exists():
            raise
        aside = temporary_sibling(entry)
        entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        work.rename(entry)
    flush_folder(entry.parent)


def _describe(work: Path, meta: dict[str, Any]) -> None:
    """Complete an entry: what its ids mean, with a checksum, and what its file of ids looks like from outside."""
    with whole_file(work / _META, mode=0o600) as out:
        out.write(json.dumps({"checksum": _checksum(meta), "meta": meta}).encode())
    _write_stamp(work, (work / _IDS).stat())


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _stamp(status: os.stat_result) -> list[int]:
    # Unlike the time of modification, ctime cannot be set back after a change.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _write_stamp(entry: Path, status: os.stat_result) -> None:
    with whole_file(entry / _STAMP, mode=0o600) as out:
        out.write(json.dumps(_stamp(status)).encode())


def _ids_are_whole(entry: Path, ids: BufferedReader, sha256: str, verify: bool) -> bool:
    """Whether the ids are those that were written: by the look of the file, or by their checksum if it looks changed."""
    status = os.fstat(ids.fileno())
    with suppress(OSError, ValueError):
        if not verify and json.loads((entry / _STAMP).read_bytes()) == _stamp(status):
            return True
    if hashlib.file_digest(ids, "sha256").hexdigest() != sha256:
        return False
    with suppress(OSError):  # a read-only cache: hash again next time
        _write_stamp(entry, status)
    return True


def _record_use(entry: Path) -> None:
    """The entry's time of modification says when it was last used, to a day; see :func:`charlm.data.cache.prune`."""
    with suppress(OSError):
        if entry.stat().st_mtime < time.time() - _DAY:
            os.utime(entry)


def _load(entry: Path, verify: bool = False) -> Encoded | None:
    """Read an entry; ``None`` if there is none, or if it is damaged: then it is made anew.

    Args:
        verify: hash its ids even if their file looks unchanged.
    """
    try:
        record: dict[str, Any] = json.loads((entry / _META).read_bytes())
        meta = record["meta"]
        if record["checksum"] != _checksum(meta) or meta["key"] != entry.name:
            return None
        dtype, characters = dtype_of(meta["width"]), int(meta["characters"])
        with open(str(entry / _IDS), "rb") as file:  # noqa: PTH123 - a text as its name, which the map then has too
            if os.fstat(file.fileno()).st_size != characters * dtype.itemsize:
                return None
            if not _ids_are_whole(entry, file, meta["ids_sha256"], verify):
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
            crlf=int(meta["crlf"]),
            marks=int(meta["marks"]),
            skipped=tuple(meta["skipped"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left behind, which can be as large as their texts."""
    for work in folder.glob(".new-*"):
        times = [file.stat().st_mtime for file in (work, *work.glob("*")) if file.exists()]
        if max(times, default=0) < time.time() - _DAY:
            shutil.rmtree(work, ignore_errors=True)
