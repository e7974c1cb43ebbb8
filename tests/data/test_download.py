"""Downloads: which address is asked how often, and that only the right content is kept."""

import gzip
import hashlib
import io
import socket
import ssl
import tarfile
import urllib.error
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mirrors import CUT, Mirrors

from charlm.data import archives, download
from charlm.data.cards import Card
from charlm.data.download import DownloadError

PARTS = {"one.txt": b"the first part\n" * 9, "two.txt": b"and the second\n" * 5}
TEXT = b"".join(PARTS.values())
ONE, TWO = "https://one.test/text", "https://two.test/text"


def card_of(*urls: str, content: bytes = TEXT, **changes: object) -> Card:
    given = {
        "description": "a text",
        "licence": "public domain",
        "urls": list(urls),
        "files": ["text.txt"],
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **changes,
    }
    return Card.model_validate(given)


def archive(content: bytes = TEXT, **changes: object) -> Card:
    return card_of(ONE, content=content, **{"members": list(PARTS), **changes})


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


def tarred(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            opened.addfile(member)
    return packed.getvalue()


def refusal(card: Card, folder: Path) -> str:
    """Download a text that cannot be had; nothing may be left."""
    with pytest.raises(DownloadError) as raised:
        download.download(card, folder / "text.txt")
    assert list(folder.iterdir()) == []
    return "\n".join(raised.value.failures)


@pytest.mark.parametrize("passing", [500, 503, 429, 408, CUT + TEXT])
def test_a_passing_fault_is_tried_again_later(here: Path, mirrors: Mirrors, passing: bytes | int) -> None:
    """If this fails, a busy server or a broken connection ends a run, or the server is asked again without a pause."""
    mirrors.serve(ONE, passing, passing, TEXT)
    assert download.download(card_of(ONE), here / "text.txt") == []
    assert (here / "text.txt").read_bytes() == TEXT
    assert (mirrors.asked, mirrors.pauses) == ([ONE] * 3, [1.0, 4.0])


def test_the_next_address_comes_before_the_next_attempt(here: Path, mirrors: Mirrors) -> None:
    """If this fails, a user waits for a busy server although another one has the text."""
    mirrors.serve(ONE, 503)
    mirrors.serve(TWO, TEXT)
    (failure,) = download.download(card_of(ONE, TWO), here / "text.txt")
    assert failure == f"{ONE}: HTTP 503 Service Unavailable"
    assert (mirrors.asked, mirrors.pauses) == ([ONE, TWO], [])


def test_only_addresses_with_a_passing_fault_are_tried_again(here: Path, mirrors: Mirrors) -> None:
    """If this fails, a missing or wrong file is asked for three times, or attempts have no end."""
    mirrors.serve(TWO, 502)
    wrong = mirrors.serve("https://three.test/text", TEXT[::-1])
    message = refusal(card_of(ONE, TWO, wrong), here)
    assert mirrors.asked == [ONE, TWO, wrong, TWO, TWO]
    assert mirrors.pauses == [1.0, 4.0]
    assert f"{ONE}: HTTP 404 Not Found" in message and f"{TWO}: HTTP 502 Bad Gateway" in message
    assert f"{wrong}: found sha256 {hashlib.sha256(TEXT[::-1]).hexdigest()}, expected " in message


def test_which_faults_of_a_connection_are_passing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a timeout is final, or a false certificate is asked for again."""
    faults: dict[str, Exception] = {
        "https://slow.test/": TimeoutError("timed out"),
        "https://reset.test/": ConnectionResetError("reset by peer"),
        "https://false.test/": urllib.error.URLError(ssl.SSLCertVerificationError(1, "certificate verify failed")),
        "https://missing.test/": urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "no such host")),
        "https://unsure.test/": urllib.error.URLError(socket.gaierror(socket.EAI_AGAIN, "no answer")),
    }
    asked = []

    def fail(url: str) -> Any:
        asked.append(url)
        raise faults[url]

    monkeypatch.setattr(download, "_open", fail)
    monkeypatch.setattr(download, "_sleep", lambda seconds: None)
    message = refusal(card_of(*faults), here)
    passing = {"https://slow.test/", "https://reset.test/", "https://unsure.test/"}
    assert Counter(asked) == {url: 3 if url in passing else 1 for url in faults}
    for part in ("timed out", "reset by peer", "certificate verify failed", "no such host", "no answer"):
        assert part in message


@pytest.mark.parametrize("served", [TEXT[:-1], TEXT + b"more", TEXT[::-1], b""])
def test_wrong_content_is_never_kept(here: Path, mirrors: Mirrors, served: bytes) -> None:
    """If this fails, half a download or a changed file becomes the corpus."""
    mirrors.serve(ONE, served)
    assert "expected" in refusal(card_of(ONE), here)


@pytest.mark.parametrize(
    "packed",
    [
        zipped({"notes/read.me": b"no", "data/two.txt": PARTS["two.txt"], "data/one.txt": PARTS["one.txt"]}),
        tarred({"./data/two.txt": PARTS["two.txt"], "read.me": b"no", "./data/one.txt": PARTS["one.txt"]}),
        zipped({"../../two.txt": PARTS["two.txt"], "/one.txt": PARTS["one.txt"]}),
        tarred({"../../two.txt": PARTS["two.txt"], "/one.txt": PARTS["one.txt"]}),
    ],
)
def test_members_are_joined_in_the_order_of_the_card(here: Path, mirrors: Mirrors, packed: bytes) -> None:
    """If this fails, the parts of a text change places, or a path in an archive leads out of the folder."""
    mirrors.serve(ONE, packed)
    assert download.download(archive(), here / "text.txt") == []
    assert (here / "text.txt").read_bytes() == TEXT
    assert [path.name for path in here.iterdir()] == ["text.txt"]


def test_mirrors_may_use_different_archives(here: Path, mirrors: Mirrors) -> None:
    """If this fails, a text that one host has as .zip cannot be had from a host that has it as .gz."""
    mirrors.serve(ONE, zipped({"wrong": TEXT}))
    mirrors.serve(TWO, gzip.compress(TEXT))
    (failure,) = download.download(card_of(ONE, TWO, members=["text"]), here / "text.txt")
    assert failure == f"{ONE}: the archive has no file text"
    assert (here / "text.txt").read_bytes() == TEXT


@pytest.mark.parametrize("pack", [lambda text: zipped({"text": text}), lambda text: tarred({"text": text}), gzip.compress])
def test_a_member_is_unpacked_up_to_the_stated_size(here: Path, mirrors: Mirrors, pack: Any) -> None:
    """If this fails, a small archive fills the disk."""
    bomb = pack(b"\0" * 50_000_000)
    assert len(bomb) < 200_000
    mirrors.serve(ONE, bomb)
    assert refusal(archive(members=["text"]), here) == f"{ONE}: more than the expected {len(TEXT):,} bytes"


def test_the_sizes_of_an_archive_are_bounded(here: Path, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a download without an end, or a tar file that packs another file well, fills the disk."""
    mirrors.serve(ONE, tarred({"other": b"\0" * 9_000_000, **PARTS}))
    monkeypatch.setattr(archives, "_TAR_LIMIT", 1 << 20)
    assert "the tar file has more than 1 MiB" in refusal(archive(), here)
    monkeypatch.setattr(download, "_ARCHIVE_LIMIT", 1000)
    assert "more than the expected 1,000 bytes" in refusal(archive(), here)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"<html>Please pay first</html>", "neither a .zip nor a .gz file"),
        (b"", "neither a .zip nor a .gz file"),
        (zipped({"one.txt": TEXT}), "the archive has no file two.txt"),
        (tarred({"one.txt": PARTS["one.txt"]}, {"two.txt": "/etc/hostname"}), "the archive has no file two.txt"),
        (tarred({"one.txt/": b"", "two.txt": b""})[:60], "damaged or unsupported archive"),
        (zipped(PARTS)[:40] + b"\0" * 40 + zipped(PARTS)[80:], "damaged or unsupported archive"),
        (gzip.compress(TEXT), "a .gz of a single file, expected 2 files"),
        (gzip.compress(TEXT)[:-9], "damaged or unsupported archive"),
        (zipped({"one.txt": PARTS["two.txt"], "two.txt": PARTS["one.txt"]}), "found sha256"),
    ],
)
def test_other_archives_are_refused(here: Path, mirrors: Mirrors, packed: bytes, message: str) -> None:
    """If this fails, a damaged archive ends in a traceback, or a link in an archive reads a file of this machine."""
    mirrors.serve(ONE, packed)
    changes: dict[str, object] = {"members": ["text"]} if packed == gzip.compress(TEXT)[:-9] else {}
    assert message in refusal(archive(**changes), here)
    assert mirrors.asked == [ONE]
