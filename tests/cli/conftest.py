"""What the tests of the command line share: ``charlm`` runs in this process, with tiny models on tiny texts."""

from __future__ import annotations

import json
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

        found: dict[str, Any] = json.loads(self.text.splitlines()[-1], parse_constant=refuse)
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
