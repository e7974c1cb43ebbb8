"""Corpora: where a text is found.

A corpus is named by a card (``shakespeare``; a YAML file that says where the text comes from and how to know it) or by
a path to a file, a folder or a glob. Nothing here reads a text, except to verify it against its card.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import os
import platform
import re
import sysconfig
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from charlm.config import check_split, is_path, path_of
from charlm.data.fingerprint import sha256_of
from charlm.data.folders import cache_folder as cache_folder
from charlm.data.folders import cache_part
from charlm.data.folders import data_folder as data_folder
from charlm.data.normalisation import normalisation
from charlm.errors import CorpusError, RecipeError, UsageError
from charlm.files import make_private_folder, whole_file
from charlm.progress import Progress
from charlm.resources import shipped_files
from charlm.yaml_text import dump_yaml, parse_yaml

_BLOCK = 1 << 18  # bytes
_TIMEOUT = 30  # seconds without a byte


class Card(BaseModel):
    """What is known about a corpus. The text is one of: files to find or download, ``text``, ``source``, ``path``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    description: str
    """What the text is, in one line."""
    licence: str
    """Under which terms it may be used."""
    urls: list[str] = []
    """Addresses to download it from, tried in this order."""
    sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$")] = None
    """Of the file as downloaded."""
    bytes: Annotated[int | None, Field(ge=1)] = None
    """Size of the file as downloaded."""
    files: list[str] = []
    """Names under which a folder of ``CHARLM_CORPORA`` may hold it; the first is its name in the cache."""
    text: str | None = None
    """The text itself, where it is short."""
    source: Literal["python-stdlib"] | None = None
    """Where it comes from instead of a download."""
    path: str | None = None
    """The file, of a card that `charlm corpus add` wrote on this machine."""
    normalise: str = "none"
    """What is done to the characters unless a recipe says otherwise."""
    split: list[float] | None = None
    """Training, validation and test unless a recipe says otherwise."""

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        ways = [self.text is not None, self.source is not None, self.path is not None, bool(self.files or self.urls)]
        if sum(ways) != 1:
            raise ValueError("expected one of: files and urls, text, source, path")
        if (self.files or self.urls or self.path) and (self.sha256 is None or self.bytes is None):
            raise ValueError("a file needs its sha256 and bytes")
        if self.urls and not self.files:
            raise ValueError("urls need files: the first is the download's name in the cache")
        if any(not name or name.startswith(".") or "/" in name or "\\" in name for name in self.files):
            raise ValueError("files are plain names without a folder")
        try:
            normalisation(self.normalise)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        if self.split is not None:
            check_split(self.split)
        return self


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus, or the text that a card holds itself.

    Attributes:
        label: its name in messages, relative to the corpus.
        path: where it lies; ``None`` if ``text`` is given.
        text: the text itself.
    """

    label: str
    path: Path | None
    text: str | None = None


@dataclass(frozen=True)
class Sources:
    """The files of a corpus, found.

    Attributes:
        name: the card's name, or that of the file, folder or glob, without any absolute path.
        files: in the order in which they are read.
        normalise: the card's, else ``none``.
        split: the card's, if it has one.
        is_collection: many files, of which those that are not text are skipped and counted. In a single file that is an
            error.
        identity: what else decides the content, such as ``Python 3.11.7 standard library``.
    """

    name: str
    files: tuple[SourceFile, ...]
    normalise: str = "none"
    split: list[float] | None = None
    is_collection: bool = False
    identity: str = ""


# --------------------------------------------------------------------------------------------------------------------
# Cards
# --------------------------------------------------------------------------------------------------------------------


def cards() -> dict[str, Card]:
    """Every card by its name: those that travel with charlm, then the user's own.

    Raises:
        CorpusError: a card is damaged; names its file.
    """
    files = shipped_files("corpora")
    for path in sorted(_own_cards().glob("*.yaml")):
        files.setdefault(path.stem, path)  # a card that a newer charlm ships wins over the user's
    return {name: _read_card(path) for name, path in files.items()}


def add_card(name: str, path: Path, *, description: str = "", licence: str = "unknown", overwrite: bool = False) -> Path:
    """Write a card for a file on this machine, so that recipes can say ``corpus: NAME``.

    Returns:
        The card's own file.

    Raises:
        UsageError: the name is not ``[a-z0-9-]+`` or is taken, or there is no such file.
        CorpusError: the file is empty or cannot be read, or the card cannot be written.
    """
    if not re.fullmatch("[a-z0-9-]+", name):
        raise UsageError(f"a corpus cannot be called {name!r}: expected small letters, digits and hyphens, such as my-text")
    if name in shipped_files("corpora"):
        raise UsageError(f"{name!r} is a corpus that charlm brings; choose another name")
    target = _own_cards() / f"{name}.yaml"
    if target.exists() and not overwrite:
        raise UsageError(f"there is a card {name!r} already, {target}; choose another name, or replace it with --force")
    if not path.is_file():
        raise UsageError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; expected a text file")
    path = path.resolve()
    size = path.stat().st_size
    if size == 0:
        raise CorpusError(f"{path} is empty; there is nothing to learn from it")
    card = Card(
        description=description or path.name,
        licence=licence,
        path=str(path),
        sha256=sha256_of(path, verify=True),
        bytes=size,
    )
    try:
        with whole_file(target) as file:
            file.write(dump_yaml(card.model_dump(exclude_defaults=True)).encode())
    except OSError as error:
        raise CorpusError(
            f"cannot write the card {target}: {error.strerror}; set CHARLM_DATA to a folder that can be written"
        ) from None
    return target


def _own_cards() -> Path:
    return data_folder() / "corpora"


def _read_card(path: Path) -> Card:
    try:
        return Card.model_validate(parse_yaml(path.read_text(encoding="utf-8-sig"), str(path)))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'card'}: {each['msg']}" for each in error.errors()]
    except RecipeError as error:
        raise CorpusError(f"{error}; correct this card or delete it") from None
    except (OSError, UnicodeDecodeError) as error:
        problems = [str(error)]
    raise CorpusError(f"{path} is not a corpus card ({'; '.join(problems)}); correct it or delete it")


# --------------------------------------------------------------------------------------------------------------------
# Finding
# --------------------------------------------------------------------------------------------------------------------


def locate(corpus: str, folder: Path, *, fetch: bool = True, verify: bool = False, progress: Progress | None = None) -> Sources:
    """Find the files of a corpus.

    Args:
        corpus: a card's name (a bare word), or a path to a file, a folder or a glob.
        folder: what a relative path starts from (the recipe's folder); then the current folder is tried.
        fetch: download what a card names and this machine lacks.
        verify: hash a card's file even if it looks unchanged.
        progress: of a download.

    Raises:
        UsageError: no card or path of that name.
        CorpusError: a text that differs from its card, cannot be downloaded, or a folder without any text.
    """
    if not is_path(corpus) and not has_magic(corpus):
        card = _card(corpus, folder)
        return _of_card(corpus, card, fetch_it=fetch, verify=verify, progress=progress)
    wanted = path_of(corpus)
    candidates = [wanted] if wanted.is_absolute() else list(dict.fromkeys([folder.absolute() / wanted, Path.cwd() / wanted]))
    for candidate in candidates:
        if candidate.is_file():
            return Sources(wanted.name, (SourceFile(wanted.name, candidate),))
        if candidate.is_dir():
            return _of_folder(candidate)
        if candidate.exists():
            raise UsageError(f"the corpus {corpus} is neither a file nor a folder; expected a text")
    if has_magic(corpus):
        return _of_glob(corpus, wanted, [Path()] if wanted.is_absolute() else [folder.absolute(), Path.cwd()])
    places = " or ".join(str(candidate) for candidate in candidates)
    raise UsageError(f"the corpus {corpus} does not exist; looked for {places}")


def find(name: str, card: Card) -> Path | None:
    """Where a card's file lies on this machine, whatever it holds; ``None`` if it would have to be downloaded.

    Raises:
        CorpusError: the file of one of the user's own cards is gone.
    """
    if card.path is not None:
        path = Path(card.path)
        if not path.is_file():
            raise CorpusError(
                f"the corpus {name} was {path}, which is gone; put it back, "
                f"or name another file: charlm corpus add {name} FILE --force"
            )
        return path
    supplied = (folder / file for folder in _supplied_folders() for file in card.files)
    return next((path for path in (*supplied, _cached(card)) if path.is_file()), None)


def _card(name: str, folder: Path) -> Card:
    known = cards()
    if name in known:
        return known[name]
    lines = [f"no corpus is called {name!r}"]
    if close := difflib.get_close_matches(name, known, n=1):
        lines[0] += f"; did you mean {close[0]}?"
    if any((place / name).exists() for place in (folder, Path.cwd())):
        lines.append(f"There is a file or folder of that name: to read it, write ./{name}")
    lines.append(f"Known are {', '.join(known)}. A text of your own is named by a path (./mine.txt) or `charlm corpus add`.")
    raise UsageError("\n".join(lines))


def _of_card(name: str, card: Card, *, fetch_it: bool, verify: bool, progress: Progress | None) -> Sources:
    if card.source == "python-stdlib":
        files, identity = _stdlib(), f"Python {platform.python_version()} standard library"
        return Sources(name, files, card.normalise, card.split, is_collection=True, identity=identity)
    if card.text is not None:
        return Sources(name, (SourceFile(name, None, card.text),), card.normalise, card.split)
    path = _have(name, card, verify=verify)
    if path is None:
        if not fetch_it:
            raise CorpusError(_how_to_supply(name, card, []))
        path = fetch(name, card, progress)
    return Sources(name, (SourceFile(path.name, path),), card.normalise, card.split)


def _of_folder(folder: Path) -> Sources:
    files = tuple(SourceFile(path.relative_to(folder).as_posix(), path) for path in _walk(folder))
    if not files:
        raise CorpusError(f"the folder {folder} holds no text: no files, other than hidden ones")
    files = tuple(sorted(files, key=lambda file: file.label))
    return Sources(folder.resolve().name, files, is_collection=True)


def _of_glob(corpus: str, wanted: Path, folders: Iterable[Path]) -> Sources:
    # The folders before the first special character are left out of every name: they may be private.
    parts = wanted.parts
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    base, pattern = Path(*parts[:first]), str(Path(*parts[first:]))
    hidden = _is_hidden(Path(pattern))  # asked for by name
    for folder in folders:
        root = folder / base
        try:
            found = [path.relative_to(root) for path in root.glob(pattern) if path.is_file()]
        except ValueError as error:  # such as ** within a name
            raise UsageError(f"the corpus {corpus} is not a pattern: {error}") from None
        labels = sorted(path.as_posix() for path in found if hidden or not _is_hidden(path))
        files = tuple(SourceFile(label, root / label) for label in labels)
        if files:
            return Sources(Path(pattern).as_posix(), files, is_collection=True)
    raise UsageError(f"no file matches the corpus {corpus}; in a shell, put quotes around a pattern")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _walk(folder: Path, skip: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, but for hidden ones and those in folders that ``skip`` names."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise CorpusError(f"cannot read the folder {folder}: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink() and not skip(entry.name):  # a link could lead round in circles
            yield from _walk(entry, skip)


# --------------------------------------------------------------------------------------------------------------------
# The Python standard library
# --------------------------------------------------------------------------------------------------------------------

_NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload", "_bundled"}

# Generated tables say so at their head. This leaves out pydoc_data/topics.py, keyword.py, token.py, stringprep.py,
# re/_casefix.py and the tables of single-byte encodings (encodings/cp437.py and its like): 2.1 of the 12.1 MB of Python
# 3.11, and nothing that was written by hand other than a few such tables.
_GENERATED = re.compile(
    rb'auto-?generated|file is (automatically )?generated|^""" ?Python Character Mapping Codec',
    re.IGNORECASE | re.MULTILINE,
)
_HEAD = 1000  # bytes of a file that are searched for that


