"""The commands of docs/tutorial.md run as they are written, and both languages show the same commands and outputs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from charlm.cli.app import run

DOCS = Path(__file__).parents[1] / "docs"
ENGLISH, CHINESE = DOCS / "tutorial.md", DOCS / "tutorial.zh.md"

SHORTER = {
    ("train",): ["--max-steps", "12"],
    ("compare",): ["--set", "train.total_steps=8", "--seeds", "1"],
    ("bench",): ["--repetitions", "1", "--seconds", "0.01"],
    ("eval", "context"): ["--positions", "256"],
    ("eval", "samples"): ["--num", "2", "--length", "100"],
}
"""Options that this test appends to a command, so that the whole tutorial takes less than a minute. The last one counts."""


def blocks(page: Path) -> list[str]:
    """The console blocks of a page."""
    return re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each command of a page with the lines that it printed there."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks(page)).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def keys(lines: list[str]) -> set[str]:
    """The words that begin each line, without numbers: the keys of results, the headers of tables."""
    return {re.split(r"\s{2,}|\d|:|\||[^\x00-\x7f]", line.strip())[0].strip() for line in lines if line not in ("", "…")}


def shortened(command: str) -> list[str]:
    """The arguments of a charlm command, with those of SHORTER."""
    arguments = shlex.split(command)[1:]
    for name, options in SHORTER.items():
        if tuple(arguments[: len(name)]) == name:
            arguments += options
    return arguments


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """If this fails, a reader of the tutorial gets an error, or sees other keys than the page shows."""
    texts = os.environ.get("CHARLM_CORPORA", "")
    if not (Path(texts) / "time-machine.txt").is_file():
        pytest.skip("the tutorial trains on The Time Machine; CHARLM_CORPORA names no folder that has it")
    monkeypatch.chdir(tmp_path)
    listed = commands(ENGLISH)
    assert len(listed) >= 40
    for command, shown in listed:
        if not command.startswith("charlm "):
            subprocess.run(["bash", "-c", command], check=True)
            continue
        code = run(shortened(command))
        printed = capfd.readouterr()
        assert code == 0, f"$ {command}\n{printed.err}"
        if command.startswith("charlm sample") and "--probabilities" not in command:
            assert printed.out.strip(), command
        else:
            first = shown[: shown.index("")] if "" in shown else shown  # a passage after the table depends on the weights
            assert keys(first) <= keys((printed.out + printed.err).splitlines()), command


def test_languages_show_the_same() -> None:
    """If this fails, the Chinese page shows another command or another output than the English one."""
    assert commands(CHINESE) == commands(ENGLISH)
    headings = [re.findall(r"^## (\d+)\.", page.read_text(encoding="utf-8"), re.MULTILINE) for page in (ENGLISH, CHINESE)]
    assert headings[0] == headings[1] == [str(number) for number in range(1, 12)]
