"""``charlm eval context``."""

from __future__ import annotations

import sys

import pytest


def test_json_has_its_keys_and_is_what_python_gives(charlm, trained):
    """Failing would mean that scripts find other keys than documented."""
    import charlm as package

    record = charlm("eval", "context", trained / "run", trained / "text.txt", "--positions", 300, "--json").record
    found = package.load(trained / "run").context((trained / "text.txt").read_text(), positions=300)
    assert record["effective_context"] == found.effective_context and record["positions"] == 300
    assert record["distances"] == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    for name in ("cut", "shuffled", "replaced", "cold_start"):
        assert record[name] == pytest.approx(getattr(found, name).tolist())
    assert len(record["cold_start"]) == 1000
    expected = charlm("eval", "perplexity", trained / "run", trained / "text.txt", "--json").record
    assert record["full"] == pytest.approx(found.full) == pytest.approx(expected["nats_per_character"], rel=0.1)
    assert record["sha256"] == expected["sha256"]


def test_the_table_states_the_effective_context(charlm, trained):
    """Failing would mean that the number that people look for is not shown."""
    record = charlm("eval", "context", trained / "run", trained / "text.txt", "--json").record
    done = charlm("eval", "context", trained / "run", trained / "text.txt")
    assert f"effective context     {record['effective_context']} characters" in done.text
    assert f"{record['cut'][1]:.4f}" in done.text and "█" in done.text
    assert all(len(line) <= 80 for line in done.text.splitlines())


@pytest.mark.parametrize("text", ["th", "the king\n", "the ☃ king\n" * 25])
def test_a_text_that_is_too_short_has_none(charlm, trained, tmp_path, text):
    """Failing would mean a traceback, or a number that rests on a handful of characters."""
    (tmp_path / "text").write_text(text, encoding="utf-8")
    record = charlm("eval", "context", trained / "run", tmp_path / "text", "--positions", 255, "--json").record
    assert record["effective_context"] is None
    done = charlm("eval", "context", trained / "run", tmp_path / "text", "--positions", 255)
    assert done.code == 0 and "too few positions" in done.text and "256" in done.text


def test_a_picture_is_drawn_and_other_files_stay(charlm, trained, tmp_path):
    """Failing would mean that --png writes no picture, or over a file that is not charlm's."""
    pytest.importorskip("matplotlib")
    for _ in range(2):
        assert charlm("eval", "context", trained / "run", "--png", tmp_path / "context.png").code == 0
    assert (tmp_path / "context.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other").write_text("mine")
    done = charlm("eval", "context", trained / "run", "--png", tmp_path / "other")
    assert done.code == 2 and "--png" in done.err and (tmp_path / "other").read_text() == "mine"


def test_a_picture_needs_matplotlib(charlm, trained, monkeypatch):
    """Failing would mean a traceback, after the whole computation."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = charlm("eval", "context", trained / "run", "--png", "context.png")
    assert done.code == 2 and "charlm[plot]" in done.err