def _stdlib() -> tuple[SourceFile, ...]:
    """The modules of this Python's standard library, without tests, installed packages and generated tables.

    They are ordered by the sha256 of their relative path: it looks random, so that every part of a contiguous split has
    something of everything, and is the same on each machine.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = _walk(library, skip=lambda name: name in _NOT_SOURCE or name.startswith("config-"))
    files = [
        SourceFile(path.relative_to(library).as_posix(), path)
        for path in paths
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata") and not _is_generated(path)
    ]
    if not files:
        raise CorpusError(f"this Python has no standard library as source code in {library}; choose another corpus")
    return tuple(sorted(files, key=lambda file: hashlib.sha256(file.label.encode()).digest()))


def _is_generated(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _GENERATED.search(file.read(_HEAD)) is not None
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from None


# --------------------------------------------------------------------------------------------------------------------
# Files of cards: supplied, cached, downloaded; always verified
# --------------------------------------------------------------------------------------------------------------------


def fetch(name: str, card: Card, progress: Progress | None = None) -> Path:
    """Return a card's file, verified: from this machine if it is here, else downloaded into the cache.

    A download goes to a temporary name and gets its own only when it is whole and right, so that an interrupted one
    leaves nothing that could be taken for the text.

    Raises:
        CorpusError: what is found differs from the card, or no address gives it; says how else to supply it.
    """
    if (here := _have(name, card)) is not None:
        return here
    target = _cached(card)
    try:
        make_private_folder(target.parent)
    except OSError as error:
        raise _cache_error(target.parent, error) from None
    failures = []
    for url in card.urls:
        try:
            _download(url, target, card, progress)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{url}: {error}")
        else:
            return target
    raise CorpusError(_how_to_supply(name, card, failures))


def _have(name: str, card: Card, *, verify: bool = False) -> Path | None:
    """The card's file if it is on this machine. A wrong file in the cache counts as missing: a download replaces it."""
    path = find(name, card)
    if path is None:
        return None
    size = path.stat().st_size
    sha256 = sha256_of(path, verify=verify)
    if size == card.bytes and sha256 == card.sha256:
        return path
    if path == _cached_or_none(card):
        return None
    if card.path is not None:
        advice = f"if the change is wanted, add it anew: charlm corpus add {name} {path} --force"
    else:
        advice = "remove the file or put the right one there; a text of your own is better named by its path"
    raise CorpusError(
        f"{path} is not the text of the corpus {name}\n"
        f"  expected {card.bytes:,} bytes, sha256 {card.sha256}\n"
        f"  found    {size:,} bytes, sha256 {sha256}\n"
        f"  {advice}"
    )


