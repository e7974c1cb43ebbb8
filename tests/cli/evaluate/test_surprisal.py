"""``charlm eval surprisal``."""

from __future__ import annotations

import csv
import io
import json
import math
from html.parser import HTMLParser

import pytest

HOSTILE = "the </script><script>alert(1)</script> \"'&<!-- 🙂 \x1b[31m \u202e king\t\\n\x01\n<b onmouseover=alert(2)>the\n"


class Page(HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_json_has_its_keys_and_sums_to_perplexity(charlm, trained):
    """Failing would mean that scripts find other keys than documented, or that two commands measure differently."""
    expected = charlm("eval", "perplexity", trained / "run", "--json").record
    record = charlm("eval", "surprisal", trained / "run", "--json").record
    assert len(record["nats"]) == record["characters"] == expected["characters"]
    nats = expected["nats_per_character"] * expected["characters"]
    assert math.fsum(record["nats"]) == pytest.approx(nats, rel=1e-6) == record["total_nats"]
    assert math.fsum(record["line_nats"]) == pytest.approx(nats) and len(record["line_nats"]) == record["lines"]
    for key in ("perplexity", "nats_per_character", "bits_per_character"):
        assert record[key] == pytest.approx(expected[key], rel=1e-6)
    for key in ("sha256", "offsets", "split", "step", "engine", "checkpoint", "unknown_characters"):
        assert record[key] == expected[key]
    assert record["nats_per_word"] * record["words"] < nats and record["worst"] == []


def test_the_worst_lines_are_those_with_the_largest_sums(charlm, trained):
    """Failing would mean that anomalies are missed, or are given another line's number."""
    record = charlm("eval", "surprisal", trained / "run", trained / "text.txt", "--worst", 3, "--json").record
    lines = (trained / "text.txt").read_text().splitlines(keepends=True)
    order = sorted(range(len(lines)), key=lambda at: -record["line_nats"][at])[:3]
    assert [entry["line"] for entry in record["worst"]] == [at + 1 for at in order]
    for entry in record["worst"]:
        assert entry["text"] == lines[entry["line"] - 1]
        assert entry["bits_per_character"] == pytest.approx(entry["nats"] / entry["characters"] / math.log(2))
        place = entry["place"]
        assert place["character"] == entry["text"][place["column"] - 1] and place["character"] != place["alternative"]
    done = charlm("eval", "surprisal", trained / "run", trained / "text.txt", "--worst", 3)
    for entry in record["worst"]:
        assert f"line {entry['line']}, column 1: {entry['nats'] / math.log(2):.1f} bits" in done.text
    assert all(len(line) <= 80 for line in done.text.splitlines())


@pytest.mark.parametrize("by", ["word", "character"])
def test_words_and_characters_can_be_listed_too(charlm, trained, by):
    """Failing would mean that --by is ignored, or that places are wrong after the first part of a text."""
    file = trained / "text.txt"
    record = charlm("eval", "surprisal", trained / "run", file, "--worst", 40, "--by", by, "--json").record
    lines = file.read_text().split("\n")
    sums = [entry["nats"] for entry in record["worst"]]
    assert sums == sorted(sums, reverse=True) and len(sums) == 40
    for entry in record["worst"]:
        line = lines[entry["line"] - 1] + "\n"
        assert line[entry["column"] - 1 :].startswith(entry["text"])
        assert entry["text"].isalnum() or by == "character"
    if by == "character":
        assert sums == sorted(record["nats"], reverse=True)[:40]


@pytest.mark.parametrize("target", ["file", "stdout"])
def test_the_table_has_a_row_for_each_character(charlm, trained, tmp_path, target):
    """Failing would mean that other programs read other characters, places or sums."""
    (tmp_path / "text").write_text("the king\n" * 300 + "\tthe \\ ☃", encoding="utf-8")
    arguments = ("eval", "surprisal", trained / "run", tmp_path / "text")
    if target == "file":
        assert charlm(*arguments, "--tsv", tmp_path / "new" / "out.tsv").code == 0
        table = (tmp_path / "new" / "out.tsv").read_text(encoding="utf-8")
    else:
        table = charlm(*arguments, "--tsv", "-").text
    rows = list(csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE))
    nats = charlm(*arguments, "--json").record["nats"]
    assert [float(row["nats"]) for row in rows] == pytest.approx(nats, abs=1e-6)
    places = [(int(row["line"]), int(row["column"]), row["character"]) for row in rows]
    assert places[:3] == [(1, 2, "h"), (1, 3, "e"), (1, 4, " ")]
    assert places[7:9] == [(1, 9, "\\n"), (2, 1, "t")]
    assert places[-8:] == [(301, column, c) for column, c in enumerate(["\\t", *"the ", "\\\\", " ", "☃"], 1)]
    assert all(0 < float(row["probability"]) < 1 and row["alternative"] != row["character"] for row in rows)
    for by, count in (("word", 601), ("line", 301)):
        rows = charlm(*arguments, "--tsv", "-", "--by", by).text.splitlines()
        assert len(rows) == count + 1
        total = sum(float(row.split("\t")[4]) for row in rows[1:])
        assert total == pytest.approx(sum(nats), rel=1e-4) if by == "line" else total < sum(nats)
    assert rows[-1].split("\t")[:3] == ["301", "1", "\\tthe \\\\ ☃"]


