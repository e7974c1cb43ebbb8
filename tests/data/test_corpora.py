"""Finding corpora: by card, by path, in folders, in the cache, by download; and never the wrong text."""

import functools
import hashlib
import http.server
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from charlm.data import corpora
from charlm.data.corpora import Card, add_card, cache_folder, cards, data_folder, fetch, find, locate
from charlm.data.normalisation import NORMALISATIONS
from charlm.errors import CorpusError, UsageError
from charlm.resources import shipped_files
from charlm.yaml_text import parse_yaml

CONTENT = b"a small text to fetch\n" * 30


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


# ---- cards ----


def test_the_shipped_cards() -> None:
    """If this fails, a card that travels with charlm is wrong, missing, or shares a cached file with another."""
    known = cards()
    assert set(known) == {"code", "hello", "latex", "shakespeare", "time-machine"}
    names = [name for card in known.values() for name in card.files]
    assert len(names) == len(set(names))
    for card in known.values():
        assert card.normalise in NORMALISATIONS
        assert card.split is not None and len(card.split) == 3
        assert all(url.startswith(("http://", "https://")) for url in card.urls)
        assert bool(card.urls) == bool(card.files)


def test_every_key_of_a_shipped_card_is_explained() -> None:
    """If this fails, a reader of a card has to guess what one of its keys means."""
    for path in shipped_files("corpora").values():
        lines = path.read_text(encoding="utf-8").splitlines()
        for key in parse_yaml("\n".join(lines), path.name):
            index = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
            # sha256 and bytes have one comment together
            assert lines[index - 1].startswith(("#", "sha256:")), f"{path.name}: {key}"


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": None},
        {"sha256": "ABC"},
        {"files": ["../escape.txt"]},
        {"files": [], "urls": ["http://127.0.0.1/x"]},
        {"text": "and a text"},
        {"normalise": "d2l"},
        {"split": [0.9, 0.2, 0.1]},
        {"colour": "blue"},
    ],
)
def test_impossible_cards(changes: dict[str, object]) -> None:
    """If this fails, a card that cannot work, or could write outside the cache, is accepted."""
    with pytest.raises(ValueError, match=r"\w"):
        card_of(**changes)


def test_a_damaged_card_is_named() -> None:
    """If this fails, one bad card stops every command without saying which it is."""
    folder = data_folder() / "corpora"
    folder.mkdir(parents=True)
    for content in ("description: [", "description: no more", "just words", b"\xff"):
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / "mine.yaml").write_bytes(raw)
        with pytest.raises(CorpusError, match=r"mine\.yaml.*delete it"):
            cards()


# ---- paths ----


def test_a_file_beside_the_recipe_comes_first(here: Path, tmp_path: Path) -> None:
    """If this fails, a recipe reads another file than the one that lies beside it."""
    recipe_folder = tmp_path / "recipes"
    recipe_folder.mkdir()
    for folder in (recipe_folder, here):
        (folder / "text.txt").write_text("x")
    (here / "only-here.txt").write_text("x")
    found = locate("text.txt", recipe_folder)
    assert [file.path for file in found.files] == [recipe_folder / "text.txt"]
    assert (found.name, found.is_collection, found.normalise, found.split) == ("text.txt", False, "none", None)
    assert locate("only-here.txt", recipe_folder).files[0].path == here / "only-here.txt"


def test_no_name_holds_an_absolute_path(here: Path) -> None:
    """If this fails, checkpoints could tell whose machine they come from."""
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("x")
    assert locate(str(here / "texts" / "a.txt"), here).name == "a.txt"
    for corpus, name, label in [
        (str(here / "texts"), "texts", "a.txt"),
        (str(here / "texts" / "*.txt"), "*.txt", "a.txt"),
        (str(here / "t*" / "*.txt"), "t*/*.txt", "texts/a.txt"),
        ("./texts/", "texts", "a.txt"),
    ]:
        found = locate(corpus, here)
        assert (found.name, found.files[0].label, found.is_collection) == (name, label, True)


def test_a_folder_is_read_in_one_order_without_hidden_files(here: Path) -> None:
    """If this fails, the same folder is another text on another machine, or version control's files are learnt."""
    for name in ("b.txt", "a/z.txt", "a.txt", ".hidden", ".git/config", "a/b/c.md"):
        (here / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "folder" / name).write_text("x")
    (here / "folder" / "loop").symlink_to(here / "folder")
    found = locate("./folder", here)
    assert [file.label for file in found.files] == ["a.txt", "a/b/c.md", "a/z.txt", "b.txt"]
    found = locate("folder/**/*.txt", here)
    assert [file.label for file in found.files] == ["a.txt", "a/z.txt", "b.txt"]
    assert [file.label for file in locate("folder/.h*", here).files] == [".hidden"]


def test_a_name_with_special_characters_is_a_file_if_there_is_one(here: Path) -> None:
    """If this fails, a file called [1].txt cannot be read."""
    (here / "[1].txt").write_text("x")
    assert not locate("[1].txt", here).is_collection


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ("missing.txt", UsageError, r"missing\.txt does not exist; looked for .*here"),
        ("*.text", UsageError, r"no file matches the corpus \*\.text"),
        ("texts*/**", UsageError, "no file matches"),
        ("./empty", CorpusError, "empty holds no text"),
        ("./pipe", UsageError, "neither a file nor a folder"),
        ("shakespear", UsageError, "did you mean shakespeare?"),
        ("mine", UsageError, r"to read it, write \./mine"),
    ],
)
def test_what_cannot_be_found(here: Path, corpus: str, error: type[Exception], message: str) -> None:
    """If this fails, a wrong `corpus:` is not explained with what to do."""
    (here / "empty").mkdir()
    (here / "mine").write_text("x")
    os.mkfifo(here / "pipe")
    with pytest.raises(error, match=message):
        locate(corpus, here)


