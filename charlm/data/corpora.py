"""Finds the files of a corpus, given a card's name (``shakespeare``) or a path to a file, a folder or a glob."""

from __future__ import annotations

import difflib
import platform
from collections.abc import Iterable
from glob import has_magic
from pathlib import Path

from charlm.config import is_path, path_of
from charlm.data.card_files import Fetched, fetch, find_verified, missing_file_error
from charlm.data.cards import Card, cards
from charlm.data.sources import SourceFile, Sources, files_under
from charlm.data.standard_library import standard_library_files
from charlm.errors import CorpusError, UsageError
from charlm.progress import Progress


def locate(
    corpus: str, folder: Path, *, download: bool = True, verify: bool = False, progress: Progress | None = None
) -> Sources:
    """Find the files of a corpus.

    Args:
        corpus: a card's name (a bare word), or a path to a file, a folder or a glob.
        folder: base of relative paths (the recipe's folder); the current folder is tried next.
        download: download the file of a card if it is not on this machine.
        verify: hash a card's file even if it looks unchanged.
        progress: counts downloaded bytes.

    Raises:
        UsageError: there is no such card or path.
        CorpusError: a text differs from its card or cannot be downloaded, or a folder has no files.
    """
    if not is_path(corpus) and not has_magic(corpus):
        card = _card(corpus, folder)
        return _from_card(corpus, card, download=download, verify=verify, progress=progress)
    wanted = path_of(corpus)
    candidates = [wanted] if wanted.is_absolute() else list(dict.fromkeys([folder.absolute() / wanted, Path.cwd() / wanted]))
    for candidate in candidates:
        if candidate.is_file():
            return Sources(wanted.name, (SourceFile(wanted.name, candidate),))
        if candidate.is_dir():
            return _from_folder(candidate)
        if candidate.exists():
            raise UsageError(f"the corpus {corpus} is neither a file nor a folder; expected a text")
    if has_magic(corpus):
        return _from_glob(corpus, wanted, [Path()] if wanted.is_absolute() else [folder.absolute(), Path.cwd()])
    places = " or ".join(str(candidate) for candidate in candidates)
    raise UsageError(f"the corpus {corpus} does not exist; looked for {places}")


def _card(name: str, folder: Path) -> Card:
    known = cards()
    if name in known:
        return known[name]
    lines = [f"there is no corpus named {name!r}"]
    if close := difflib.get_close_matches(name, known, n=1):
        lines[0] += f"; did you mean {close[0]}?"
    if any((place / name).exists() for place in (folder, Path.cwd())):
        lines.append(f"There is a file or folder with this name; to use it, write ./{name}")
    lines.append(f"Known corpora: {', '.join(known)}. For your own text, give a path (./mine.txt) or use `charlm corpus add`.")
    raise UsageError("\n".join(lines))


def _from_card(name: str, card: Card, *, download: bool, verify: bool, progress: Progress | None) -> Sources:
    if card.source == "python-stdlib":
        files, identity = standard_library_files(), f"Python {platform.python_version()} standard library"
        return Sources(name, files, card.normalise, card.split, is_collection=True, identity=identity)
    if card.text is not None:
        return Sources(name, (SourceFile(name, None, card.text),), card.normalise, card.split)
    path = find_verified(name, card, verify=verify)
    if path is None and not download:
        raise missing_file_error(name, card, [])
    found = Fetched(path) if path is not None else fetch(name, card, progress)
    notices = tuple(f"no download from {failure}" for failure in found.failures)
    return Sources(name, (SourceFile(found.path.name, found.path),), card.normalise, card.split, notices=notices)


def _from_folder(folder: Path) -> Sources:
    files = tuple(SourceFile(path.relative_to(folder).as_posix(), path) for path in files_under(folder))
    if not files:
        raise CorpusError(f"the folder {folder} contains no text files (hidden files are ignored)")
    files = tuple(sorted(files, key=lambda file: file.label))
    return Sources(folder.resolve().name, files, is_collection=True)


def _from_glob(corpus: str, wanted: Path, folders: Iterable[Path]) -> Sources:
    # Names begin at the first special character: the folders before it may be private.
    parts = wanted.parts
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    base, pattern = Path(*parts[:first]), str(Path(*parts[first:]))
    include_hidden = _is_hidden(Path(pattern))
    for folder in folders:
        root = folder / base
        try:
            found = [path.relative_to(root) for path in root.glob(pattern) if path.is_file()]
        except ValueError as error:  # such as ** within a name
            raise UsageError(f"the corpus {corpus} is not a valid pattern: {error}") from None
        labels = sorted(path.as_posix() for path in found if include_hidden or not _is_hidden(path))
        files = tuple(SourceFile(label, root / label) for label in labels)
        if files:
            return Sources(Path(pattern).as_posix(), files, is_collection=True)
    raise UsageError(f"no file matches the corpus {corpus}; in a shell, quote the pattern")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
