"""Encoding: what is on disk means exactly the text, is made once, and what is not text is refused in plain words."""

import hashlib
import json
import os
import shutil
import stat
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
from charlm.data.encoding import Encoded, OtherTextError, Recorded, encode
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


# ---- a private, verified cache ----


def entry_of(path: Path) -> Path:
    encoded(path)
    (entry,) = entries()
    return entry


def change_ids(entry: Path) -> None:
    """Give the entry another text of the same length, and the time of modification that it had."""
    ids = entry / "ids.bin"
    status = ids.stat()
    ids.chmod(0o600)
    ids.write_bytes(bytes(reversed(ids.read_bytes())))
    os.utime(ids, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_changed_ids_are_noticed(tmp_path: Path) -> None:
    """If this fails, a damaged cache gives another perplexity under the correct sha256."""
    path = written(tmp_path, b"some text")
    change_ids(entry_of(path))
    assert text_of(encoded(path)) == "some text"
    assert len(entries()) == 1


def test_verify_hashes_ids_that_look_unchanged(tmp_path: Path) -> None:
    """If this fails, damage that the file's dates do not show survives --verify."""
    path = written(tmp_path, b"some text")
    entry = entry_of(path)
    change_ids(entry)
    encoding_module._write_stamp(entry, (entry / "ids.bin").stat())
    assert text_of(encoded(path, verify=True)) == "some text"
    assert text_of(encoded(path)) == "some text"


def test_unchanged_ids_are_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a second start on ten gigabytes hashes ten gigabytes; or a copied cache does it at every start."""
    path = written(tmp_path, b"some text")
    entry = entry_of(path)
    hashed = 0
    original = hashlib.file_digest

    def counting(*arguments: object) -> object:
        nonlocal hashed
        hashed += 1
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counting)
    encoded(path)
    assert hashed == 0
    (entry / "ids.bin").touch()
    encoded(path)
    encoded(path)
    assert hashed == 1


@pytest.mark.parametrize("key", ["alphabet", "bytes", "sha256", "ids_sha256"])
def test_a_changed_description_is_noticed(tmp_path: Path, key: str) -> None:
    """If this fails, one changed number in the cache's JSON makes another text of the same ids."""
    path = written(tmp_path, b"some text")
    entry = entry_of(path)
    record = json.loads((entry / "meta.json").read_text())
    changed = {"alphabet": list(reversed(record["meta"]["alphabet"])), "bytes": 7}.get(key, "0" * 64)
    (entry / "meta.json").write_text(json.dumps({**record, "meta": {**record["meta"], key: changed}}))
    result = encoded(path)
    assert (text_of(result), result.bytes) == ("some text", 9)
    assert result.sha256 == hashlib.sha256(b"some text").hexdigest()


def test_an_entry_under_another_name_is_not_believed(tmp_path: Path) -> None:
    """If this fails, an entry that was moved or copied is taken for another text of the same length."""
    path = written(tmp_path, b"some text")
    first = entry_of(path)
    other = written(tmp_path, b"text some", "other.txt")
    encoded(other)
    (second,) = [entry for entry in entries() if entry != first]
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert text_of(encoded(other)) == "text some"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_cache_is_private(tmp_path: Path, umask: int) -> None:
    """If this fails, other users of the machine can read private texts."""
    path = written(tmp_path, b"a secret")
    before = os.umask(umask)
    try:
        encoded(path)
    finally:
        os.umask(before)
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in [cache_folder(), *cache_folder().rglob("*")]}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes
    assert modes["ids.bin"] == 0o400, "an accident can shorten a file that a run has mapped"


def test_an_open_cache_of_this_user_is_closed_unless_it_is_read_only(tmp_path: Path) -> None:
    """If this fails, texts encoded by an earlier charlm stay open to others; or a cache that is shared on purpose is closed."""
    path = written(tmp_path, b"some text")
    encoded(path)
    encodings = cache_folder() / "encodings"
    for opened, then in ((0o755, 0o700), (0o555, 0o555)):
        encodings.chmod(opened)
        encoded(path)
        assert stat.S_IMODE(encodings.stat().st_mode) == then


