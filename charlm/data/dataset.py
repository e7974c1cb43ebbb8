"""An encoded corpus with its vocabulary and its training, validation and test parts.

Data flow: corpora (files) → encoding (indices on disk) → dataset (ids of a vocabulary, splits) → streams (batches).
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from charlm.config import DataSection, LoadedRecipe, SplitFiles, path_of
from charlm.data.corpora import locate
from charlm.data.counts import count_symbols
from charlm.data.encoded import Encoded, TextDigest
from charlm.data.encoding import encode
from charlm.data.records import record_bounds, separator_of
from charlm.data.sources import SourceFile, Sources
from charlm.data.splits import DEFAULT_SPLIT, split_offsets, split_records
from charlm.data.symbols import CodePoints, Symbols
from charlm.data.vocabulary import Vocabulary, describe_characters
from charlm.errors import CorpusError, UsageError
from charlm.progress import Progress


@dataclass(frozen=True)
class Text:
    """A part of an encoded text, read as ids of a vocabulary. Data are copied only by :meth:`ids`.

    Attributes:
        indices: ``(N,)`` indices into the text's alphabet, usually a memory map.
        lookup: alphabet index → id.
        seen_once: alphabet index → whether that character occurs exactly once in the training text.
        separator: the index of the separator in a text of records (see :mod:`charlm.data.records`); ``None``: one stream.
    """

    indices: npt.NDArray[np.unsignedinteger]
    lookup: npt.NDArray[np.int64]
    seen_once: npt.NDArray[np.bool_]
    separator: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> Text:
        return replace(self, indices=self.indices[part])

    def bounds(self) -> npt.NDArray[np.int64]:
        """The places of the separators of a text of R records, ``(R + 1,)``, ascending."""
        assert self.separator is not None
        return record_bounds(self.indices, self.separator)

    def require_one_stream(self) -> None:
        """Refuse a text of several records, for questions that carry the state through a whole text.

        Raises:
            UsageError: there are several records.
        """
        if self.separator is not None and (count := len(self.bounds()) - 1) > 1:
            raise UsageError(
                f"the text has {count:,} records, between which the model's state is reset (data.records), but this question "
                "reads a text as one stream; give a text with one record"
            )

    def ids(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The ids of the characters start … stop − 1."""
        return np.asarray(self.lookup[self.indices[start:stop]], dtype=np.int64)

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The ids of the characters at these positions, in their shape."""
        return self.lookup[np.asarray(self.indices)[positions]]

    def occurs_once_at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each of the characters at these positions occurs exactly once in the training text."""
        return self.seen_once[np.asarray(self.indices)[positions]]

    def occurs_once(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Whether each of the characters start … stop − 1 occurs exactly once in the training text."""
        return np.asarray(self.seen_once[self.indices[start:stop]], dtype=np.bool_)


@dataclass(frozen=True)
class Dataset:
    """An encoded corpus with its vocabulary and splits.

    Attributes:
        name: name of the card or file; never an absolute path.
        identity: other facts that determine the text, such as a Python version; often empty.
        normalise: the normalisation that was applied.
        splits: ``train``, ``validation``, ``test`` → (first character, one past the last).
        unknown: ``train``, ``validation``, ``test`` → number of characters outside the vocabulary.
        seen_once: alphabet index → whether that character occurs exactly once in the training part.
        notices: how reading changed the text, as sentences for the user.
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
            UsageError: that part has fewer than two characters.
        """
        start, stop = self.splits[split]
        if stop - start < 2:
            raise UsageError(
                f"the {split} part of {self.name} has {stop - start} character{'s' * (stop - start != 1)}, "
                "but scoring needs at least two (see data.split)"
            )
        alphabet = self.encoded.alphabet
        return Text(
            self.encoded.ids[start:stop],
            self.vocabulary.lookup(alphabet),
            self.seen_once,
            _index_of(alphabet, self.vocabulary.separator),
        )

    def fingerprint(self) -> dict[str, object]:
        """The description of this text in a checkpoint."""
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
    recorded: TextDigest | None = None,
    fetch_progress: Progress | None = None,
    encode_progress: Progress | None = None,
) -> Dataset:
    """Find the recipe's corpus, encode it or find it in the cache, and split it.

    Args:
        loaded: the recipe, and the folder that its paths are relative to.
        vocabulary: from a checkpoint; ``None``: built from the training part.
        grow: add the characters of the training part to ``vocabulary``.
        verify: hash the files even if they look unchanged.
        recorded: size and sha256 that a checkpoint expects; see :mod:`charlm.data.verification`.
        fetch_progress: counts downloaded bytes.
        encode_progress: counts encoded bytes.

    Raises:
        TextMismatchError: the files are not the ``recorded`` text.
        UsageError: there is no such corpus, or the split does not fit it.
        CorpusError: the text cannot be downloaded or read.
    """
    section = loaded.recipe.data
    sources = locate(loaded.recipe.corpus, loaded.folder, verify=verify, progress=fetch_progress)
    first_of_part: dict[str, int] = {}
    if isinstance(section.split, SplitFiles):
        sources, first_of_part = _with_split_files(sources, section.split, loaded.folder)
    encoded = _encode(sources, section, sources.normalise, verify, encode_progress, recorded)
    splits = _splits(encoded, section, sources, first_of_part)
    return _build_dataset(sources, encoded, splits, section, vocabulary, grow)


def open_text(path: str, section: DataSection, normalise: str, vocabulary: Vocabulary) -> tuple[Text, Encoded]:
    """Read a whole file (``-``: standard input) with the data settings of a model.

    Args:
        path: of the file.
        section: ``data`` of the model's recipe.
        normalise: the normalisation that its corpus had, if the recipe sets none.
        vocabulary: of the model.

    Raises:
        UsageError: there is no such file.
        CorpusError: it cannot be read, or has fewer than two characters.
    """
    if path != "-":
        found = path_of(path)
        if not found.exists():
            raise UsageError(f"the file {path} does not exist")
        if found.is_dir():
            raise UsageError(f"{path} is a folder; expected a file")
        return _open_file(found, path, section, normalise, vocabulary)
    with tempfile.TemporaryDirectory(prefix="charlm-") as folder:
        copy = Path(folder) / "standard input"
        copy.write_bytes(sys.stdin.buffer.read())
        return _open_file(copy, "standard input", section, normalise, vocabulary)


def _open_file(path: Path, label: str, section: DataSection, normalise: str, vocabulary: Vocabulary) -> tuple[Text, Encoded]:
    sources = Sources(label, (SourceFile(label, path, None),), normalise, None, False, "")
    encoded = _encode(sources, section, normalise, False, None)
    if encoded.characters < 2:
        raise CorpusError(f"{label} has {encoded.characters} character; at least two are needed: the first is not scored")
    none_once = np.zeros(len(encoded.alphabet), dtype=np.bool_)
    separator = _index_of(encoded.alphabet, vocabulary.separator)
    return Text(encoded.ids, vocabulary.lookup(encoded.alphabet), none_once, separator), encoded


def text_in_memory(text: str, vocabulary: Vocabulary) -> Text:
    """A string as ids of a vocabulary; unknown characters are ``<unk>``."""
    symbols = Symbols.of_text(text, vocabulary.unit)
    none_once = np.zeros(len(symbols.alphabet), dtype=np.bool_)
    separator = _index_of(symbols.alphabet, vocabulary.separator)
    return Text(symbols.indices, vocabulary.lookup(symbols.alphabet), none_once, separator)


def _index_of(alphabet: CodePoints, separator: int | None) -> int | None:
    """The index of the separator in the alphabet of a text of records; ``None`` for any other text."""
    return None if separator is None else int(np.flatnonzero(alphabet == separator)[0])


def _encode(
    sources: Sources,
    section: DataSection,
    normalise: str,
    verify: bool,
    progress: Progress | None,
    recorded: TextDigest | None = None,
) -> Encoded:
    return encode(
        sources,
        unit=section.unit,
        encoding=section.encoding,
        newlines=section.newlines,
        normalise=section.normalise or normalise,
        records=section.records,
        verify=verify,
        recorded=recorded,
        progress=progress,
    )


def _with_split_files(sources: Sources, split: SplitFiles, folder: Path) -> tuple[Sources, dict[str, int]]:
    """Append the files of ``data.split``; return also the index of the first file of each part."""
    files, first = list(sources.files), {}
    for part, path in (("validation", split.validation), ("test", split.test)):
        first[part] = len(files)
        if path is not None:
            files += locate(path, folder).files
    return replace(sources, files=tuple(files)), first


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
        splits = {"train": (0, validation), "validation": (validation, test), "test": (test, encoded.characters)}
    else:
        splits = split_offsets(encoded.characters, section.split or sources.split or DEFAULT_SPLIT)
    if (separator := _index_of(encoded.alphabet, separator_of(section))) is not None:
        bounds = record_bounds(encoded.ids, separator)
        if len(bounds) < 3:
            is_escaped = "\\n" in (section.records or "")
            hint = '; \\n is a line end only in double quotes: data.records: "\\n"' if is_escaped else ""
            raise UsageError(
                f"{sources.name} is a single record: data.records: {section.records} does not cut it; remove data.records to "
                f"read it as one stream{hint}"
            )
        splits = split_records(splits, bounds)
    start, stop = splits["train"]
    if stop - start < 2 and not isinstance(section.split, SplitFiles):
        raise UsageError(f"the training part of {sources.name} ends before its second character; see data.split")
    return splits


def _build_dataset(
    sources: Sources,
    encoded: Encoded,
    splits: dict[str, tuple[int, int]],
    section: DataSection,
    vocabulary: Vocabulary | None,
    grow: bool,
) -> Dataset:
    counts = {name: count_symbols(encoded, *offsets) for name, offsets in splits.items()}
    if section.unit == "byte":
        vocabulary = Vocabulary.of_bytes()
    elif vocabulary is None or grow:
        own = Vocabulary.from_counts(encoded.alphabet.tolist(), counts["train"].tolist(), section.min_count)
        vocabulary = own if vocabulary is None else vocabulary.union(own)
        if not vocabulary.symbols:
            raise UsageError(f"no character of {sources.name} occurs {section.min_count:,} times (data.min_count)")
    if (separator := separator_of(section)) != vocabulary.separator:
        vocabulary = vocabulary.with_separator(separator)
    known = np.array([vocabulary.id_of(int(symbol)) is not None for symbol in encoded.alphabet], dtype=np.bool_)
    unknown = {name: int(counts[name][~known].sum()) for name in splits}
    if section.unknown == "error" and any(unknown.values()):
        outside = encoded.alphabet[~known & (sum(counts.values()) > 0)]
        named = describe_characters("".join(chr(c) for c in outside))
        raise CorpusError(
            f"{sources.name} has characters outside the vocabulary of its training part: {named}; "
            "data.unknown: map reads them as <unk> and counts them"
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
        notices=(*sources.notices, *_notices(encoded, splits)),
    )


def _notices(encoded: Encoded, splits: dict[str, tuple[int, int]]) -> list[str]:
    notices = []
    if encoded.byte_order_marks:
        notices.append("removed the byte-order mark at the start")
    if encoded.converted_line_ends:
        notices.append(
            f"converted {encoded.converted_line_ends:,} CRLF or CR line ends to LF (data.newlines: keep disables this)"
        )
    if encoded.skipped:
        few = ", ".join(encoded.skipped[:3]) + (", …" if len(encoded.skipped) > 3 else "")
        count = len(encoded.skipped)
        notices.append(f"skipped {count:,} file{'s' * (count != 1)} (empty or not text): {few}")
    if encoded.empty_records:
        notices.append(f"dropped {encoded.empty_records:,} empty record{'s' * (encoded.empty_records != 1)}")
    unused = encoded.characters - max(stop for _, stop in splits.values())
    if unused:
        notices.append(f"the last {unused:,} characters are not used: data.split does not cover them")
    return notices
