"""The file that a card describes: supplied by the user, in the cache, or downloaded. It is always verified."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from charlm.config import path_of
from charlm.data.cards import Card
from charlm.data.download import DownloadError, download
from charlm.data.fingerprint import sha256_of
from charlm.data.folders import cache_part
from charlm.errors import CorpusError
from charlm.files import make_private_folder
from charlm.progress import Progress


@dataclass(frozen=True)
class Fetched:
    """The verified file of a card.

    Attributes:
        path: the file.
        failures: what went wrong at other addresses before it was downloaded, one line for each.
    """

    path: Path
    failures: tuple[str, ...] = ()


def find(name: str, card: Card) -> Path | None:
    """The local file of a card, not verified; ``None`` if it must be downloaded.

    Raises:
        CorpusError: the file of one of the user's own cards no longer exists.
    """
    if card.path is not None:
        path = Path(card.path)
        if not path.is_file():
            raise CorpusError(
                f"the file of the corpus {name} no longer exists: {path}; restore it, "
                f"or use another file: charlm corpus add {name} FILE --force"
            )
        return path
    supplied = (folder / file for folder in _supplied_folders() for file in card.files)
    return next((path for path in (*supplied, _cached(card)) if path.is_file()), None)


def find_verified(name: str, card: Card, *, verify: bool = False) -> Path | None:
    """The local file of a card, if its content is right; ``None`` if it must be downloaded.

    A wrong file in the cache counts as missing, so that a download replaces it.

    Args:
        name: the card's name.
        card: the card.
        verify: hash the file even if it looks unchanged.

    Raises:
        CorpusError: a file supplied by the user is missing or has other content.
    """
    path = find(name, card)
    if path is None:
        return None
    size = path.stat().st_size
    sha256 = sha256_of(path, verify=verify)
    if size == card.bytes and sha256 == card.sha256:
        return path
    if card.files and path == _cached(card):
        return None
    if card.path is not None:
        advice = f"if the change is intended, add the file again: charlm corpus add {name} {path} --force"
    else:
        advice = "remove or replace this file; to use it as your own text, set corpus to its path"
    raise CorpusError(
        f"{path} is not the text of the corpus {name}\n"
        f"  expected {card.bytes:,} bytes, sha256 {card.sha256}\n"
        f"  found    {size:,} bytes, sha256 {sha256}\n"
        f"  {advice}"
    )


def fetch(name: str, card: Card, progress: Progress | None = None) -> Fetched:
    """Return the verified file of a card: a local one, else download it into the cache.

    A download has a temporary name until it is complete and verified, so an interrupted one is never used.

    Args:
        name: the card's name.
        card: the card.
        progress: counts downloaded bytes.

    Raises:
        CorpusError: a local file differs from the card, or no download succeeds; the message says how to supply the file.
    """
    if (found := find_verified(name, card)) is not None:
        return Fetched(found)
    target = _cached(card)
    try:
        make_private_folder(target.parent)
        return Fetched(target, tuple(download(card, target, progress)))
    except DownloadError as error:
        raise missing_file_error(name, card, error.failures) from None
    except OSError as error:
        raise CorpusError(
            f"cannot write to the cache {target.parent}: {error.strerror}; set CHARLM_CACHE to a writable folder"
        ) from None


def missing_file_error(name: str, card: Card, failures: list[str]) -> CorpusError:
    """The error for a card whose file is not on this machine; it lists the ways to supply it.

    Args:
        name: the card's name.
        card: the card.
        failures: one line for each failed download; empty if none was tried.
    """
    lines = [f"the text of the corpus {name} is not on this machine"]
    lines[0] += " and could not be downloaded" if failures else ""
    lines += [f"  tried {failure}" for failure in failures] or [f"  address: {url}" for url in card.urls]
    lines.append(f"  expected {card.files[0]}, {card.bytes:,} bytes, sha256 {card.sha256}")
    if len(card.members) > 1:
        lines.append(f"  it consists of the archive's files {', '.join(card.members)}, joined in this order")
    elif card.members:
        lines.append(f"  it is the file {card.members[0]} of the archive, unpacked")
    lines.append("To supply it, do one of these:")
    lines.append(f"  save it in a folder as {' or '.join(card.files)}, and set CHARLM_CORPORA to that folder")
    lines.append(f"  copy it to {_cached(card)}")
    lines.append("  use your own file instead: charlm corpus add NAME FILE, then corpus: NAME")
    if not failures:
        lines.append(f"With a network: charlm corpus fetch {name}")
    return CorpusError("\n".join(lines))


def _supplied_folders() -> list[Path]:
    return [path_of(folder) for folder in os.environ.get("CHARLM_CORPORA", "").split(os.pathsep) if folder]


def _cached(card: Card) -> Path:
    return cache_part("corpora") / card.files[0]