# ---- the text in a card, the standard library ----


def test_hello_is_in_its_card(here: Path) -> None:
    """If this fails, the smallest corpus needs a file."""
    found = locate("hello", here)
    assert [(file.path, file.text) for file in found.files] == [(None, "hello\n")]
    assert found.split == [1.0, 0.0, 0.0]


def test_the_standard_library(here: Path) -> None:
    """If this fails, tests, tables or installed packages are learnt as source code, or real modules are left out."""
    found = locate("code", here)
    labels = {file.label for file in found.files}
    assert found.is_collection
    assert found.identity == f"Python {'.'.join(map(str, sys.version_info[:3]))} standard library"
    assert labels >= {"argparse.py", "asyncio/events.py", "email/message.py", "encodings/utf_8.py", "typing.py"}
    assert not labels & {"pydoc_data/topics.py", "keyword.py", "token.py", "encodings/cp437.py", "stringprep.py"}
    assert not {"test", "tests", "site-packages"} & {part for label in labels for part in label.split("/")}
    assert not any("_sysconfigdata" in label for label in labels)
    order = [hashlib.sha256(file.label.encode()).hexdigest() for file in found.files]
    assert order == sorted(order)


# ---- supplied, cached, downloaded ----


def test_a_supplied_file_is_found_under_any_of_its_names(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, CHARLM_CORPORA does not work where there is no network."""
    use_card(monkeypatch, card_of())
    folders = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setenv("CHARLM_CORPORA", os.pathsep.join(map(str, folders)))
    folders[1].mkdir()
    (folders[1] / "same-text.txt").write_bytes(CONTENT)
    found = locate("fetched", here, fetch=False)
    assert [(file.label, file.path) for file in found.files] == [("same-text.txt", folders[1] / "same-text.txt")]


@pytest.mark.parametrize("wrong", [CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_a_wrong_supplied_file_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch, wrong: bytes) -> None:
    """If this fails, another text passes for the card's, and every figure for it is wrong."""
    use_card(monkeypatch, card_of())
    monkeypatch.setenv("CHARLM_CORPORA", str(here))
    (here / "text.txt").write_bytes(wrong)
    with pytest.raises(CorpusError) as raised:
        locate("fetched", here)
    message = str(raised.value)
    for content in (CONTENT, wrong):
        assert hashlib.sha256(content).hexdigest() in message
    assert str(here / "text.txt") in message
    assert "remove the file" in message


def test_a_verified_file_is_not_hashed_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, each start hashes its corpus; or `verify` does not."""
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
    """If this fails, a text does not arrive, is downloaded twice, or the next address is not tried."""
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
    """If this fails, a damaged cache has to be found and deleted by hand."""
    address, folder = server
    (folder / "text.txt").write_bytes(CONTENT)
    target = cache_folder() / "corpora" / "text.txt"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"damaged")
    assert fetch("fetched", card_of(urls=[f"{address}/text.txt"])).read_bytes() == CONTENT


def test_without_a_network_the_ways_out_are_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a user without a network does not learn which file to bring and where to put it."""
    card = card_of(urls=["http://127.0.0.1:1/text.txt", "file:///nowhere/text.txt"])
    use_card(monkeypatch, card)
    for fetch_it in (True, False):
        with pytest.raises(CorpusError) as raised:
            locate("fetched", here, fetch=fetch_it)
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


# ---- the user's own cards ----


def test_adding_a_card(here: Path) -> None:
    """If this fails, `corpus add` does not make a text usable by name, from any folder."""
    (here / "text.txt").write_bytes(CONTENT)
    path = add_card("my-text", Path("text.txt"), description="Mine: all of it # really")
    assert path.is_relative_to(data_folder())
    card = cards()["my-text"]
    assert (card.description, card.licence) == ("Mine: all of it # really", "unknown")
    found = locate("my-text", Path("/"))
    assert found.files[0].path == (here / "text.txt").resolve()
    assert found.name == "my-text"


def test_a_changed_or_lost_text_of_a_card(here: Path) -> None:
    """If this fails, a name silently stands for another text than when it was given."""
    text = here / "text.txt"
    text.write_bytes(CONTENT)
    add_card("mine", text)
    text.write_bytes(CONTENT + b"more")
    with pytest.raises(CorpusError, match=r"charlm corpus add mine .*--force"):
        locate("mine", here)
    add_card("mine", text, overwrite=True)
    locate("mine", here)
    text.unlink()
    with pytest.raises(CorpusError, match="which is gone"):
        locate("mine", here)


@pytest.mark.parametrize(
    ("name", "file", "error", "message"),
    [
        ("My_Text", "text.txt", UsageError, "small letters, digits and hyphens"),
        ("../escape", "text.txt", UsageError, "small letters, digits and hyphens"),
        ("", "text.txt", UsageError, "small letters, digits and hyphens"),
        ("shakespeare", "text.txt", UsageError, "choose another name"),
        ("taken", "text.txt", UsageError, "--force"),
        ("new", "missing.txt", UsageError, "does not exist"),
        ("new", ".", UsageError, "is not a file"),
        ("new", "empty.txt", CorpusError, "is empty"),
    ],
)
def test_cards_that_are_not_written(here: Path, name: str, file: str, error: type[Exception], message: str) -> None:
    """If this fails, a card is written that shadows another, escapes its folder or names nothing."""
    (here / "text.txt").write_bytes(CONTENT)
    (here / "empty.txt").touch()
    add_card("taken", Path("text.txt"))
    before = sorted(data_folder().rglob("*"))
    with pytest.raises(error, match=message):
        add_card(name, Path(file))
    assert sorted(data_folder().rglob("*")) == before
