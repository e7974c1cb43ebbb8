"""Keeps texts that have no file of their own, such as standard input, so that a run can be resumed and evaluated."""

from __future__ import annotations

import hashlib
from pathlib import Path

from charlm.data.folders import data_folder
from charlm.errors import UsageError
from charlm.files import make_private_folder, whole_file


def store_text(content: bytes, name: str) -> Path:
    """Write a text to the folder ``texts`` of the user's data folder, and return its path.

    The path contains the start of the text's sha256: the same text always has the same path, and another text another.

    Raises:
        UsageError: the text is empty, or the folder cannot be written.
    """
    if not content:
        raise UsageError(f"{name} is empty; expected a text")
    path = data_folder() / "texts" / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.txt"
    try:
        if not (path.is_file() and path.read_bytes() == content):
            make_private_folder(path.parent)
            with whole_file(path, mode=0o600) as file:
                file.write(content)
    except OSError as error:
        raise UsageError(f"cannot store the text in {path}: {error.strerror}; CHARLM_DATA names another folder") from None
    return path
