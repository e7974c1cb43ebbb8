"""Broken streams and closed terminals: a run is never lost, and no file receives what was meant for a terminal."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

MANY = "checkpoint: {every: 20}\nevaluate: {every: 1000000}\nsample: {every: 1000000, length: 12}\n"
SHORT = "corpus: ./text.txt\nmodel: {hidden: 8, dropout: 0}\n" + MANY
LONG = SHORT + "train: {batch: 4, seq_length: 16, total_steps: 10000000, threads: 1, precision: fp32}\n"


@pytest.fixture
def long_recipe(desk: Path) -> Path:
    """A training that would take hours, saved every 20 steps."""
    path = desk / "long.yaml"
    path.write_text(LONG, encoding="utf-8")
    return path


def _shell(command: str, **settings: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``charlm …`` with the redirections of a shell."""
    line = command.replace("charlm ", f"{sys.executable} -m charlm ", 1)
    return subprocess.run(["bash", "-c", line], capture_output=True, env={**os.environ, **settings}, timeout=60)


def _finished(run: Path) -> bool:
    last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return json.loads(last)["kind"] == "finished" and (run / "best.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirections", "code"),
    [
        ("2>&1 | head -2; exit ${PIPESTATUS[0]}", 1),
        (">/dev/full 2>/dev/full", 1),
        ("2>/dev/full", 0),
        ("-q >/dev/full", 1),
        (">&- 2>&- <&-", 1),
        ("2>&-", 0),
    ],
)
def test_a_training_survives_its_streams(desk: Path, redirections: str, code: int) -> None:
    """Failing would mean that a lost terminal, pipe or disk for logs ends a training, or that a lost result looks fine."""
    done = _shell(f"charlm train recipe.yaml --out run {redirections}")
    assert done.returncode == code, done.stderr
    assert _finished(desk / "run")
    if "-q" in redirections:
        assert b"standard output: No space left on device" in done.stderr and b"saved in run" in done.stderr
    for path in (desk / "run").iterdir():
        assert b"validation perplexity" not in path.read_bytes(), "printed into a file"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("sample RUN --length 50 >/dev/full", 1, b"standard output: No space left on device"),
        ("sample RUN --length 50 >&-", 1, b"standard output: Bad file descriptor"),
        ("sample RUN --prompt - <&-", 2, b"--prompt -: Bad file descriptor"),
        ("recipe schema | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, b""),
        ("train --help | true; exit ${PIPESTATUS[0]}", 0, b""),
    ],
)
def test_other_commands_tell_a_reader_who_left_from_a_failure(trained: Path, command: str, code: int, error: bytes) -> None:
    """Failing would mean that `| head` is an error, or that a full disk or a closed descriptor is none, or a traceback."""
    done = _shell(f"charlm {command.replace('RUN', str(trained / 'run'))}")
    assert done.returncode == code, done.stderr
    assert error in done.stderr and b"Traceback" not in done.stderr and b"bug" not in done.stderr


