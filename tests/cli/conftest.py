"""What the tests of the command line share: ``charlm`` runs in this process, with tiny models on tiny texts."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
corpus: ./text.txt
model: {hidden: 8, dropout: 0}
train: {batch: 4, seq_length: 16, total_steps: 20, threads: 1, precision: fp32, lr: 0.01}
evaluate: {every: 5}
sample: {length: 12}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode()

    @property
    def record(self) -> dict[str, Any]:
        """The JSON of the last line; ``NaN`` and ``Infinity``, which are not JSON, are refused."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        found: dict[str, Any] = json.loads(self.text.rstrip("\n").rpartition("\n")[2], parse_constant=refuse)
        return found


@pytest.fixture
def charlm(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Ended]:
    """``charlm("train", "x.yaml", …)``: run a command in this process."""

    def run(*arguments: str | Path) -> Ended:
        from charlm.cli.app import run

        capfdbinary.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Ended(code, out, err.decode())

    return run


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, english: Callable[..., str]) -> Path:
    """A temporary current folder, with ``text.txt`` and ``recipe.yaml``."""
    (tmp_path / "text.txt").write_text(english(3000), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, english: Callable[..., str]) -> Path:
    """A folder with ``text.txt``, ``recipe.yaml`` and a finished run in ``run/``; only to be read."""
    from charlm.cli.app import run

    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(english(3000), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert run(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "-q"]) == 0
    return folder


class Terminal:
    """``charlm`` as the foreground job of a terminal of 80 columns."""

    def __init__(self, *arguments: str) -> None:
        import fcntl
        import struct

        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        attach = f"import os, fcntl; fcntl.ioctl(0, {termios.TIOCSCTTY}, 0); from charlm.__main__ import main; main()"
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", attach, *arguments], stdin=self.theirs, stdout=self.theirs, stderr=self.theirs,
            start_new_session=True, env=environment | {"TERM": "xterm-256color"},
        )  # fmt: skip
        self.drawn = ""

    def type(self, text: str) -> None:
        """Press keys; ``\\r`` is Enter, ``\\x03`` Ctrl-C, ``\\x04`` Ctrl-D."""
        os.write(self.ours, text.encode())

    def read(self, seconds: float = 0.1) -> None:
        """Take what was drawn meanwhile."""
        end = time.monotonic() + seconds
        while select.select([self.ours], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                block = os.read(self.ours, 65536)
            except OSError:  # Linux says so when the last writer has gone
                return
            self.drawn += block.decode("utf-8", "replace")

    def until(self, condition: Any) -> None:
        """Read until something is so."""
        end = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < end, self.drawn
            self.read()

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self.theirs)[3] & termios.ECHO)

    def wait(self) -> int:
        """Read to the end; returns the exit code."""
        self.until(lambda: self.process.poll() is not None)
        self.read()
        return self.process.wait()

    def close(self) -> None:
        """End the process and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for descriptor in (self.ours, self.theirs):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def terminal() -> Any:
    """``terminal("train", …)``: a :class:`Terminal`, closed with the test."""
    opened: list[Terminal] = []

    def launch(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield launch
    for each in opened:
        each.close()
