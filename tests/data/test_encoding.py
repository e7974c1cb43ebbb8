"""Encoding: what is on disk means exactly the text, is made once, and what is not text is refused in plain words."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charlm.data import encoding as encoding_module
from charlm.data.corpora import SourceFile, Sources, cache_folder, locate
from charlm.data.encoding import Encoded, encode
from charlm.errors import CorpusError, RecipeError

LONG_AGO = 1_600_000_000  # a time of modification, in seconds: recent files are not recognised by it


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Read so many bytes at a time: characters and line ends then lie across blocks in every way."""
    monkeypatch.setattr(encoding_module, "_BLOCK", request.param)
    return int(request.param)


def written(folder: Path, content: bytes, name: str = "text.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def encoded(path: Path, **changes: object) -> Encoded:
    given = {"unit": "char", "encoding": "utf-8", "newlines": "unix", "normalise": "none", **changes}
    return encode(locate(str(path), Path.cwd()), **given)  # type: ignore[arg-type]


def text_of(result: Encoded) -> str:
    return "".join(chr(symbol) for symbol in result.alphabet[result.ids])


def entries() -> list[Path]:
    return sorted((cache_folder() / "encodings").iterdir())


@pytest.mark.parametrize(
    ("content", "text", "crlf", "marks"),
    [
        (b"plain ASCII\n", "plain ASCII\n", 0, 0),
        ("naïve – 漢字 \U0001f600e\u0301".encode(), "naïve – 漢字 \U0001f600e\u0301", 0, 0),
        (b"\xef\xbb\xbfwith a mark", "with a mark", 0, 1),
        (b"\xef\xbb\xbf\xef\xbb\xbfone mark only", "\ufeffone mark only", 0, 1),
        (b"a\r\nb\rc\nd\r\r\n\n\re\r", "a\nb\nc\nd\n\n\n\ne\n", 6, 0),
        ("é\r\né\ré\r".encode(), "é\né\né\n", 3, 0),
    ],
)
def test_the_text_comes_back(tmp_path: Path, block: int, content: bytes, text: str, crlf: int, marks: int) -> None:
    """If this fails, models learn another text than the file holds, for some length of a block."""
    result = encoded(written(tmp_path, content))
    assert text_of(result) == text
    assert (result.crlf, result.marks, result.bytes) == (crlf, marks, len(content))
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.file_lengths == (len(text),) == (result.characters,)
    assert list(result.alphabet) == [ord(character) for character in dict.fromkeys(text)]
    assert result.ids.dtype == np.uint8
    assert not result.ids.flags.writeable


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet=st.sampled_from("ab\r\n\ufeffé漢\U0001f600"), min_size=1, max_size=30),
    newlines=st.sampled_from(["unix", "keep"]),
    size=st.integers(1, 9),
)
def test_any_text_with_any_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, newlines: str, size: int) -> None:
    """If this fails, the border of two blocks changes a text."""
    monkeypatch.setattr(encoding_module, "_BLOCK", size)
    expected = text.removeprefix("\ufeff")
    if newlines == "unix":
        expected = expected.replace("\r\n", "\n").replace("\r", "\n")
    path = written(tmp_path / hashlib.sha256(f"{text}{newlines}{size}".encode()).hexdigest()[:16], text.encode())
    if not expected:
        with pytest.raises(CorpusError, match="holds no text"):
            encoded(path, newlines=newlines)
        return
    assert text_of(encoded(path, newlines=newlines)) == expected


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "gb18030"])
def test_other_encodings(tmp_path: Path, block: int, name: str) -> None:
    """If this fails, a text in a stated encoding is misread at some block length."""
    text = "café\r\nnoir\n"
    assert text_of(encoded(written(tmp_path, text.encode(name)), encoding=name)) == "café\nnoir\n"


def test_keeping_line_ends(tmp_path: Path) -> None:
    """If this fails, `newlines: keep` changes the text or counts what it left alone."""
    result = encoded(written(tmp_path, b"a\r\nb"), newlines="keep")
    assert (text_of(result), result.crlf) == ("a\r\nb", 0)


