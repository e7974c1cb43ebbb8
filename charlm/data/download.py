"""Downloads the file of a card: several addresses, several attempts, and only the right content is kept."""

from __future__ import annotations

import errno
import hashlib
import http.client
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from charlm.data.archives import unpack
from charlm.data.cards import Card
from charlm.errors import CorpusError
from charlm.files import whole_file
from charlm.progress import Progress

_BLOCK = 1 << 18  # bytes
_TIMEOUT = 30  # seconds without a byte
_PAUSES = (1.0, 4.0)  # seconds before the second and the third attempt
_ARCHIVE_LIMIT = 1 << 28  # bytes of a downloaded archive

_RETRIED_STATUS = {408, 425, 429}  # besides 5xx: the server asks for a later attempt
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class DownloadError(CorpusError):
    """No address has the text.

    Attributes:
        failures: one line for each address: the address, and its last answer.
    """

    def __init__(self, failures: list[str]) -> None:
        super().__init__("; ".join(failures))
        self.failures = failures


class _WrongContentError(ValueError):
    """An address has something else than the text of the card."""


def download(card: Card, target: Path, progress: Progress | None = None) -> list[str]:
    """Download the text of a card, unpack it if it is in an archive, verify it, and rename it to ``target``.

    The addresses are tried in order. If none has the text, those with a passing fault (a timeout, a broken connection, a
    busy server) are tried again after 1 and 4 seconds. Other answers, such as 404 or wrong content, are final.

    Args:
        card: the card.
        target: the file to write; its folder exists.
        progress: counts downloaded bytes.

    Returns:
        What went wrong before an address had the text: one line for each failed address.

    Raises:
        DownloadError: no address has the text.
        OSError: the file cannot be written.
    """
    failures: dict[str, str] = {}
    waiting = card.urls
    for pause in (0.0, *_PAUSES):
        if not waiting:
            break
        _sleep(pause)
        again = []
        for url in waiting:
            try:
                _store(url, card, target, progress)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, OSError) and error.errno in _DISK and not isinstance(error, urllib.error.URLError):
                    raise
                failures[url] = _reason(error)
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if _is_passing(error):
                    again.append(url)
            else:
                return [f"{failed}: {reason}" for failed, reason in failures.items() if failed != url]
        waiting = again
    raise DownloadError([f"{url}: {reason}" for url, reason in failures.items()])


def _open(url: str) -> Any:
    """Open an address; tests replace this function."""
    return urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "charlm"}), timeout=_TIMEOUT)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _store(url: str, card: Card, target: Path, progress: Progress | None) -> None:
    with _open(url) as response:
        if not card.members:
            _write_verified(_body(response, cast(int, card.bytes), progress), target, card)
            return
        with tempfile.TemporaryFile(dir=target.parent) as file:
            for block in _body(response, _ARCHIVE_LIMIT, progress):
                file.write(block)
            _write_verified(unpack(cast(BinaryIO, file), card.members, target.parent), target, card)


def _body(response: Any, limit: int, progress: Progress | None) -> Iterator[bytes]:
    """The body of an answer; more than ``limit`` bytes are refused."""
    stated = response.headers.get("Content-Length", "")
    total, done = int(stated) if stated.isdecimal() else None, 0
    while block := response.read(_BLOCK):
        done += len(block)
        if done > limit:
            raise _WrongContentError(f"more than the expected {limit:,} bytes")
        yield block
        if progress is not None:
            progress(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _write_verified(blocks: Iterable[bytes], target: Path, card: Card) -> None:
    """Write a text that agrees with its card; a longer one is refused as soon as it is too long."""
    hasher, size = hashlib.sha256(), 0
    with whole_file(target, mode=0o600) as file:
        for block in blocks:
            size += len(block)
            if size > cast(int, card.bytes):
                raise _WrongContentError(f"more than the expected {card.bytes:,} bytes")
            file.write(block)
            hasher.update(block)
        if size != card.bytes:
            raise _WrongContentError(f"found {size:,} bytes, expected {card.bytes:,}")
        if hasher.hexdigest() != card.sha256:
            raise _WrongContentError(f"found sha256 {hasher.hexdigest()}, expected {card.sha256}")


def _is_passing(error: Exception) -> bool:
    """Whether a later attempt can succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _RETRIED_STATUS or error.code >= 500
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return False
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_AGAIN  # else the name of the host does not exist
    return isinstance(cause, OSError | http.client.HTTPException)


def _cause(error: Exception) -> BaseException | str:
    return error.reason if isinstance(error, urllib.error.URLError) else error


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".rstrip()
    cause = _cause(error)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
