"""What the Tab key offers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from charlm.cells import cell_names
from charlm.cli import completion
from charlm.config import apply_overrides, field_names


def test_keys_and_values_are_those_of_the_schema() -> None:
    """Failing would mean that Tab offers a key or a value that charlm refuses, or leaves one out."""
    assert [key for key, _ in completion.keys("")] == list(field_names())
    assert len(completion.overrides("train.")) == len(completion.keys("train.")) > 5
    single = ["model.cell=", *(f"model.cell={name}" for name in cell_names())]
    assert [text for text, _ in completion.overrides("model.cel")] == single
    assert [text for text, _ in completion.overrides("model.cell=")] == [f"model.cell={name}" for name in cell_names()]
    assert [text for text, _ in completion.overrides("corpus=time")] == ["corpus=time-machine"]
    assert completion.overrides("nothing=") == []
    for key in field_names():
        for text, _ in completion.overrides(f"{key}="):
            assert apply_overrides({}, [text])


def test_cells_are_a_list_without_repetition() -> None:
    """Failing would mean that ``--cells rnn,<Tab>`` drops what was typed, or offers a cell twice."""
    assert completion.cells("") == list(cell_names())
    assert completion.cells("rnn,l") == ["rnn,lstm"]
    assert completion.cells("lstm,l") == []
    assert completion.cell("g") == ["gru"]


def test_recipes_texts_runs_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that Tab does not find a run or text of the current folder, or offers what is none."""
    monkeypatch.chdir(tmp_path)
    assert completion.runs("") == []
    for name in ("mine/config.yaml", "mine/best.safetensors", "mine/step-20.safetensors", "notes/readme.txt"):
        (tmp_path / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoints" / name).touch()
    (tmp_path / "shanties.txt").touch()
    (tmp_path / "shanties.png").touch()
    assert completion.recipes("shakespeare-f") == ["shakespeare-fast"]
    assert completion.recipes_and_texts("shan") == ["shanties.txt"]
    assert completion.runs("m") == ["mine"] == completion.runs("")
    assert completion.runs("checkpoints/m") == ["checkpoints/mine/"]
    assert completion.runs("checkpoints/mine/") == [
        "checkpoints/mine/best.safetensors",
        "checkpoints/mine/step-20.safetensors",
    ]
    assert completion.runs("nowhere/") == []
    assert [name for name, _ in completion.corpora("sh")] == ["shakespeare"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "shakespeare-f"], "shakespeare-fast"),
        (["train", "x", "--cell", "g"], "gru"),
        (["compare", "x", "--cells", "rnn,g"], "rnn,gru"),
        (["train", "x", "--set", "evaluate.pat"], "evaluate.patience="),
        (["train", "x", "--set", "model.cell", "=", "l"], "lstm"),
        (["compare", "x", "--vary", "model.cell", "="], "rnn gru lstm"),
        (["corpus", "show", "lat"], "latex"),
        (["recipe", "keys", "train.lr_f"], "train.lr_final"),
    ],
)
def test_a_shell_gets_the_answer_at_once(words: list[str], expected: str) -> None:
    """Failing would mean that an option has lost its completion, or that Tab makes people wait."""
    script = (
        "import sys, resource\n"
        "from charlm.cli.app import run\n"
        "run([])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('torch' in sys.modules, used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    typed = {"COMP_WORDS": "\n".join(["charlm", *words]), "COMP_CWORD": str(len(words)), "_CHARLM_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", script]
    seconds = []
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **typed})
        assert done.stdout.split() == expected.split()
        torch, used = done.stderr.split()
        assert torch == "False"
        seconds.append(float(used))
    assert min(seconds) <= 0.3
