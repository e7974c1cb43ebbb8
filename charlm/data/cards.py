"""Corpus cards: YAML files that name a text, its origin, its checksum and its default settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from charlm.config import check_split
from charlm.data.fingerprint import sha256_of
from charlm.data.folders import data_folder
from charlm.data.normalisation import normalisation
from charlm.errors import CorpusError, RecipeError, UsageError
from charlm.files import whole_file
from charlm.resources import shipped_files
from charlm.yaml_text import dump_yaml, parse_yaml


class Card(BaseModel):
    """Description of a corpus. Its text has exactly one origin: ``files`` (with ``urls``), ``text``, ``source`` or ``path``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    description: str
    """One line about the text."""
    licence: str
    """Terms of use."""
    urls: list[str] = []
    """Download addresses (https), tried in this order."""
    members: list[str] = []
    """If the addresses are archives (.zip, .tar.gz, .gz): the names of their files that make up the text, in this order."""
    sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$")] = None
    """sha256 of the text: of the downloaded file, or of the members joined."""
    bytes: Annotated[int | None, Field(ge=1)] = None
    """Size of the text: of the downloaded file, or of the members joined. A larger one is never written."""
    files: list[str] = []
    """Accepted file names in the folders of ``CHARLM_CORPORA``; the first is also the name in the cache."""
    text: str | None = None
    """The text itself, if it is short."""
    source: Literal["python-stdlib"] | None = None
    """A text that is already installed on this machine."""
    path: str | None = None
    """A local file; set by `charlm corpus add`."""
    normalise: str = "none"
    """Default for ``data.normalise``."""
    split: list[float] | None = None
    """Default for ``data.split``."""

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        origins = [self.text is not None, self.source is not None, self.path is not None, bool(self.files or self.urls)]
        if sum(origins) != 1:
            raise ValueError("expected one of: files and urls, text, source, path")
        if (self.files or self.urls or self.path) and (self.sha256 is None or self.bytes is None):
            raise ValueError("a file needs its sha256 and bytes")
        if self.urls and not self.files:
            raise ValueError("urls need files: the first is the download's name in the cache")
        if any(not url.startswith("https://") for url in self.urls):
            raise ValueError("urls begin with https://")
        if self.members and not self.urls:
            raise ValueError("members need urls: the addresses of the archive")
        if any(not name or name.startswith(".") or "/" in name or "\\" in name for name in (*self.files, *self.members)):
            raise ValueError("files and members are plain names without a folder")
        try:
            normalisation(self.normalise)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        if self.split is not None:
            check_split(self.split)
        return self


class CardExistsError(UsageError):
    """The user already has a card with this name."""


def cards() -> dict[str, Card]:
    """All cards by name: first the shipped ones, then the user's.

    Raises:
        CorpusError: a card is damaged; the message names its file.
    """
    files = shipped_files("corpora")
    for path in sorted(_user_cards().glob("*.yaml")):
        files.setdefault(path.stem, path)  # a shipped card of a newer charlm takes precedence over the user's
    return {name: _read_card(path) for name, path in files.items()}


def add_card(name: str, path: Path, *, description: str = "", licence: str = "unknown", overwrite: bool = False) -> Path:
    """Write a card for a local file, so that recipes can say ``corpus: NAME``.

    Returns:
        The path of the card.

    Raises:
        CardExistsError: the user has a card of this name, and ``overwrite`` is false.
        UsageError: the name is not ``[a-z0-9-]+`` or belongs to a shipped card, or there is no such file.
        CorpusError: the file is empty or cannot be read, or the card cannot be written.
    """
    if not re.fullmatch("[a-z0-9-]+", name):
        raise UsageError(f"invalid corpus name {name!r}: expected lower-case letters, digits and hyphens, such as my-text")
    if name in shipped_files("corpora"):
        raise UsageError(f"{name!r} is a corpus shipped with charlm; choose another name")
    target = _user_cards() / f"{name}.yaml"
    if target.exists() and not overwrite:
        raise CardExistsError(f"a card named {name!r} exists already: {target}; choose another name, or overwrite it")
    if not path.is_file():
        raise UsageError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; expected a text file")
    path = path.resolve()
    size = path.stat().st_size
    if size == 0:
        raise CorpusError(f"{path} is empty; expected a text file")
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
        raise CorpusError(f"cannot write the card {target}: {error.strerror}; set CHARLM_DATA to a writable folder") from None
    return target


def remove_card(name: str) -> Path:
    """Remove a card that :func:`add_card` wrote. The text stays.

    Returns:
        The path of the card.

    Raises:
        UsageError: the user has no card of this name, or it is a shipped one.
        CorpusError: it cannot be removed.
    """
    own = {path.stem: path for path in sorted(_user_cards().glob("*.yaml"))}
    if name not in own:
        if name in shipped_files("corpora"):
            raise UsageError(f"{name!r} is a corpus shipped with charlm, which cannot be removed")
        known = f"your corpora: {', '.join(own)}" if own else "you have added none"
        raise UsageError(f"you have no corpus named {name!r}; {known}")
    try:
        own[name].unlink()
    except OSError as error:
        raise CorpusError(f"cannot remove the card {own[name]}: {error.strerror}") from None
    return own[name]


def _user_cards() -> Path:
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
