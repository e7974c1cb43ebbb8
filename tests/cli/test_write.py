"""``charlm write``: lines in, texts out; in a pipe and on a terminal."""

from __future__ import annotations

import io
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.cli.history import MOST_CHARACTERS, MOST_LINES, recalled, remember


@pytest.fixture
def write(charlm: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``write(line, …)``: ``charlm write`` with these lines in a pipe, seed 1 and 30 characters per text."""

    def run(*lines: str, options: tuple[Any, ...] = ("--seed", 1, "--length", 30)) -> Any:
        given = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8", errors="surrogateescape"))
        return charlm("write", trained / "run", *options)

    return run


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder, which does not exist yet."""
    monkeypatch.setenv("CHARLM_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def sample(charlm: Any, trained: Path) -> Callable[..., str]:
    """``sample(prompt, …)``: the text of ``charlm sample``, with the same settings."""

    def run(prompt: str, *options: Any) -> str:
        return str(charlm("sample", trained / "run", "--prompt", prompt, "--seed", 1, "--length", 30, *options).text)

    return run


def test_a_pipe_gets_the_texts_of_sample_and_nothing_else(write: Any, sample: Any) -> None:
    """Failing would mean that texts are not those of ``charlm sample``, or that notices get into a file of texts."""
    done = write("the king", "/again", "the queen")
    assert done.code == 0
    assert done.text == sample("the king", "--num", 2) + "\n" + sample("the queen")
    assert done.err == "seed 1, sample 2\n"


def test_the_settings_are_those_of_sample(write: Any, sample: Any) -> None:
    """Failing would mean that a command sets something else, or nothing."""
    for command, options in (
        ("/temperature 0.3", ("--temperature", 0.3)),
        ("/top-k 2", ("--top-k", 2)),
        ("/top-p 0.5", ("--top-p", 0.5)),
        ("/length 9", ("--length", 9)),
        ("/seed 7", ("--seed", 7)),
        ("/stop e", ("--stop", "e")),
        (r"/stop \n", ("--stop", "\n")),
    ):
        assert write(command, "the").text == sample("the", *options), command
    assert write("/stop e", "/stop", "the").text == sample("the")


def test_more_joins_without_a_seam(write: Any, sample: Any) -> None:
    """Failing would mean that a continued text has a line break that the model did not write."""
    assert write("the", "/more").text == sample("the", "--length", 60)


def test_prompts_of_several_lines_and_escapes(write: Any, sample: Any) -> None:
    """Failing would mean that a prompt differs from the typed one."""
    expected = sample("the\nking")
    assert write(r"the\nking").text == expected
    assert write("the\\", "king").text == expected
    assert write("").text == sample("")
    assert write("the\\").text == sample("the")
    for literal in (r"a\\b", "a\\\\"):  # one backslash, which the model does not know
        assert r"'\\' (U+005C)" in write(literal).err
    assert "'/' (U+002F)" in write("//king").err


def test_errors_do_not_end_the_session(write: Any, sample: Any) -> None:
    """Failing would mean that a typing mistake costs the session, or is not explained."""
    done = write("日本", "/sead 1", "/again", "/top-k x", "/top-p 2", "/length", "/more 9", f"/seed {2**64}", "/save", "the")
    assert (done.code, done.text) == (0, sample("the"))
    expected = ("U+65E5", "/seed?", "no text yet", "'x'", "/top-p 2", "missing", "takes nothing", "at most", "/save [--all]")
    lines = done.err.splitlines()
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert line.startswith("error: ") and part in line


def test_a_random_seed_is_printed_and_repeats_the_text(write: Any, sample: Any) -> None:
    """Failing would mean that a good text cannot be drawn again."""
    done = write("the", options=("--length", 30))
    seed = done.err.removeprefix("seed ").strip()
    assert done.text == sample("the", "--seed", seed)
    assert write("/temperature 0", "the", options=("--length", 30)).err == ""


def test_show_and_help_are_no_results(write: Any) -> None:
    """Failing would mean that settings get into a file of texts, or that the help breaks at 80 columns."""
    done = write("/top-k 3", "/show", "/help", "/quit", "the")
    assert (done.code, done.out) == (0, b"")
    assert "top-k        3\n" in done.err
    assert max(map(len, done.err.splitlines())) < 80


def test_texts_are_saved_but_foreign_files_are_kept(write: Any, sample: Any, tmp_path: Path) -> None:
    """Failing would mean that a text is lost, changed, or written over somebody's file."""
    own, foreign = tmp_path / "a b.txt", tmp_path / "foreign.txt"
    foreign.write_text("mine", encoding="utf-8")
    texts = ["the" + sample("the"), "king" + sample("king")]
    refused = write("the", f'/save "{own}"', "king", f'/save --all "{own}"', f"/save {foreign}", f"/save {tmp_path}")
    assert own.read_text(encoding="utf-8") == "\n\n".join(texts)
    assert foreign.read_text(encoding="utf-8") == "mine"
    assert refused.err.count("--force") == 2
    assert "--force" in write("the", f'/save "{own}"').err, "written by another session"
    write("the", f"/save {foreign} --force")
    assert foreign.read_text(encoding="utf-8") == texts[0]


def test_history_is_private_bounded_and_shared(tmp_path: Path) -> None:
    """Failing would mean that prompts can be read by others, grow without end, or that a second session removes them."""
    path = tmp_path / "state" / "history"
    assert recalled(path) == []
    remember(path, ["one", "", "x" * (MOST_CHARACTERS + 1), "two\nlines", "zwei ü"])
    remember(path, ["three"])
    assert recalled(path) == ["one", "zwei ü", "three"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    remember(path, [str(number) for number in range(MOST_LINES)])
    assert recalled(path) == [str(number) for number in range(MOST_LINES)]


@pytest.mark.slow
def test_a_terminal_edits_lines_and_ctrl_c_stops_only_the_text(trained: Path, state: Path, terminal: Any) -> None:
    """Failing would mean that Ctrl-C costs the session, that keys spoil the text, or that lines cannot be recalled."""
    opened = terminal("write", str(trained / "run"), "--length", "0", "--seed", "1")
    opened.until(lambda: opened.drawn.endswith("> ") or "\n\x1b[?2004h> " in opened.drawn)
    opened.type("thex\x7f\r")  # Backspace
    opened.until(lambda: len(opened.drawn) > 2000)
    assert not opened.echoes
    opened.type("\x03")
    opened.until(lambda: "stopped; /more continues it" in opened.drawn and opened.drawn.endswith("> "))
    opened.type("half a line\x03")
    opened.until(lambda: "Ctrl-D or /quit ends the session" in opened.drawn)
    opened.type("/length 10\r")
    opened.type("\x1b[A\x1b[A\r")  # twice Up: the prompt
    opened.until(lambda: opened.drawn.count("\x1b[2mthe\x1b[0m") == 2)
    opened.type("\x04")
    assert opened.wait() == 0
    assert opened.echoes
    assert recalled(state / "write_history") == ["the", "/length 10", "the"]
    assert "Traceback" not in opened.drawn


@pytest.mark.slow
def test_without_history_no_line_is_kept(trained: Path, state: Path, terminal: Any) -> None:
    """Failing would mean that private prompts get to the disk."""
    opened = terminal("write", str(trained / "run"), "--no-history")
    opened.type("/length 10\r/quit\r")
    assert opened.wait() == 0
    assert not state.exists()


@pytest.mark.slow
def test_a_signal_ends_the_session_and_keeps_the_history(trained: Path, state: Path, terminal: Any) -> None:
    """Failing would mean that SIGTERM or a closed terminal is taken for Ctrl-C, and the process stays."""
    opened = terminal("write", str(trained / "run"), "--length", "0", "--seed", "1")
    opened.type("the\r")
    opened.until(lambda: len(opened.drawn) > 2000)
    os.kill(opened.process.pid, signal.SIGTERM)
    assert opened.wait() == 130
    assert opened.echoes
    assert recalled(state / "write_history") == ["the"]


@pytest.mark.slow
def test_ctrl_c_in_a_pipe_ends_the_program(charlm_process: Any, trained: Path, tmp_path: Path) -> None:
    """Failing would mean that a script that uses ``charlm write`` cannot be interrupted."""
    (tmp_path / "lines").write_text("the\nking\n", encoding="utf-8")
    with (tmp_path / "lines").open() as lines:
        process = charlm_process("write", trained / "run", "--length", 0, "--seed", 1, stdin=lines)
        assert process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in err
