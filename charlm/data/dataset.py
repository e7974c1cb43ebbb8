"""A text ready to be learnt: its vocabulary, its training, validation and test parts, and what to tell the user.

Data flows: corpora (where the text is) → encoding (indices on disk) → here (ids of a vocabulary, cut into parts) → streams.
"""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from charlm.config import DataSection, LoadedRecipe, SplitFiles, path_of
from charlm.data.corpora import SourceFile, Sources, locate
from charlm.data.encoding import Encoded, Recorded, encode
from charlm.data.splits import DEFAULT_SPLIT, split_offsets
from charlm.data.vocabulary import Vocabulary, describe_characters, utf8
from charlm.errors import CorpusError, UsageError
from charlm.files import whole_file
from charlm.progress import Progress

_BLOCK = 1 << 22  # characters counted at a time
_REMEMBER_COUNTS_FROM = 1 << 24  # counting less than this is quicker than a file


@dataclass(frozen=True)
class Text:
    """A stretch of encoded text, read as ids of a vocabulary. Nothing is copied until it is sliced.

    Attributes:
        indices: ``(N,)`` indices into the text's alphabet, usually a memory map.
        lookup: alphabet index → id.
        seen_once: alphabet index → whether the training text holds that character exactly once.
    """

    indices: npt.NDArray[np.unsignedinteger]
    lookup: npt.NDArray[np.int64]
    seen_once: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> Text:
        return Text(self.indices[part], self.lookup, self.seen_once)

    def ids(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The ids of the characters start … stop − 1."""
        return np.asarray(self.lookup[self.indices[start:stop]], dtype=np.int64)

    def once(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of these characters occur once in the training text."""
        return np.asarray(self.seen_once[self.indices[start:stop]], dtype=np.bool_)


@dataclass(frozen=True)
class Dataset:
    """A corpus, encoded and cut.

    Attributes:
        name: of the card or the file; never an absolute path.
        identity: what else fixes the text, such as a Python version; often empty.
        normalise: the normalisation that was applied.
        splits: ``train``, ``validation``, ``test`` → (first character, one past the last).
        unknown: ``validation``, ``test`` → how many of their characters the vocabulary lacks.
        notices: sentences about what was read otherwise than it stands in the files.
    """

    name: str
    identity: str
    normalise: str
    encoded: Encoded
    vocabulary: Vocabulary
    splits: dict[str, tuple[int, int]]
    unknown: dict[str, int]
    seen_once: npt.NDArray[np.bool_]
    notices: tuple[str, ...]

    def text(self, split: str) -> Text:
        """One part of the corpus.

        Raises:
            UsageError: that part is empty.
        """
        start, stop = self.splits[split]
        if stop - start < 2:
            raise UsageError(
                f"the {split} part of {self.name} has {stop - start} character{'s' * (stop - start != 1)}, "
                "and a figure needs two (see data.split)"
            )
        return Text(self.encoded.ids[start:stop], self.vocabulary.lookup(self.encoded.alphabet), self.seen_once)

    def fingerprint(self) -> dict[str, object]:
        """What identifies this text in a checkpoint."""
        return {
            "name": self.name,
            "identity": self.identity,
            "normalise": self.normalise,
            "sha256": self.encoded.sha256,
            "bytes": self.encoded.bytes,
            "characters": self.encoded.characters,
            "splits": {name: list(offsets) for name, offsets in self.splits.items()},
        }


def open_dataset(
    loaded: LoadedRecipe,
    *,
    vocabulary: Vocabulary | None = None,
    grow: bool = False,
    verify: bool = False,
    recorded: Recorded | None = None,
    fetch_progress: Progress | None = None,
    encode_progress: Progress | None = None,
) -> Dataset:
    """Find the recipe's corpus, encode it (or find it encoded), and cut it.

    Args:
        vocabulary: that of a checkpoint; ``None``: made from the training part.
        grow: add the training part's own characters to ``vocabulary``.
        verify: hash the files even if they look unchanged.
        recorded: what the text must be; see :func:`charlm.data.encoding.encode`.

    Raises:
        OtherTextError: the files are not what was ``recorded``.
        UsageError: no such corpus, or a split that it cannot have.
        CorpusError: the text cannot be had or read.
    """
    section = loaded.recipe.data
    sources = locate(loaded.recipe.corpus, loaded.folder, verify=verify, progress=fetch_progress)
    first_of_part: dict[str, int] = {}
    if isinstance(section.split, SplitFiles):
        sources, first_of_part = _with_split_files(sources, section.split, loaded.folder)
    encoded = _encode(sources, section, sources.normalise, verify, encode_progress, recorded)
    splits = _splits(encoded, section, sources, first_of_part)
    return _cut(sources, encoded, splits, section, vocabulary, grow)


def open_text(path: str, section: DataSection, normalise: str, vocabulary: Vocabulary) -> tuple[Text, Encoded]:
    """Read one whole file (``-``: standard input) as a model with these settings would have read it.

    Raises:
        UsageError: there is no such file.
        CorpusError: it cannot be read, or is too short to score.
    """
    if path != "-":
        found = path_of(path)
        if not found.exists():
            raise UsageError(f"the file {path} does not exist")
        if found.is_dir():
            raise UsageError(f"{path} is a folder; name one file to score")
        return _open_file(found, path, section, normalise, vocabulary)
    with tempfile.TemporaryDirectory(prefix="charlm-") as folder:
        copy = Path(folder) / "standard input"
        copy.write_bytes(sys.stdin.buffer.read())
        return _open_file(copy, "standard input", section, normalise, vocabulary)


def _open_file(path: Path, label: str, section: DataSection, normalise: str, vocabulary: Vocabulary) -> tuple[Text, Encoded]:
    sources = Sources(label, (SourceFile(label, path, None),), normalise, None, False, "")
    encoded = _encode(sources, section, normalise, False, None)
    if encoded.characters < 2:
        raise CorpusError(f"{label} has {encoded.characters} character; at least two are needed, the first is not scored")
    nothing_once = np.zeros(len(encoded.alphabet), dtype=np.bool_)
    return Text(encoded.ids, vocabulary.lookup(encoded.alphabet), nothing_once), encoded


def text_in_memory(text: str, vocabulary: Vocabulary) -> Text:
    """A text that is not in a file, as ids of a vocabulary; unknown characters are ``<unk>``."""
    if vocabulary.unit == "byte":
        symbols = np.frombuffer(utf8(text), dtype=np.uint8).astype(np.uint32)
    else:
        symbols = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.dtype("<u4"))
    alphabet, indices = np.unique(symbols, return_inverse=True)
    return Text(indices.astype(np.uint32), vocabulary.lookup(alphabet), np.zeros(len(alphabet), dtype=np.bool_))