def _supplied_folders() -> list[Path]:
    return [path_of(folder) for folder in os.environ.get("CHARLM_CORPORA", "").split(os.pathsep) if folder]


def _cached(card: Card) -> Path:
    return cache_part("corpora") / card.files[0]


def _cached_or_none(card: Card) -> Path | None:
    return _cached(card) if card.files else None


def _download(url: str, target: Path, card: Card, progress: Progress | None) -> None:
    """Download one file, verify it and give it its name.

    Raises:
        OSError, HTTPException, ValueError: the address does not give the file that the card describes.
    """
    hasher, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "charlm"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, whole_file(target, mode=0o600) as file:
        while block := response.read(_BLOCK):
            file.write(block)
            hasher.update(block)
            done += len(block)
            if card.bytes is not None and done > card.bytes:
                raise ValueError(f"gives more than the expected {card.bytes:,} bytes")
            if progress is not None:
                progress(done, card.bytes)
        if done != card.bytes:
            raise ValueError(f"gives {done:,} bytes, expected {card.bytes:,}")
        if hasher.hexdigest() != card.sha256:
            raise ValueError(f"gives another file: sha256 {hasher.hexdigest()}, expected {card.sha256}")


def _cache_error(folder: Path, error: OSError) -> CorpusError:
    return CorpusError(
        f"cannot write to the cache {folder}: {error.strerror}; set CHARLM_CACHE to a folder that can be written"
    )


def _how_to_supply(name: str, card: Card, failures: list[str]) -> str:
    lines = [f"the text of the corpus {name} is not on this machine"]
    lines[0] += " and could not be downloaded" if failures else ""
    lines += [f"  tried {failure}" for failure in failures]
    lines.append(f"  expected {card.files[0]}, {card.bytes:,} bytes, sha256 {card.sha256}")
    lines.append("To supply it, do one of these:")
    lines.append(f"  put it into a folder, as {' or '.join(card.files)}, and set CHARLM_CORPORA to that folder")
    lines.append(f"  copy it to {_cached(card)}")
    lines.append("  or name a file of your own: charlm corpus add NAME FILE, then corpus: NAME")
    if not failures:
        lines.append(f"With a network: charlm corpus fetch {name}")
    return "\n".join(lines)