@pytest.mark.slow
def test_ascii_locales_read_arguments_and_file_names(desk: Path, trained: Path) -> None:
    """Failing would mean a UnicodeEncodeError, after hours of training, where the locale is C and UTF-8 mode is off."""
    (desk / "nü.yaml").write_bytes((desk / "recipe.yaml").read_bytes())
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = _shell("charlm train nü.yaml --out ü --max-steps 2 -q --json", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["checkpoint"] == "ü/best.safetensors" and (desk / "ü").is_dir()
    refused = _shell(f"charlm sample {trained / 'run'} --prompt ü", **ascii_only)
    assert refused.returncode == 2 and "'ü' (U+00FC)" in refused.stderr.decode()


@pytest.mark.slow
def test_a_closed_terminal_stops_and_saves(long_recipe: Path, desk: Path, terminal: Any) -> None:
    """Failing would mean that a lost connection costs the work since the last checkpoint."""
    opened = terminal("train", "long.yaml", "--out", "run")
    opened.until(lambda: (desk / "run" / "previous.safetensors").exists())
    os.close(opened.theirs)
    os.close(opened.ours)
    opened.ours = opened.theirs = -1
    assert opened.process.wait(timeout=30) == 130
    assert _finished(desk / "run")
    assert '"stopped_because": "interrupted"' in (desk / "run" / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_nohup_keeps_a_training_running(charlm_process: Any, long_recipe: Path, desk: Path) -> None:
    """Failing would mean that `nohup charlm train` ends with the terminal."""
    process = charlm_process(
        "train", "long.yaml", "--out", "run", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    end = time.monotonic() + 40
    while not (desk / "run" / "previous.safetensors").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_of_training_is_an_interruption(charlm_process: Any, desk: Path, number: int) -> None:
    """Failing would mean that a signal outside of training is a silent death, with locks and half-made files left behind."""
    os.mkfifo(desk / "prompt.fifo")  # reading it waits for a writer
    process = charlm_process("sample", "any", "--prompt", "@prompt.fifo")
    time.sleep(2)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.slow
def test_typed_keys_are_not_drawn_and_echo_comes_back(long_recipe: Path, terminal: Any) -> None:
    """Failing would mean a status line with letters in it, or a shell that shows nothing any more."""
    opened = terminal("train", "long.yaml", "--out", "run")
    opened.until(lambda: "loss" in opened.drawn)
    assert not opened.echoes
    os.write(opened.ours, b"zzzz\x03")
    assert opened.wait() == 130
    assert "zzzz" not in opened.drawn and opened.echoes


@pytest.mark.slow
def test_sentences_break_between_words_and_commands_do_not(desk: Path, terminal: Any) -> None:
    """Failing would mean words torn apart at the terminal's edge, or a command that cannot be copied."""
    folder = "a-folder-with-a-long-name/that-does-not-fit-into-one-line-of-a-terminal/run"
    opened = terminal("train", "recipe.yaml", "--out", folder, "--max-steps", "4")
    assert opened.wait() == 0
    assert f"charlm train recipe.yaml --out {folder} --resume auto" in opened.drawn
    again = terminal("train", "recipe.yaml", "--out", folder)
    assert again.wait() == 2
    _, *lines = re.sub(r"\x1b\[[?\d;]*\w|\r", "", again.drawn).strip().split("\n")
    assert folder in again.drawn and lines and all(len(line) <= 80 for line in lines), again.drawn
    assert " ".join(lines).endswith("use another folder (--out DIR)")


@pytest.mark.slow
def test_json_on_a_terminal_is_escaped(trained: Path, terminal: Any) -> None:
    """Failing would mean that a prompt or a model's text can command the terminal through JSON."""
    prompt = "\x9bthe\u202e"
    arguments = [
        "sample",
        str(trained / "run"),
        "--prompt",
        prompt,
        "--unknown",
        "map",
        "--length",
        "5",
        "--json",
        "--seed",
        "1",
    ]
    opened = terminal(*arguments)
    assert opened.wait() == 0
    assert "\x9b" not in opened.drawn and "\u202e" not in opened.drawn
    assert json.loads(opened.drawn)["prompt"] == prompt
    piped = subprocess.run([sys.executable, "-m", "charlm", *arguments], capture_output=True)
    assert prompt in piped.stdout.decode()


def test_json_of_bytes_keeps_every_byte(charlm: Any, trained: Path) -> None:
    """Failing would mean that JSON loses the bytes that are not UTF-8."""
    arguments = ["--set", "data.unit=byte", "--max-steps", "1", "--out", str(trained / "byte-json"), "-q", "--overwrite"]
    assert charlm("train", trained / "recipe.yaml", *arguments).code == 0
    options = ("--length", 60, "--num", 2, "--seed", 1)
    record = charlm("sample", trained / "byte-json", *options, "--json").record
    exact = b"\n".join(base64.b64decode(text) for text in record["samples_base64"])
    assert exact == charlm("sample", trained / "byte-json", *options).out
    assert [base64.b64decode(text).decode("utf-8", "replace") for text in record["samples_base64"]] == record["samples"]


def test_json_that_does_not_fit_into_memory_is_refused(charlm: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a mistyped length takes all memory of the machine."""
    for options in (("--length", 10**12), ("--num", 10**9)):
        refused = charlm("sample", trained / "run", *options, "--json")
        assert refused.code == 2 and "100,000,000" in refused.err and refused.out == b""
    monkeypatch.setattr("charlm.cli.sample._JSON_CHARACTERS", 50)
    endless = charlm("sample", trained / "run", "--length", 0, "--stop", "§", "--json")
    assert endless.code == 2 and "more than 50" in endless.err


def test_many_short_samples_appear_as_they_are_drawn(charlm: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a million samples are drawn before the first is written, or that grouping changes the text."""
    from charlm import sampling

    drawn: list[int] = []
    original = sampling.generate_parallel

    def counted(model: Any, vocabulary: Any, prompt: Any, params: Any, seed: int, numbers: Any, *rest: Any) -> Any:
        drawn.append(len(numbers))
        return original(model, vocabulary, prompt, params, seed, numbers, *rest)

    monkeypatch.setattr(sampling, "generate_parallel", counted)
    monkeypatch.setattr("charlm.cli.sample._GROUP", 10)
    grouped = charlm("sample", trained / "run", "--num", 30, "--length", 3, "--seed", 4).text
    assert drawn[0] == 1 and max(drawn) <= 10 and sum(drawn) == 30
    monkeypatch.setattr("charlm.cli.sample._GROUP", 1)
    assert charlm("sample", trained / "run", "--num", 30, "--length", 3, "--seed", 4).text == grouped


def test_a_backslash_n_in_a_prompt_is_explained(charlm: Any, trained: Path) -> None:
    """Failing would mean that people who type \\n for a newline are told of an unknown backslash and no more."""
    refused = charlm("sample", trained / "run", "--prompt", "the\\nking")
    assert refused.code == 2 and "--prompt $'the\\nking'" in refused.err
    assert "$'" not in charlm("sample", trained / "run", "--prompt", "日").err


def test_prompts_with_windows_line_ends_read_as_the_corpus_was(charlm: Any, trained: Path, tmp_path: Path) -> None:
    """Failing would mean that a prompt file from Windows is refused by a model that was trained on such files."""
    options = ("--seed", 1, "--length", 20)
    (tmp_path / "prompt.txt").write_bytes(b"the king\r\nthe queen")
    windows = charlm("sample", trained / "run", "--prompt", f"@{tmp_path / 'prompt.txt'}", *options)
    assert windows.code == 0, windows.err
    assert windows.out == charlm("sample", trained / "run", "--prompt", "the king\nthe queen", *options).out


def test_lines_break_by_the_columns_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that Chinese text is twice as wide as the terminal, or that accents break lines too early."""
    from rich.cells import cell_len

    from charlm.cli import console

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    wide, accents = "汉字汉字 " * 20, "e\u0301e\u0301e\u0301 " * 20
    for text in (wide, accents):
        lines = console.wrapped(text.rstrip(), start="name  ", indent=6).split("\n")
        assert max(map(cell_len, lines)) <= 40
        assert min(map(cell_len, lines[:-1])) > 28
        assert lines[1].startswith(" " * 6) and not lines[1].startswith(" " * 7)
    assert console.wrapped("x" * 60, start="error: ") == "error: " + "x" * 60
