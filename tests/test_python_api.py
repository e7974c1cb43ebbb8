"""``charlm.train``, ``charlm.load`` and ``charlm.info``: what the command line does, from Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charlm
from charlm.errors import CorpusError, RecipeError, UsageError

CONTRACT = """perplexity nats_per_character bits_per_character characters unknown_characters characters_per_second step epoch
    train_nats validation_nats best_validation_nats seconds resumed_from device engine precision parameters checkpoint
    stopped_because""".split()  # noqa: SIM905 - a list of so many words is harder to read


@pytest.fixture(scope="module")
def recipe(english_file: Path) -> dict[str, Any]:
    return {
        "corpus": str(english_file),
        "model": {"hidden": 12, "layers": 2, "residual": True, "dropout": 0.0},
        "train": {"batch": 4, "seq_length": 16, "total_steps": 12, "threads": 1, "precision": "fp32"},
        "sample": {"length": 5},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, Any]) -> Path:
    """A finished run, named so that it is found as ``mine``."""
    folder = tmp_path_factory.mktemp("desk") / "checkpoints" / "mine"
    charlm.train(recipe, out=folder, device="cpu")
    return folder


def test_import_does_not_wait_for_torch() -> None:
    """If this fails, a program that only imports charlm starts seconds later."""
    script = (
        "import sys, charlm; assert {'train', 'load'} <= set(dir(charlm)); charlm.CharlmError; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="trian"):
        charlm.trian  # type: ignore[attr-defined]  # noqa: B018


def test_train_returns_the_record_and_tells_its_observers(
    recipe: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """If this fails, a program cannot rely on the contract's keys, misses events, or finds its output mixed with ours."""
    events: list[Any] = []
    record = charlm.train(
        recipe, {"train.total_steps": 6, "train.lr": 1e-3}, tmp_path / "run", device="cpu", observers=[events.append]
    )
    assert set(CONTRACT) <= record.keys()
    assert (record["step"], record["stopped_because"]) == (6, "finished")
    assert sum(type(event).__name__ == "StepDone" for event in events) == 6
    assert events[-1].record == record
    assert capfd.readouterr() == ("", "")


def test_a_run_is_resumed(recipe: dict[str, Any], tmp_path: Path) -> None:
    """If this fails, resume, overwrite and limits mean something else than on the command line."""
    out = tmp_path / "run"
    assert charlm.train(recipe, out=out, device="cpu", max_steps=5)["stopped_because"] == "max steps"
    with pytest.raises(UsageError, match="holds a run already"):
        charlm.train(recipe, out=out, device="cpu")
    assert charlm.train(recipe, out=out, device="cpu", resume="auto")["resumed_from"] == 5
    assert charlm.train(recipe, ["train.total_steps=3"], out, device="cpu", overwrite=True)["step"] == 3


