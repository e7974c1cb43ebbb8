"""The files of a corpus: names, sizes and bytes. What they contain is not interpreted here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from charlm.errors import CorpusError

_BLOCK = 1 << 20  # bytes read at a time: they fit in the processor's cache


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus, or a text stored in a card.

    Attributes:
        label: its name in messages, relative to the corpus.
        path: the file; ``None`` if ``text`` is given.
        text: the text itself.
    """

    label: str
    path: Path | None
    text: str | None = None

    def size(self) -> int:
        """Its size in bytes."""
        return self.path.stat().st_size if self.path is not None else len((self.text or "").encode())

    def blocks(self) -> Iterator[bytes]:
        """Read the file block by block. A card's text is UTF-8.

        Raises:
            CorpusError: the file cannot be read.
        """
        if self.path is None:
            yield (self.text or "").encode()
            return
        # `yield` stays outside `try`: an OSError of the consumer is not an error of this file.
        try:
            source = self.path.open("rb", buffering=0)
        except OSError as error:
            raise CorpusError(f"cannot read {self.path}: {error.strerror}") from None
        with source:
            while True:
                try:
                    block = source.read(_BLOCK)
                except OSError as error:
                    raise CorpusError(f"cannot read {self.path}: {error.strerror}") from None
                if not block:
                    return
                yield block


@dataclass(frozen=True)
class Sources:
    """The files of a corpus.

    Attributes:
        name: name of the card, file, folder or glob; never an absolute path.
        files: in reading order.
        normalise: default normalisation, from the card; ``none`` without a card.
        split: default split, from the card.
        is_collection: if true, files that are not text are skipped and counted. In a single file they are an error.
        identity: other facts that determine the content, such as ``Python 3.11.7 standard library``.
        notices: what went wrong before the files were found, for the user.
    """

    name: str
    files: tuple[SourceFile, ...]
    normalise: str = "none"
    split: list[float] | None = None
    is_collection: bool = False
    identity: str = ""
    notices: tuple[str, ...] = ()

    def size(self) -> int:
        """Size of all files together, in bytes."""
        return sum(file.size() for file in self.files)


def files_under(folder: Path, skip_folder: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, without hidden ones and without linked folders.

    Args:
        folder: where to start.
        skip_folder: subfolders to leave out, by name.

    Raises:
        CorpusError: a folder cannot be read.
    """
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise CorpusError(f"cannot read the folder {folder}: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink() and not skip_folder(entry.name):  # links can form cycles
            yield from files_under(entry, skip_folder)