def _encode(
    sources: Sources,
    section: DataSection,
    normalise: str,
    verify: bool,
    progress: Progress | None,
    recorded: Recorded | None = None,
) -> Encoded:
    return encode(
        sources,
        unit=section.unit,
        encoding=section.encoding,
        newlines=section.newlines,
        normalise=section.normalise or normalise,
        verify=verify,
        recorded=recorded,
        progress=progress,
    )


def _with_split_files(sources: Sources, split: SplitFiles, folder: Path) -> tuple[Sources, dict[str, int]]:
    """Append the files of ``data.split`` and remember with which file each part begins."""
    files, first = list(sources.files), {}
    for part, path in (("validation", split.validation), ("test", split.test)):
        first[part] = len(files)
        if path is not None:
            files += locate(path, folder).files
    joined = Sources(sources.name, tuple(files), sources.normalise, sources.split, sources.is_collection, sources.identity)
    return joined, first


def _splits(
    encoded: Encoded, section: DataSection, sources: Sources, first_of_part: dict[str, int]
) -> dict[str, tuple[int, int]]:
    if encoded.characters < 2:
        raise CorpusError(
            f"{sources.name} has {encoded.characters} character; a model predicts each character from the one before, "
            "so at least two are needed"
        )
    if isinstance(section.split, SplitFiles):
        ends = np.cumsum([0, *encoded.file_lengths])
        validation, test = int(ends[first_of_part["validation"]]), int(ends[first_of_part["test"]])
        return {"train": (0, validation), "validation": (validation, test), "test": (test, encoded.characters)}
    splits = split_offsets(encoded.characters, section.split or sources.split or DEFAULT_SPLIT)
    start, stop = splits["train"]
    if stop - start < 2:
        raise UsageError(f"the training part of {sources.name} ends before its second character; see data.split")
    return splits


