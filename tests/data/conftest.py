"""Fixtures of the tests of texts: private folders, files, encoding."""

import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mirrors import Mirrors

from charlm.data import download, sources
from charlm.data.corpora import locate
from charlm.data.encoded import Encoded
from charlm.data.encoding import encode
from charlm.data.folders import cache_folder
from charlm.data.sources import SourceFile

LONG_AGO = 1_600_000_000  # an mtime in seconds; a recent file is never recognised by its stamp


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("CHARLM_CORPORA", raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes read at a time: small blocks cut characters and line ends in every possible way."""
    monkeypatch.setattr(sources, "_BLOCK", request.param)
    return int(request.param)


class Texts:
    """Writes files, encodes them, and looks into the cache."""

    def age(self, path: Path) -> None:
        """Give a file an mtime long ago."""
        os.utime(path, (LONG_AGO, LONG_AGO))

    def write(self, folder: Path, content: bytes, name: str = "text.txt") -> Path:
        """Write a file with an old mtime."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(content)
        self.age(path)
        return path

    def encode(self, path: Path, **changes: object) -> Encoded:
        """Encode a file or folder; ``changes`` replace the default settings."""
        options = {"unit": "char", "encoding": "utf-8", "newlines": "unix", "normalise": "none", **changes}
        return encode(locate(str(path), Path.cwd()), **options)  # type: ignore[arg-type]

    def text_of(self, result: Encoded) -> str:
        """The text of an encoding."""
        return "".join(chr(symbol) for symbol in result.alphabet[result.ids])

    def entries(self) -> list[Path]:
        """The entries of the cache."""
        return sorted((cache_folder() / "encodings").iterdir())

    def entry_of(self, path: Path) -> Path:
        """Encode the first file of a test; return its entry."""
        self.encode(path)
        (entry,) = self.entries()
        return entry


@pytest.fixture
def texts() -> Texts:
    """See :class:`Texts`."""
    return Texts()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """``reads()``: the number of files read so far."""
    count = 0
    original = SourceFile.blocks

    def counting(file: SourceFile) -> Iterator[bytes]:
        nonlocal count
        count += 1
        return original(file)

    monkeypatch.setattr(SourceFile, "blocks", counting)
    return lambda: count


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirrors]:
    """A network with only the addresses that a test serves."""
    known = Mirrors()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.answer(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        real, here = download._open, f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(download, "_open", lambda url: real(here + url.removeprefix("https://")))
        monkeypatch.setattr(download, "_sleep", lambda seconds: known.pauses.append(seconds) if seconds else None)
        yield known
        server.shutdown()
        thread.join()