def test_the_terminal_view_marks_surprising_characters(charlm, trained):
    """Failing would mean that the marks are below other characters, or that control characters reach the terminal."""
    done = charlm("eval", "surprisal", trained / "run", trained / "text.txt", "--characters", 200)
    record = charlm("eval", "surprisal", trained / "run", trained / "text.txt", "--json").record
    shown, *_ = done.text.split("the digits below")
    text = (trained / "text.txt").read_text()[:200]
    rows, seen = shown.splitlines(), ""
    bits = [0.0, *(nats / math.log(2) for nats in record["nats"])]
    for row in rows:
        if not set(row) <= set(" 0123456789"):
            first, seen = len(seen), seen + row.replace("↵", "\n")
        else:
            for at, mark in enumerate(row, first):
                assert mark == (" " if bits[at] < 3 else str(min(9, int(bits[at]))))
    assert seen == text
    assert f"bits per character    {record['bits_per_character']:.6f}" in done.text


def test_a_terminal_gets_colours_instead_of_marks(charlm, trained, monkeypatch):
    """Failing would mean that surprisal is not seen at a glance, or that NO_COLOR is ignored."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    arguments = ("eval", "surprisal", trained / "run", trained / "text.txt", "--characters", 200)
    assert "\x1b[30;48;5;" in charlm(*arguments).text and "the digits below" not in charlm(*arguments).text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[30;48;5;" not in charlm(*arguments).text and "the digits below" in charlm(*arguments).text


def test_python_gives_the_same(charlm, trained):
    """Failing would mean that the command and Python disagree."""
    import charlm as package

    model = package.load(trained / "run")
    found = model.surprisal((trained / "text.txt").read_text(), alternatives=1)
    record = charlm("eval", "surprisal", trained / "run", trained / "text.txt", "--worst", 1, "--json").record
    assert found.nats.tolist() == pytest.approx(record["nats"])
    place = sum(len(line) for line in (trained / "text.txt").read_text().splitlines(True)[: record["worst"][0]["line"] - 1])
    at = place + record["worst"][0]["place"]["column"] - 1 - found.start
    assert model.vocabulary.shown(int(found.alternatives[at, 0])) == record["worst"][0]["place"]["alternative"]


def test_hostile_text_is_inert(charlm, trained, tmp_path):
    """Failing would mean that a text can run code in a page, or control a terminal."""
    file = tmp_path / "text"
    file.write_text(HOSTILE, encoding="utf-8")
    assert charlm("eval", "surprisal", trained / "run", file, "--html", tmp_path / "page.html").code == 0
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(content)
    assert [tag for tag, _ in page.elements].count("script") == 1 and "b" not in [tag for tag, _ in page.elements]
    names = {name for _, found in page.elements for name in found}
    assert "src" not in names and not any(name.startswith("on") for name in names)
    assert [found["href"] for _, found in page.elements if "href" in found] == ["data:,"]
    characters = [found for tag, found in page.elements if tag == "span" and "data-a" in found]
    assert len(characters) == len(HOSTILE)
    assert not any(ord(c) < 32 and c != "\n" for c in content) and "\u202e" not in content
    for arguments in ((), ("--worst", 2), ("--worst", 9, "--by", "character"), ("--tsv", "-")):
        text = charlm("eval", "surprisal", trained / "run", file, *arguments).text
        assert not any((ord(c) < 32 and c not in "\n\t") or c == "\u202e" for c in text)


def test_other_files_are_never_overwritten(charlm, trained, tmp_path):
    """Failing would mean that a wrong argument destroys a text."""
    file = tmp_path / "text"
    file.write_text("the king and the queen\n")
    for option in ("--html", "--tsv"):
        done = charlm("eval", "surprisal", trained / "run", file, option, file)
        assert done.code == 2 and "exists" in done.err and option in done.err
        assert file.read_text() == "the king and the queen\n"
        for _ in range(2):
            assert charlm("eval", "surprisal", trained / "run", file, option, tmp_path / option).code == 0
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / option)
        for other in (tmp_path / "link", tmp_path, "/dev/null"):
            assert charlm("eval", "surprisal", trained / "run", file, option, other).code == 2
    assert charlm("eval", "surprisal", trained / "run", file, "--json", "--tsv", "-").code == 2


def test_bytes_and_very_short_texts_are_shown(charlm, desk):
    """Failing would mean a traceback, or bytes that are taken for characters."""
    (desk / "text.txt").write_bytes("größe 12\n".encode() * 200)
    assert charlm("train", "recipe.yaml", "--set", "data.unit=byte", "--out", "run", "--max-steps", 3, "-q").code == 0
    rows = [row.split("\t") for row in charlm("eval", "surprisal", "run", "text.txt", "--tsv", "-").text.splitlines()]
    assert [row[2] for row in rows[1:7]] == ["r", "\\xc3", "\\xb6", "\\xc3", "\\x9f", "e"]
    worst = charlm("eval", "surprisal", "run", "text.txt", "--worst", 1, "--by", "word", "--json").record["worst"][0]
    assert worst["text"] in ("größe", "12")
    assert "gr\\xc3\\xb6" in charlm("eval", "surprisal", "run", "text.txt").text
    for text, code in ((b"ab", 0), (b"\n\n", 0), (b"a", 1)):
        (desk / "short").write_bytes(text)
        for arguments in ((), ("--worst", 3), ("--json",), ("--tsv", "-", "--by", "word"), ("--html", "page.html")):
            done = charlm("eval", "surprisal", "run", "short", *arguments)
            assert done.code == code, done.err
    assert "two are needed" in done.err


def test_a_long_list_is_one_line_of_json(charlm, trained, monkeypatch):
    """Failing would mean that the numbers of a long text are lost or doubled where one block ends."""
    monkeypatch.setattr("charlm.cli.evaluate.surprisal_files._Numbers._BLOCK", 7)
    done = charlm("eval", "surprisal", trained / "run", "--json")
    assert done.text.count("\n") == 1
    assert len(json.loads(done.text)["nats"]) == done.record["characters"]