def test_bytes_stay_as_they_are(tmp_path: Path, block: int) -> None:
    """If this fails, `unit: byte` loses or changes bytes."""
    content = b"\xef\xbb\xbf\r\n\x00" + bytes(range(255, -1, -1))
    result = encoded(written(tmp_path, content), unit="byte")
    assert bytes(result.alphabet[result.ids].astype(np.uint8)) == content
    assert list(result.alphabet) == list(dict.fromkeys(content))
    assert (result.ids.dtype, result.crlf, result.marks) == (np.uint8, 0, 0)


@pytest.mark.parametrize(
    ("symbols", "dtype"), [(256, np.uint8), (257, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)]
)
def test_ids_have_the_smallest_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbols: int, dtype: type) -> None:
    """If this fails, ids are wasteful, or wrong after growing into the next width."""
    monkeypatch.setattr(encoding_module, "_BLOCK", 1000)
    points = [point for point in range(32, 0x20000) if not 0xD800 <= point < 0xE000][:symbols]
    text = "".join(map(chr, points)) + "and then plain ASCII again"
    result = encoded(written(tmp_path, text.encode()), newlines="keep")
    assert result.ids.dtype == dtype
    assert len(result.alphabet) == symbols
    assert text_of(result) == text


def test_normalised(tmp_path: Path, block: int) -> None:
    """If this fails, a normalisation is not applied to the text with LF line ends."""
    path = written(tmp_path, b"The Time\r\nMachine, 1895\r\n")
    assert text_of(encoded(path, normalise="d2l-lines")) == "the timemachine"
    assert text_of(encoded(path, normalise="d2l-whole")) == "the time machine "


def test_bytes_cannot_be_normalised(tmp_path: Path) -> None:
    """If this fails, a contradiction in the recipe is passed over."""
    with pytest.raises(RecipeError, match="unit: char, or normalise: none"):
        encoded(written(tmp_path, b"text"), unit="byte", normalise="d2l-lines")


@pytest.mark.parametrize("name", ["klingon", "zlib", "hex", "", "utf\0"])
def test_an_encoding_that_does_not_exist(tmp_path: Path, name: str) -> None:
    """If this fails, a wrong `data.encoding` is not explained (or is a traceback)."""
    with pytest.raises(RecipeError, match="expected one such as utf-8"):
        encoded(written(tmp_path, b"text"), encoding=name)


# ---- what is not text ----


@pytest.mark.parametrize(
    ("content", "offset", "byte"),
    [
        (b"good text\xff", 9, "0xFF"),
        ("é".encode() * 5 + b"\xc3(", 10, "0xC3"),
        (b"cut in the middle \xe6\xbc", 18, "0xE6"),
        (b"a" * 13 + b"\xe9tude", 13, "0xE9"),
    ],
)
def test_a_wrong_byte_is_found_exactly(tmp_path: Path, block: int, content: bytes, offset: int, byte: str) -> None:
    """If this fails, the user is sent to another place than the wrong byte's."""
    with pytest.raises(CorpusError) as raised:
        encoded(written(tmp_path, content))
    message = str(raised.value)
    assert message.startswith(f"text.txt: byte {byte} at offset {offset} is not utf-8 text")
    assert "data.encoding: latin-1" in message
    assert "data.unit: byte" in message


@pytest.mark.parametrize(
    ("content", "offset", "advice"),
    [
        (b"ELF\0\1\2\3", 3, "data.unit: byte"),
        ("wide text".encode("utf-16-le"), 1, "data.encoding: utf-16-le"),
        ("wide text".encode("utf-16-be"), 0, "data.encoding: utf-16-be"),
    ],
)
def test_a_nul_looks_binary(tmp_path: Path, content: bytes, offset: int, advice: str) -> None:
    """If this fails, a binary file is learnt as if it were text, or UTF-16 is not recognised as such."""
    with pytest.raises(CorpusError, match=f"looks binary .NUL at offset {offset}.") as raised:
        encoded(written(tmp_path, content))
    assert advice in str(raised.value)


