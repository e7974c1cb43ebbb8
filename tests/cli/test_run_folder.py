"""``--out``: what a user may name there, and whose files are safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from charlm.cli.console import shell_words


@pytest.mark.parametrize("out", [".", "../desk"])
def test_training_into_a_folder_of_ones_own_files_is_refused(charlm, desk, out):
    """Failing would mean that `charlm train ./config.yaml --out .` destroys a recipe and two logs."""
    (desk / "desk").mkdir()
    os.chdir(desk / "desk")
    own = {"config.yaml": "# mine\ncorpus: ../text.txt\n", "samples.txt": "1 ml\n", "metrics.jsonl": '{"loss": 1}\n'}
    for name, content in own.items():
        (desk / "desk" / name).write_text(content, encoding="utf-8")
    for more in ([], ["--overwrite"], ["--resume", "auto"]):
        done = charlm("train", "./config.yaml", "--out", out, "--max-steps", 1, *more)
        assert done.code == 2
        assert "config.yaml, metrics.jsonl, samples.txt: charlm did not write them" in done.err and "--out" in done.err
    assert {path.name: path.read_text(encoding="utf-8") for path in (desk / "desk").iterdir()} == own


@pytest.mark.parametrize("command", ["train", "compare"])
def test_an_empty_name_is_refused(charlm, desk, command):
    """Failing would mean that `--out "$UNSET"` trains into the current folder."""
    before = sorted(desk.iterdir())
    done = charlm(command, "recipe.yaml", "--out", "")
    assert done.code == 2 and "--out is empty" in done.err
    assert sorted(desk.iterdir()) == before


def test_the_home_folder_is_expanded(charlm, desk, monkeypatch):
    """Failing would mean that `--out=~/runs`, which shells leave as it is, makes a folder `~` that no other command finds."""
    monkeypatch.setenv("HOME", str(desk / "home"))
    first = charlm("train", "recipe.yaml", "--out=~/run", "-q", "--max-steps", 2, "--json")
    assert first.code == 0 and Path(first.record["checkpoint"]).is_relative_to(desk / "home")
    assert charlm("info", "~/run").code == 0 and not (desk / "~").exists()
    assert charlm("train", "recipe.yaml", "--out", "~nobody-of-that-name/run").code == 2


def test_a_run_is_trained_again_from_its_own_config(charlm, desk):
    """Failing would mean that a run's config.yaml cannot be resumed from, or started anew from, in the run's own folder."""
    assert charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 2).code == 0
    (desk / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    again = charlm("train", "run/config.yaml", "--out", "run", "--resume", "auto", "--max-steps", 3, "--json", "-q")
    assert again.record["resumed_from"] == 2
    anew = charlm("train", "run/config.yaml", "--out", "run", "--overwrite", "--max-steps", 2)
    assert anew.code == 0
    assert (desk / "run" / "notes.txt").exists() and not (desk / "run.old-1" / "notes.txt").exists()
    command = next(line for line in anew.err.splitlines() if line.startswith("resume with")).split()[3:]
    assert charlm(*command, "--max-steps", 3, "--json", "-q").record["resumed_from"] == 2


def test_names_that_are_not_utf_8(charlm, desk):
    """Failing would mean that a run in a folder with such a name ends as a bug, or that the printed command is wrong."""
    out = os.fsdecode(b"runs/\xfc \x1b'")
    first = charlm("train", "recipe.yaml", "--out", out, "--max-steps", 2, "--json")
    assert first.code == 0, first.err
    assert Path(first.record["checkpoint"]).is_file()
    line = next(line for line in first.err.splitlines() if line.startswith("resume with")).removeprefix("resume with").strip()
    assert line.isascii() and line.isprintable()
    shell = 'import os, sys; sys.stdout.buffer.write(b"\\0".join(map(os.fsencode, sys.argv[1:])))'
    script = f"charlm() {{ {sys.executable} -c '{shell}' \"$@\"; }}; {line}"
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")
    assert os.fsencode(out) in words
    done = charlm(*map(os.fsdecode, words), "--max-steps", 3, "--json", "-q")
    assert (done.code, done.record["resumed_from"]) == (0, 2)
    last = (desk / out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["checkpoint"] == done.record["checkpoint"]
    assert charlm("sample", out, "--length", 3).code == 0
    assert charlm("info", out).code == 0


def test_a_recipe_in_a_folder_whose_name_is_not_utf_8(charlm, desk, english):
    """Failing would mean that a run's config.yaml cannot be read by charlm itself."""
    folder = desk / os.fsdecode(b"\xfc")
    folder.mkdir()
    for name in ("text.txt", "recipe.yaml"):
        (desk / name).rename(folder / name)
    assert charlm("train", folder / "recipe.yaml", "--out", "run", "--max-steps", 2, "-q").code == 0
    os.chdir(folder)
    done = charlm("train", "../run/config.yaml", "--out", "../run", "--resume", "auto", "--max-steps", 3, "-q")
    assert done.code == 0, done.err


def test_ordinary_words_are_quoted_as_ever():
    """Failing would mean that commands are harder to read than they need be."""
    assert shell_words(["charlm", "a b", "ü", "a-b"]) == "charlm 'a b' 'ü' a-b"
    assert shell_words(["it's\n\\"]) == r"$'it\'s\x0a\\'"


def test_only_best_left(charlm, desk):
    """Failing would mean that the user is told that there is no run, where weights are."""
    charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 2)
    for path in (desk / "run").iterdir():
        if path.name != "best.safetensors":
            path.unlink()
    done = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto")
    assert done.code == 2
    assert "holds only best.safetensors" in done.err and "--init run/best.safetensors" in done.err
    assert "no run" not in done.err


def test_a_comparison_leaves_other_files(charlm, desk):
    """Failing would mean that a comparison replaces or removes a file that it did not write."""
    out = desk / "all"
    out.mkdir()
    (out / "equal-time.json").write_text("[1]", encoding="utf-8")
    for more in ([], ["--overwrite"]):
        given = ["recipe.yaml", "--out", "all", "--equal", "time", "--max-time", "1s", *more]
        done = charlm("compare", *given)
        assert done.code == 2 and "equal-time.json was not written by charlm" in done.err
    assert (out / "equal-time.json").read_text(encoding="utf-8") == "[1]"


def test_a_text_whose_name_begins_with_a_dash_is_resumed(charlm, desk):
    """Failing would mean that the printed command takes the text's name for an option."""
    (desk / "-dash.txt").write_bytes((desk / "text.txt").read_bytes())
    small = ["--set", "model.hidden=8", "--set", "train.threads=1", "--set", "sample.length=4"]
    first = charlm("train", "--max-steps", 2, "--out", "run", *small, "--", "-dash.txt")
    assert first.code == 0, first.err
    command = next(line for line in first.err.splitlines() if line.startswith("resume with")).split()[3:]
    assert charlm(*command, "--max-steps", 3, "--json", "-q").record["resumed_from"] == 2
