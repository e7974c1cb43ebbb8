"""Cards: the shipped ones are complete, and the user's are checked when they are written and read."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from charlm.data.cards import Card, CardExistsError, add_card, cards
from charlm.data.corpora import locate
from charlm.data.folders import data_folder
from charlm.data.normalisation import NORMALISATIONS
from charlm.data.splits import split_offsets
from charlm.errors import CorpusError, UsageError
from charlm.resources import shipped_files
from charlm.yaml_text import parse_yaml

CONTENT = b"a small text\n" * 30
CARD = {
    "description": "a text",
    "licence": "public domain",
    "files": ["text.txt"],
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "bytes": len(CONTENT),
}


def test_the_shipped_cards() -> None:
    """If this fails, a card is wrong or missing, shares a cached file with another, or depends on one host or a branch."""
    known = cards()
    assert set(known) == {"code", "enwik8", "hello", "latex", "ptb", "shakespeare", "text8", "time-machine"}
    names = [name for card in known.values() for name in card.files]
    assert len(names) == len(set(names))
    for card in known.values():
        assert card.normalise in NORMALISATIONS
        assert card.split is not None and len(card.split) == 3
        assert bool(card.urls) == bool(card.files)
        hosts = {urlsplit(url).hostname for url in card.urls}
        assert len(hosts) == len(card.urls) and len(hosts) != 1, card.description
        assert not {"master", "main", "HEAD"} & {part for url in card.urls for part in re.split("[/@]", url)}


def test_every_key_of_a_shipped_card_is_explained() -> None:
    """If this fails, a reader of a card has to guess what one of its keys means."""
    for path in shipped_files("corpora").values():
        lines = path.read_text(encoding="utf-8").splitlines()
        for key in parse_yaml("\n".join(lines), path.name):
            index = next(number for number, line in enumerate(lines) if line.startswith(f"{key}:"))
            # sha256 and bytes have one comment together
            assert lines[index - 1].startswith(("#", "sha256:")), f"{path.name}: {key}"


@pytest.mark.parametrize(
    ("name", "characters", "parts"),
    [
        ("text8", 100_000_000, [90_000_000, 5_000_000, 5_000_000]),
        ("enwik8", 100_000_000, [90_000_000, 5_000_000, 5_000_000]),
        ("ptb", 11_705_894 // 2, [5_017_482, 393_042, 442_423]),
    ],
)
def test_the_splits_of_the_benchmarks(name: str, characters: int, parts: list[int]) -> None:
    """If this fails, a result is measured on another part of a benchmark than published results are."""
    card = cards()[name]
    assert card.split is not None
    assert [stop - start for start, stop in split_offsets(characters, card.split).values()] == parts
    assert sum(parts) == characters


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": None},
        {"sha256": "ABC"},
        {"files": ["../escape.txt"]},
        {"files": [], "urls": ["https://one.test/x"]},
        {"urls": ["http://one.test/x"]},
        {"urls": ["https://one.test/x", "file:///etc/passwd"]},
        {"members": ["text.txt"]},
        {"urls": ["https://one.test/x.zip"], "members": ["../text.txt"]},
        {"text": "and a text"},
        {"normalise": "d2l"},
        {"split": [0.9, 0.2, 0.1]},
        {"colour": "blue"},
    ],
)
def test_inconsistent_cards_are_refused(changes: dict[str, object]) -> None:
    """If this fails, a card that cannot work, or could write outside the cache, is accepted."""
    with pytest.raises(ValueError, match=r"\w"):
        Card.model_validate({**CARD, **changes})


def test_a_damaged_card_is_named() -> None:
    """If this fails, a damaged card stops every command, and the error does not name it."""
    folder = data_folder() / "corpora"
    folder.mkdir(parents=True)
    for content in ("description: [", "description: no more", "just words", b"\xff"):
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / "mine.yaml").write_bytes(raw)
        with pytest.raises(CorpusError, match=r"mine\.yaml.*delete it"):
            cards()


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


def test_a_changed_or_missing_file_of_a_card(here: Path) -> None:
    """If this fails, a name refers to a changed text without an error."""
    text = here / "text.txt"
    text.write_bytes(CONTENT)
    add_card("mine", text)
    text.write_bytes(CONTENT + b"more")
    with pytest.raises(CorpusError, match=r"charlm corpus add mine .*--force"):
        locate("mine", here)
    add_card("mine", text, overwrite=True)
    locate("mine", here)
    text.unlink()
    with pytest.raises(CorpusError, match="no longer exists"):
        locate("mine", here)


@pytest.mark.parametrize(
    ("name", "file", "error", "message"),
    [
        ("My_Text", "text.txt", UsageError, "lower-case letters, digits and hyphens"),
        ("../escape", "text.txt", UsageError, "lower-case letters, digits and hyphens"),
        ("", "text.txt", UsageError, "lower-case letters, digits and hyphens"),
        ("shakespeare", "text.txt", UsageError, "choose another name"),
        ("taken", "text.txt", CardExistsError, "overwrite it"),
        ("new", "missing.txt", UsageError, "does not exist"),
        ("new", ".", UsageError, "is not a file"),
        ("new", "empty.txt", CorpusError, "is empty"),
    ],
)
def test_invalid_cards_are_not_written(here: Path, name: str, file: str, error: type[Exception], message: str) -> None:
    """If this fails, a card is written that shadows another, escapes its folder or names nothing."""
    (here / "text.txt").write_bytes(CONTENT)
    (here / "empty.txt").touch()
    add_card("taken", Path("text.txt"))
    before = sorted(data_folder().rglob("*"))
    with pytest.raises(error, match=message):
        add_card(name, Path(file))
    assert sorted(data_folder().rglob("*")) == before