@pytest.mark.parametrize("name", ["utf-16", "utf-32"])
def test_a_mark_gives_utf_16_away(tmp_path: Path, name: str) -> None:
    """If this fails, the likeliest cause of a wrong first byte is not named."""
    with pytest.raises(CorpusError, match=f"data.encoding: {name}, which it looks like"):
        encoded(written(tmp_path, "text".encode(name)))


def test_an_empty_file(tmp_path: Path) -> None:
    """If this fails, an empty text is accepted or badly explained."""
    with pytest.raises(CorpusError, match="is empty; there is nothing"):
        encoded(written(tmp_path, b""))
    with pytest.raises(CorpusError, match="holds no text; there is nothing"):
        encoded(written(tmp_path, b"1, 2, 3"), normalise="d2l-lines")


def test_one_character_is_a_text(tmp_path: Path) -> None:
    """If this fails, the encoder refuses what only the trainer has reason to refuse."""
    assert encoded(written(tmp_path, b"x")).characters == 1


# ---- collections ----


def test_a_collection_skips_and_names_what_is_not_text(tmp_path: Path, block: int) -> None:
    """If this fails, a skipped file leaves traces in the text, its alphabet or its hash, or is skipped silently."""
    folder = tmp_path / "texts"
    foreign = "".join(map(chr, range(0x4E00, 0x4F40))).encode()  # would need two bytes per id
    contents = {"1.txt": b"one\r", "2.txt": foreign + b"\xff", "3.txt": b"\n\0", "4.txt": b"", "5.txt": "\ntwo丅".encode()}
    for name, content in contents.items():
        written(folder, content, name)
    result = encoded(folder)
    assert text_of(result) == "one\n\ntwo丅"
    assert result.skipped == ("2.txt", "3.txt", "4.txt")
    assert result.file_lengths == (4, 0, 0, 0, 5)
    assert result.sha256 == hashlib.sha256("one\r\ntwo丅".encode()).hexdigest()
    assert result.bytes == 11
    assert result.ids.dtype == np.uint8
    assert list(result.alphabet) == [ord(character) for character in "one\ntw丅"]


def test_a_collection_without_any_text(tmp_path: Path) -> None:
    """If this fails, a folder of pictures becomes an empty corpus."""
    written(tmp_path / "pictures", b"\x89PNG\0", "a.png")
    with pytest.raises(CorpusError, match="holds no text: all 1 files"):
        encoded(tmp_path / "pictures")


def test_the_text_of_a_card_needs_no_encoding() -> None:
    """If this fails, a recipe's encoding garbles a text that was never in a file."""
    sources = Sources("word", (SourceFile("word", None, "é\n"),))
    result = encode(sources, unit="char", encoding="utf-16", newlines="unix", normalise="none")
    assert text_of(result) == "é\n"
    assert result.sha256 == hashlib.sha256("é\n".encode()).hexdigest()


# ---- the cache ----


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many files were read since."""
    count = 0
    original = encoding_module._blocks

    def counting(file: SourceFile) -> object:
        nonlocal count
        count += 1
        return original(file)

    monkeypatch.setattr(encoding_module, "_blocks", counting)
    return lambda: count


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, reads: Callable[[], int]) -> None:
    """If this fails, a second start on ten gigabytes reads ten gigabytes."""
    path = written(tmp_path, b"a text")
    first = encoded(path)
    assert text_of(encoded(path)) == text_of(first)
    assert reads() == 1
    encoded(path, verify=True)
    assert reads() == 2
    assert len(entries()) == 1


def test_other_settings_are_another_entry(tmp_path: Path) -> None:
    """If this fails, a recipe is given the text of another recipe's settings."""
    path = written(tmp_path, b"A\r\n")
    assert text_of(encoded(path)) == "A\n"
    assert text_of(encoded(path, newlines="keep")) == "A\r\n"
    assert text_of(encoded(path, normalise="d2l-lines")) == "a"
    assert encoded(path, unit="byte").characters == 3


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """If this fails, training goes on with a text that is no longer there."""
    path = written(tmp_path, b"before")
    assert text_of(encoded(path)) == "before"
    path.write_bytes(b"behind")
    assert text_of(encoded(path)) == "behind"
    os.utime(path, (LONG_AGO, LONG_AGO))  # now only --verify can tell
    written(tmp_path, b"before")
    path.write_bytes(b"beyond")
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert text_of(encoded(path, verify=True)) == "beyond"
    assert text_of(encoded(path)) == "beyond"


