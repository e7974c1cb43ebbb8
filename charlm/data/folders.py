"""Where charlm keeps what it can make again (the cache) and what the user told it (the data)."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from charlm.config import path_of
from charlm.errors import UsageError


def cache_folder() -> Path:
    """The folder of downloads and encodings: ``CHARLM_CACHE``, else the user's cache folder. It need not exist yet."""
    return _named_by("CHARLM_CACHE") or platformdirs.user_cache_path("charlm", appauthor=False)


def data_folder() -> Path:
    """The folder of the user's own cards: ``CHARLM_DATA``, else the user's data folder. It need not exist yet."""
    return _named_by("CHARLM_DATA") or platformdirs.user_data_path("charlm", appauthor=False)


def _named_by(variable: str) -> Path | None:
    value = os.environ.get(variable)
    try:
        return path_of(value).absolute() if value else None
    except UsageError as error:
        raise UsageError(f"{variable}: {error}") from None