def test_wrong_arguments_are_named(recipe: dict[str, Any], tmp_path: Path) -> None:
    """If this fails, a mistake in a call is explained with the command line's flags, or not noticed."""
    for wrong in ({"max_time": "soon"}, {"max_time": 0}, {"max_time": -1.0}, {"max_steps": -1}, {"device": "tpu"}):
        (name,) = wrong
        with pytest.raises(UsageError, match=f"^{name} "):
            charlm.train(recipe, out=tmp_path / "run", **wrong)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"model\.hidden"):
        charlm.train(recipe, {"model.hiden": 3}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_returns(recipe: dict[str, Any], tmp_path: Path) -> None:
    """If this fails, an interrupted training in a notebook is lost, or Ctrl-C no longer works after it."""

    def interrupt(event: Any) -> None:
        if getattr(event, "step", 0) == 4 and type(event).__name__ == "StepDone":
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    record = charlm.train(recipe, out=tmp_path / "run", device="cpu", observers=[interrupt])
    assert (record["stopped_because"], record["step"]) == ("interrupted", 4)
    assert charlm.info(tmp_path / "run" / "last.safetensors")["progress"]["step"] == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_a_model_is_opened_by_name_folder_and_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, Python and the command line look for checkpoints in different places."""
    monkeypatch.chdir(run.parents[1])
    texts = {charlm.load(given, "cpu").sample(length=20, seed=3) for given in ("mine", run, run / "best.safetensors")}
    assert len(texts) == 1
    model = charlm.load("mine", "cpu", engine="reference")
    assert (model.engine, str(model.device), model.step, model.recipe.model.hidden) == ("reference", "cpu", 12, 12)
    assert charlm.info("mine")["checkpoint"] == str(model.path)
    with pytest.raises(UsageError, match=r"^engine warp: expected auto"):
        charlm.load("mine", engine="warp")


def test_python_and_the_command_line_agree(run: Path, english_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If this fails, a sample or a perplexity from Python cannot be compared with one from the command line."""
    from charlm.cli.app import run as command

    model = charlm.load(run, "cpu")
    assert command(["sample", str(run), "--prompt", "the ", "--length", "60", "--seed", "9", "--device", "cpu"]) == 0
    assert model.sample("the ", length=60, seed=9) == capfd.readouterr().out
    assert command(["eval", "perplexity", str(run), str(english_file), "--json", "--device", "cpu"]) == 0
    found, score = json.loads(capfd.readouterr().out), model.perplexity(english_file.read_text(encoding="utf-8"))
    assert (score.perplexity, score.characters) == (found["perplexity"], found["characters"])
    assert (score.nats_per_character, score.bits_per_character) == (found["nats_per_character"], found["bits_per_character"])
    assert command(["sample", str(run), "--prompt", "the ", "--probabilities", "--json", "--device", "cpu"]) == 0
    listed = {row["character"]: row["probability"] for row in json.loads(capfd.readouterr().out)["next"]}
    assert model.next_characters("the ") == listed


def test_questions_of_a_model(run: Path) -> None:
    """If this fails, unknown characters or line ends are read otherwise than in training, or a wrong argument is accepted."""
    model = charlm.load(run, "cpu")
    next_ones = model.next_characters("the ")
    assert sum(next_ones.values()) == pytest.approx(1)
    assert list(next_ones.values()) == sorted(next_ones.values(), reverse=True)
    assert "<unk>" in next_ones
    assert len(next_ones) == len(model.vocabulary)
    assert model.perplexity("the\r\nking日") == model.perplexity("\ufeffthe\nking日")
    assert model.perplexity("the 日").unknown_characters == 1
    assert model.sample("日the", length=9, seed=1, unknown="skip") == model.sample("the", length=9, seed=1)
    with pytest.raises(UsageError, match=r"U\+65E5.*unknown='skip'"):
        model.sample("日")
    with pytest.raises(UsageError, match=r"^length -1"):
        model.sample(length=-1)
    with pytest.raises(CorpusError, match="at least two"):
        model.perplexity("t")
    with pytest.raises(UsageError, match="no attention"):
        model.attention("the")


@pytest.mark.parametrize("engine", ["native", "torch", "reference"])
def test_hidden_states_are_those_of_the_equations(run: Path, engine: str, english_file: Path) -> None:
    """If this fails, what is drawn of a model's states is not what it computes with."""
    import torch

    from charlm.model.engines import ENGINES

    stored = charlm.load(run, "cpu", engine="reference")
    if ENGINES[engine].why_not(stored.recipe.model, stored.device) is not None:
        assert engine == "native"  # it may not be built here; the others always run
        return
    text = english_file.read_text(encoding="utf-8")[:1100]  # more than one chunk
    model = charlm.load(run, "cpu", engine=engine)
    h, c = model.hidden_states(text), model.hidden_states(text, "c")
    assert h.shape == c.shape == (1100, 2, 12)
    assert h.dtype == np.float32
    with torch.inference_mode():
        state = stored.network.zero_state(1)
        for place, index in enumerate(stored.vocabulary.encode(text)):
            _, state = stored.network.features(torch.tensor([[index]]), state)
            np.testing.assert_allclose(h[place], state[0][:, 0], atol=1e-5)
            np.testing.assert_allclose(c[place], state[1][:, 0], atol=1e-5)
    assert model.hidden_states("").shape == (0, 2, 12)
    with pytest.raises(UsageError, match=r"^which 'z': expected h or c, the state of the cell lstm"):
        model.hidden_states(text, "z")