def test_a_file_written_this_moment_is_not_remembered(tmp_path: Path, reads: Callable[[], int]) -> None:
    """If this fails, a second write within one tick of the file system's clock goes unnoticed."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"first")
    stamp = path.stat()
    encoded(path)
    path.write_bytes(b"later")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert text_of(encoded(path)) == "later"


def test_where_files_end_matters(tmp_path: Path) -> None:
    """If this fails, two collections with the same bytes share one entry although their files end elsewhere."""
    for name, first, second in (("one", b"a\r", b"\nb"), ("two", b"a\r\n", b"b")):
        written(tmp_path / name, first, "1.txt")
        written(tmp_path / name, second, "2.txt")
    assert text_of(encoded(tmp_path / "one")) == "a\n\nb"
    assert text_of(encoded(tmp_path / "two")) == "a\nb"


@pytest.mark.parametrize("damage", ["truncated", "missing", "no json", "other json", "no meta"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, damage: str) -> None:
    """If this fails, a damaged cache stops charlm, or worse, is believed."""
    path = written(tmp_path, b"some text")
    encoded(path)
    (entry,) = entries()
    if damage == "truncated":
        os.truncate(entry / "ids.bin", 3)
    elif damage == "missing":
        (entry / "ids.bin").unlink()
    elif damage == "no meta":
        (entry / "meta.json").unlink()
    else:
        (entry / "meta.json").write_text("{" if damage == "no json" else json.dumps({"width": 1}))
    assert text_of(encoded(path)) == "some text"
    assert entries() == [entry]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """If this fails, each killed encoder leaves a copy of its text in the cache for ever."""
    encodings = cache_folder() / "encodings"
    for name in (".new-old", ".new-young"):
        (encodings / name).mkdir(parents=True)
        (encodings / name / "ids.bin").write_bytes(b"x")
    for path in (encodings / ".new-old" / "ids.bin", encodings / ".new-old"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    encoded(written(tmp_path, b"text"))
    assert [entry.name for entry in entries() if entry.name.startswith(".new")] == [".new-young"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    """If this fails, every refused file leaves half an encoding in the cache."""
    with pytest.raises(CorpusError):
        encoded(written(tmp_path, b"text \xff"))
    assert entries() == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a read-only home folder ends in a traceback."""
    written(tmp_path, b"not a folder", "cache-file")
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache-file"))
    with pytest.raises(CorpusError, match="set CHARLM_CACHE"):
        encoded(written(tmp_path, b"text"))


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    """If this fails, a text that is still being written is taken for complete."""
    path = written(tmp_path, b"text")

    def grow(done: int, in_all: int) -> None:
        path.write_bytes(b"text, longer")

    with pytest.raises(CorpusError, match="changed while it was read"):
        encoded(path, progress=grow)


def test_progress_reaches_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, the progress bar stands still or never fills."""
    monkeypatch.setattr(encoding_module, "_BLOCK", 10)
    seen: list[tuple[int, int]] = []
    encoded(written(tmp_path, b"x" * 25), progress=lambda done, in_all: seen.append((done, in_all)))
    assert seen == [(10, 25), (20, 25), (25, 25)]


def encode_for_race(path: str) -> str:
    return text_of(encoded(Path(path)))


def test_many_processes_at_once(tmp_path: Path) -> None:
    """If this fails, runs that start together on one text harm each other."""
    path = written(tmp_path, "naïve text, again and again\n".encode() * 20000)
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        texts = set(pool.map(encode_for_race, [str(path)] * 6))
    assert texts == {path.read_text(encoding="utf-8")}
    assert len(entries()) == 1