def test_a_read_only_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a cache that an administrator filled for all users serves none of them."""
    path = written(tmp_path, b"some text")
    entry = entry_of(path)
    shutil.rmtree(cache_folder() / "fingerprints")
    (entry / "ids.bin").chmod(0o444)  # changes what the file looks like, so it is hashed

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    for module in ("fingerprint", "encoding"):
        monkeypatch.setattr(f"charlm.data.{module}.whole_file", refuse)
        monkeypatch.setattr(f"charlm.data.{module}.make_private_folder", refuse)
    assert text_of(encoded(path, verify=True)) == "some text"
    with pytest.raises(CorpusError, match="set CHARLM_CACHE"):
        encoded(written(tmp_path, b"another text", "other.txt"))


# ---- what a checkpoint names ----


def kept() -> list[Path]:
    """Everything in the cache."""
    return [path for path in cache_folder().rglob("*") if path.is_file()]


def recorded_of(content: bytes) -> Recorded:
    return Recorded(len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("content", [b"a secret!", b"secret", b"secret \xff text", b""])
def test_another_text_leaves_nothing_and_is_not_described(tmp_path: Path, content: bytes) -> None:
    """If this fails, a stranger's checkpoint makes charlm copy a private file into the cache, or show a piece of it."""
    with pytest.raises(OtherTextError) as raised:
        encoded(written(tmp_path, content), recorded=recorded_of(b"the text!"))
    assert kept() == []
    assert "secret" not in str(raised.value)
    assert "0xFF" not in str(raised.value)
    assert hashlib.sha256(content).hexdigest()[:12] not in str(raised.value)


def test_another_size_is_refused_without_reading(tmp_path: Path, reads: Callable[[], int]) -> None:
    """If this fails, a stranger's checkpoint decides which files are read."""
    with pytest.raises(OtherTextError):
        encoded(written(tmp_path, b"a secret"), recorded=recorded_of(b"the text"[:-1]))
    assert reads() == 0


def test_the_recorded_text_is_used(tmp_path: Path) -> None:
    """If this fails, a model cannot be evaluated on its own text, or on a folder with files that are not text."""
    content = b"the text"
    path = written(tmp_path, content)
    for _ in range(2):
        assert text_of(encoded(path, recorded=recorded_of(content))) == "the text"
    for name, each in (("1.txt", b"one "), ("2.png", b"\x89PNG\0 binary"), ("3.txt", b"two")):
        written(tmp_path / "folder", each, name)
    assert text_of(encoded(tmp_path / "folder", recorded=recorded_of(b"one two"))) == "one two"


def test_a_folder_that_is_another_text_leaves_nothing(tmp_path: Path, reads: Callable[[], int]) -> None:
    """If this fails, a folder that a stranger names is copied, or is read to its end although it is too much."""
    for number in range(9):
        written(tmp_path / "folder", b"private text", f"{number}.txt")
    with pytest.raises(OtherTextError):
        encoded(tmp_path / "folder", recorded=recorded_of(b"some text"))
    assert kept() == []
    assert reads() == 1


def test_an_encoded_text_is_not_taken_for_a_recorded_one(tmp_path: Path) -> None:
    """If this fails, a text that the user has trained on is scored for a checkpoint that records another."""
    path = written(tmp_path, b"some text")
    encoded(path)
    with pytest.raises(OtherTextError):
        encoded(path, recorded=recorded_of(b"text some"))


def test_files_of_the_kernel_are_not_read(reads: Callable[[], int]) -> None:
    """If this fails, a stranger's checkpoint makes charlm wait for ever on a file of /proc."""
    if not Path("/proc/version").exists():
        return
    with pytest.raises(OtherTextError, match="not an ordinary file"):
        encoded(Path("/proc/version"), recorded=Recorded(0, hashlib.sha256(b"").hexdigest()))
    assert reads() == 0