def _cut(
    sources: Sources,
    encoded: Encoded,
    splits: dict[str, tuple[int, int]],
    section: DataSection,
    vocabulary: Vocabulary | None,
    grow: bool,
) -> Dataset:
    counts = {name: count(encoded, *offsets) for name, offsets in splits.items()}
    if section.unit == "byte":
        vocabulary = Vocabulary.of_bytes()
    elif vocabulary is None or grow:
        own = Vocabulary.of_counts(encoded.alphabet.tolist(), counts["train"].tolist(), section.min_count)
        vocabulary = own if vocabulary is None else vocabulary.grown(own)
        if not vocabulary.symbols:
            raise UsageError(f"no character of {sources.name} occurs {section.min_count:,} times (data.min_count)")
    known = np.array([vocabulary.id_of(int(symbol)) is not None for symbol in encoded.alphabet], dtype=np.bool_)
    unknown = {name: int(counts[name][~known].sum()) for name in splits}
    if section.unknown == "error" and any(unknown.values()):
        strangers = encoded.alphabet[~known & (sum(counts.values()) > 0)]
        named = describe_characters("".join(chr(c) for c in strangers))
        raise CorpusError(
            f"{sources.name} has characters outside the vocabulary of its training part: {named}; "
            "data.unknown: map would read them as <unk> and count them"
        )
    once = (counts["train"] == 1) & known & (section.unit == "char")
    return Dataset(
        name=sources.name,
        identity=sources.identity,
        normalise=section.normalise or sources.normalise,
        encoded=encoded,
        vocabulary=vocabulary,
        splits=splits,
        unknown=unknown,
        seen_once=once,
        notices=tuple(_notices(encoded, splits)),
    )


def _notices(encoded: Encoded, splits: dict[str, tuple[int, int]]) -> list[str]:
    notices = []
    if encoded.marks:
        notices.append("the byte-order mark at the start was left out")
    if encoded.crlf:
        notices.append(f"{encoded.crlf:,} line ends CRLF or CR were read as LF (data.newlines: keep would leave them)")
    if encoded.skipped:
        few = ", ".join(encoded.skipped[:3])
        notices.append(f"left out as empty or not text: {len(encoded.skipped):,} of the files, such as {few}")
    unused = encoded.characters - max(stop for _, stop in splits.values())
    if unused:
        notices.append(f"the last {unused:,} characters are in no part of the split")
    return notices


def count(encoded: Encoded, start: int, stop: int) -> npt.NDArray[np.int64]:
    """How often each alphabet index occurs from ``start`` to ``stop``; remembered beside large encodings."""
    remembered: Path | None = None
    if stop - start >= _REMEMBER_COUNTS_FROM and isinstance(encoded.ids, np.memmap) and encoded.ids.filename:
        remembered = Path(encoded.ids.filename).with_name(f"counts-{start}-{stop}.npy")
        if (known := _read_counts(remembered, len(encoded.alphabet), stop - start)) is not None:
            return known
    total = np.zeros(len(encoded.alphabet), dtype=np.int64)
    for block in range(start, stop, _BLOCK):
        found = np.bincount(encoded.ids[block : min(stop, block + _BLOCK)], minlength=len(total))
        if len(found) > len(total):
            raise CorpusError("the encoded text in the cache is damaged: start again with --verify, which encodes it again")
        total += found
    if remembered is not None and remembered.parent.is_dir():  # it can have been pruned since
        with suppress(OSError), whole_file(remembered, mode=0o600) as file:  # a read-only cache: count again next time
            file.write(_npy(total))
    return total


def _npy(counts: npt.NDArray[np.int64]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, counts)
    return buffer.getvalue()


def _read_counts(path: Path, symbols: int, characters: int) -> npt.NDArray[np.int64] | None:
    """Counts that were written by :func:`count`; ``None`` if there are none, or if they cannot be those of this text."""
    expected = _npy(np.zeros(symbols, dtype=np.int64))
    header = expected[: len(expected) - 8 * symbols]
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) != len(expected) or not data.startswith(header):
        return None
    counts = np.frombuffer(data, dtype=np.int64, offset=len(header))
    return counts if counts.min() >= 0 and counts.sum() == characters else None
