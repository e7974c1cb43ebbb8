"""Finding corpora: by card, by path, in folders."""

import os
from pathlib import Path

import pytest

from charlm.data.corpora import locate
from charlm.errors import CorpusError, UsageError


def test_a_file_beside_the_recipe_comes_first(here: Path, tmp_path: Path) -> None:
    """If this fails, a recipe does not read the file in its own folder."""
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
    """If this fails, a checkpoint can reveal the folders of the machine it was trained on."""
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
    """If this fails, a folder gives different texts on different machines, or .git is part of the text."""
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
        ("./empty", CorpusError, "empty contains no text files"),
        ("./pipe", UsageError, "neither a file nor a folder"),
        ("shakespear", UsageError, "did you mean shakespeare?"),
        ("mine", UsageError, r"to use it, write \./mine"),
    ],
)
def test_a_corpus_that_is_not_found(here: Path, corpus: str, error: type[Exception], message: str) -> None:
    """If this fails, the error for a wrong `corpus:` does not say what to do."""
    (here / "empty").mkdir()
    (here / "mine").write_text("x")
    os.mkfifo(here / "pipe")
    with pytest.raises(error, match=message):
        locate(corpus, here)


def test_hello_is_in_its_card(here: Path) -> None:
    """If this fails, the smallest corpus needs a file."""
    found = locate("hello", here)
    assert [(file.path, file.text) for file in found.files] == [(None, "hello\n")]
    assert found.split == [1.0, 0.0, 0.0]
