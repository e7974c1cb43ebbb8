"""The user's folders: the cache, which charlm can rebuild, data (the user's own cards) and state (the history of prompts)."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import platformdirs

from charlm.config import path_of
from charlm.errors import UsageError


def cache_folder() -> Path:
    """The folder of downloads and encodings: ``CHARLM_CACHE``, else the user's cache folder. It need not exist yet."""
    return _from_variable("CHARLM_CACHE") or platformdirs.user_cache_path("charlm", appauthor=False)


def cache_part(name: str) -> Path:
    """One folder of the cache: ``corpora``, ``encodings`` or ``fingerprints``. It need not exist yet.

    It holds copies of texts, so an existing one that belongs to this user is made inaccessible to others. A read-only one
    is not changed: its owner shares it on purpose.
    """
    folder = cache_folder() / name
    with suppress(OSError):
        status = folder.stat()
        if status.st_uid == os.geteuid() and status.st_mode & stat.S_IWUSR and status.st_mode & 0o077:
            folder.chmod(0o700)
    return folder


def data_folder() -> Path:
    """The folder of the user's own cards: ``CHARLM_DATA``, else the user's data folder. It need not exist yet."""
    return _from_variable("CHARLM_DATA") or platformdirs.user_data_path("charlm", appauthor=False)


def state_folder() -> Path:
    """The folder of the history of ``charlm write``: ``CHARLM_STATE``, else the user's state folder. It need not exist yet."""
    return _from_variable("CHARLM_STATE") or platformdirs.user_state_path("charlm", appauthor=False)


def _from_variable(variable: str) -> Path | None:
    value = os.environ.get(variable)
    try:
        return path_of(value).absolute() if value else None
    except UsageError as error:
        raise UsageError(f"{variable}: {error}") from None
