"""Runs side by side: the same results as one after the other, and no process or run is lost."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.comparison import compare
from charlm.errors import UsageError, WorkerError

RECIPE = """\
corpus: ./text.txt
model: {hidden: 8, dropout: 0.2}
train: {batch: 4, seq_length: 16, total_steps: 20, threads: 1, precision: fp32, lr: 0.01}
evaluate: {every: 5}
checkpoint: {every: 5}
sample: {length: 12}
"""
ENDLESS = "train.total_steps=10000000", "evaluate.every=1000000", "sample.every=1000000", "checkpoint.every=20"


@pytest.fixture
def recipe(tmp_path: Path, english: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a tiny recipe, in the current folder."""
    (tmp_path / "text.txt").write_text(english(3000), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "tiny.yaml"


def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def is_alive(process: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def results(rows: Any) -> Any:
    """The parts of rows that do not depend on time."""
    return [(row.name, row.parameters, row.training_characters, row.validation_nats_by_seed, row.train_nats) for row in rows]


def test_side_by_side_gives_the_results_of_one_after_the_other(recipe: str) -> None:
    """Failing would mean that `--jobs` changes a result, or that runs get each other's settings."""
    settings: dict[str, Any] = {"vary": ["model.hidden=4,8"], "seeds": 2}
    alone = compare([recipe], **settings, out="alone")
    several = compare([recipe], **settings, out="several", jobs=3)
    assert results(several.rows) == results(alone.rows)
    weights = [(Path(name) / "tiny-hidden=8-seed2" / "best.safetensors").read_bytes() for name in ("alone", "several")]
    assert weights[0] == weights[1]


def test_a_worker_that_is_killed_costs_its_own_run(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that one lost process costs all runs, or is not noticed."""
    from charlm.comparison import jobs

    launch = jobs._Workers.launch

    def fatal(self: Any, job: jobs.Job, request: dict[str, Any]) -> None:
        launch(self, job, request)
        if "hidden=4" in job.name:
            self.running[job]._process.kill()

    with monkeypatch.context() as patched:
        patched.setattr(jobs._Workers, "launch", fatal)
        with pytest.raises(WorkerError, match=r"^tiny-hidden=4-seed1: its process was ended by SIGKILL; .* resume"):
            compare([recipe], vary=["model.hidden=4,8,6"], out="runs", jobs=2)
    finished = {path.parent.name for path in Path("runs").glob("*/metrics.jsonl") if '"finished"' in path.read_text("utf-8")}
    assert finished == {"tiny-hidden=8-seed1", "tiny-hidden=6-seed1"}
    assert len(compare([recipe], vary=["model.hidden=4,8,6"], out="runs", jobs=2).rows) == 3


def test_errors_of_a_worker_are_those_of_a_run(recipe: str) -> None:
    """Failing would mean that a diverged run ends a comparison, or that another error shows as a crash."""
    diverging = ["train.clip=null", "train.optimizer=sgd", "model.cell=rnn", "model.nonlinearity=relu"]
    found = compare([recipe], vary=["train.lr=0.01,1e6"], overrides=diverging, out="runs", jobs=2)
    assert [row.name for row in found.rows] == ["tiny-lr=0.01"]
    assert any(text.startswith("tiny-lr=1000000.0-seed1 is left out") for text in found.notices), found.notices
    with pytest.raises(UsageError, match=r"tiny-lr=0.01-seed1: .* holds a run already"):
        compare([recipe], vary=["train.lr=0.01,0.02"], overrides=diverging, out="runs", jobs=2, resume="never")
    with pytest.raises(UsageError, match=r"(?s)no run has a result:.*no training steps"):
        compare([recipe], overrides=["train.time=0.01s"], out="short", jobs=2)
    with pytest.raises(UsageError, match="jobs 0: expected 1 or more"):
        compare([recipe], jobs=0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_worker_outlives_its_parent(
    recipe: str, charlm_process: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    """Failing would mean that trainings continue unseen after Ctrl-C, or that their work is lost."""
    words = [word for text in ENDLESS for word in ("--set", text)]
    process = charlm_process("compare", recipe, "--cells", "rnn,gru", *words, "--jobs", "2", "--out", "runs")
    folders = [Path("runs") / f"tiny-{cell}-seed1" for cell in ("rnn", "gru")]
    until(lambda: all((folder / "previous.safetensors").exists() for folder in folders))
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    until(lambda: not any(map(is_alive, workers)))
    if number is not signal.SIGKILL:
        assert process.returncode == 130, err
        assert "Traceback" not in err and re.search("^resume with: charlm compare .* --jobs 2$", err, re.MULTILINE)
    for folder in folders:
        last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        assert (last["kind"], last["stopped_because"]) == ("finished", "interrupted"), "it saved its state"


@pytest.mark.slow
def test_several_runs_are_drawn_on_a_terminal(recipe: str, terminal: Callable[..., Any]) -> None:
    """Failing would mean that nothing shows how far the runs are, or that Ctrl-C on a terminal stops them twice."""
    words = [word for text in ENDLESS for word in ("--set", text)]
    process = terminal("compare", recipe, "--cells", "rnn,gru", *words, "--jobs", "2", "--out", "runs")
    process.until(
        lambda: re.search(r"tiny-rnn-seed1.*loss \d", process.drawn) and re.search(r"gru-seed1.*loss \d", process.drawn)
    )
    process.type("\x03")
    assert process.wait() == 130
    assert "finishing this step and saving" in process.drawn and "Traceback" not in process.drawn
    assert process.echoes
