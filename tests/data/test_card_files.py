"""The file of a card: supplied, cached or downloaded, and never the wrong one."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from mirrors import Mirrors

from charlm.data import corpora, download
from charlm.data.card_files import fetch, find
from charlm.data.cards import Card
from charlm.data.corpora import locate
from charlm.data.folders import cache_folder
from charlm.errors import CorpusError

CONTENT = b"a small text to fetch\n" * 30


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


def test_a_download(here: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a download fails or happens twice, or the user is not told which addresses are wrong."""
    urls = [f"https://{host}.test/text.txt" for host in ("missing", "wrong", "right")]
    mirrors.serve(urls[1], CONTENT[::-1])
    mirrors.serve(urls[2], CONTENT)
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
    missing, wrong = found.notices
    assert missing == f"no download from {urls[0]}: HTTP 404 Not Found"
    assert wrong.startswith(f"no download from {urls[1]}: found sha256 ")
    assert mirrors.asked == urls
    again = fetch("fetched", card)
    assert (again.path, again.failures) == (target, ())
    assert mirrors.asked == urls


def test_a_damaged_cached_file_is_downloaded_again(mirrors: Mirrors) -> None:
    """If this fails, a damaged file in the cache must be deleted by hand."""
    url = mirrors.serve("https://one.test/text.txt", CONTENT)
    target = cache_folder() / "corpora" / "text.txt"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"damaged")
    assert fetch("fetched", card_of(urls=[url])).path.read_bytes() == CONTENT


def test_an_error_lists_every_answer_and_how_to_supply_the_file(
    here: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a user without a network is not told what was tried, which file is needed and where to put it."""
    urls = [mirrors.serve("https://one.test/text.zip", 503), "https://two.test/text.zip"]
    card = card_of(urls=urls, members=["part-1.txt", "part-2.txt"])
    use_card(monkeypatch, card)
    for fetch_it in (True, False):
        with pytest.raises(CorpusError) as raised:
            locate("fetched", here, download=fetch_it)
        message = str(raised.value)
        assert ("tried https://one.test/text.zip: HTTP 503" in message) is fetch_it
        assert ("tried https://two.test/text.zip: HTTP 404" in message) is fetch_it
        for part in (
            *urls,
            str(card.sha256),
            f"{card.bytes:,} bytes",
            "text.txt or same-text.txt",
            "part-1.txt, part-2.txt, joined in this order",
            "CHARLM_CORPORA",
            str(cache_folder() / "corpora" / "text.txt"),
            "charlm corpus add",
        ):
            assert part in message


def test_a_full_disk_is_not_a_fault_of_an_address(mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a full disk is reported as a failed download, after three attempts."""
    url = mirrors.serve("https://one.test/text.txt", CONTENT)

    def full(path: Path, *, mode: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "whole_file", full)
    with pytest.raises(CorpusError, match=r"cannot write to the cache .*No space left.*CHARLM_CACHE"):
        fetch("fetched", card_of(urls=[url]))
    assert mirrors.asked == [url]
