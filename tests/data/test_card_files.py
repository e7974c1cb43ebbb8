"""The file of a card: supplied, cached or downloaded, and never the wrong one."""

import functools
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from charlm.data import corpora
from charlm.data.card_files import fetch, find
from charlm.data.cards import Card
from charlm.data.corpora import locate
from charlm.data.folders import cache_folder
from charlm.errors import CorpusError

CONTENT = b"a small text to fetch\n" * 30


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def card_of(content: bytes = CONTENT, **changes: object) -> Card:
    given = {
        "description": "a text",
        "licence": "public domain",
        "files": ["text.txt", "same-text.txt"],
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **changes,
    }
    return Card.model_validate(given)


def use_card(monkeypatch: pytest.MonkeyPatch, card: Card) -> None:
    monkeypatch.setattr(corpora, "cards", lambda: {"fetched": card})


def leftovers() -> list[str]:
    folder = cache_folder() / "corpora"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_supplied_file_is_found_under_any_of_its_names(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, CHARLM_CORPORA does not work without a network."""
    use_card(monkeypatch, card_of())
    folders = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setenv("CHARLM_CORPORA", os.pathsep.join(map(str, folders)))
    folders[1].mkdir()
    (folders[1] / "same-text.txt").write_bytes(CONTENT)
    found = locate("fetched", here, download=False)
    assert [(file.label, file.path) for file in found.files] == [("same-text.txt", folders[1] / "same-text.txt")]


@pytest.mark.parametrize("wrong", [CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_a_wrong_supplied_file_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch, wrong: bytes) -> None:
    """If this fails, a wrong text is accepted, and all its results are wrong."""
    use_card(monkeypatch, card_of())
    monkeypatch.setenv("CHARLM_CORPORA", str(here))
    (here / "text.txt").write_bytes(wrong)
    with pytest.raises(CorpusError) as raised:
        locate("fetched", here)
    message = str(raised.value)
    for content in (CONTENT, wrong):
        assert hashlib.sha256(content).hexdigest() in message
    assert str(here / "text.txt") in message
    assert "remove or replace this file" in message


def test_a_verified_file_is_not_hashed_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, every run hashes its corpus, or `verify` does not."""
    use_card(monkeypatch, card_of())
    monkeypatch.setenv("CHARLM_CORPORA", str(here))
    path = here / "text.txt"
    path.write_bytes(CONTENT)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    locate("fetched", here)
    path.write_bytes(CONTENT.swapcase())
    os.utime(path, (1_600_000_000, 1_600_000_000))
    locate("fetched", here)
    with pytest.raises(CorpusError):
        locate("fetched", here, verify=True)


def test_a_download(here: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a download fails, happens twice, or the next address is not tried."""
    address, folder = server
    (folder / "right.txt").write_bytes(CONTENT)
    (folder / "wrong.txt").write_bytes(CONTENT[::-1])
    urls = [f"{address}/missing.txt", f"{address}/wrong.txt", f"{address}/right.txt"]
    card = card_of(urls=urls)
    use_card(monkeypatch, card)
    assert find("fetched", card) is None
    seen: list[tuple[int, int | None]] = []
    found = locate("fetched", here, progress=lambda done, in_all: seen.append((done, in_all)))
    target = cache_folder() / "corpora" / "text.txt"
    assert found.files[0].path == target
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert leftovers() == ["text.txt"]
    (folder / "right.txt").unlink()
    assert fetch("fetched", card) == target


@pytest.mark.parametrize("served", [CONTENT[:-1], CONTENT + b"more", CONTENT[::-1], b""])
def test_a_wrong_download_leaves_nothing(here: Path, server: tuple[str, Path], served: bytes) -> None:
    """If this fails, half a download or a changed file becomes the corpus."""
    address, folder = server
    (folder / "text.txt").write_bytes(served)
    with pytest.raises(CorpusError, match="expected"):
        fetch("fetched", card_of(urls=[f"{address}/text.txt"]))
    assert leftovers() == []


def test_a_damaged_cached_file_is_downloaded_again(server: tuple[str, Path]) -> None:
    """If this fails, a damaged file in the cache must be deleted by hand."""
    address, folder = server
    (folder / "text.txt").write_bytes(CONTENT)
    target = cache_folder() / "corpora" / "text.txt"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"damaged")
    assert fetch("fetched", card_of(urls=[f"{address}/text.txt"])).read_bytes() == CONTENT


def test_without_a_network_the_error_says_how_to_supply_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a user without a network is not told which file is needed and where to put it."""
    card = card_of(urls=["http://127.0.0.1:1/text.txt", "file:///nowhere/text.txt"])
    use_card(monkeypatch, card)
    for fetch_it in (True, False):
        with pytest.raises(CorpusError) as raised:
            locate("fetched", here, download=fetch_it)
        message = str(raised.value)
        assert ("tried http://127.0.0.1:1/text.txt" in message) is fetch_it
        for part in (
            str(card.sha256),
            f"{card.bytes:,} bytes",
            "text.txt or same-text.txt",
            "CHARLM_CORPORA",
            str(cache_folder() / "corpora" / "text.txt"),
            "charlm corpus add",
        ):
            assert part in message
