"""What all tests share. Functions are handed over as fixtures: with ``--import-mode=importlib`` tests import no helpers.

This file is also run as a plain script's source by the tests that need a new process (see ``in_new_process``), so it
imports torch and charlm inside functions only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# Tiny networks are quickest on one thread; what depends on threads sets `train.threads` itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Timing differs between machines, and a failure must be repeatable: no deadlines, the same examples every time.
settings.register_profile("charlm", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("charlm")


@pytest.fixture(autouse=True, scope="session")
def _never_the_users_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHARLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CHARLM_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("CHARLM_STATE", str(tmp_path_factory.mktemp("state")))
        patch.delenv("CHARLM_DEBUG", raising=False)
        yield


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> None:
    """Training flushes denormals for its whole process; the next test gets ordinary arithmetic back."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


# -- texts -----------------------------------------------------------------------------------------------------------

_WORDS = """
    the a my his lord king queen night day love death fire sword crown stone river shadow and or but with of in to from is
    was shall may speaks sleeps burns falls rises knows fears loves old cold dark bright poor noble sweet
""".split()  # noqa: SIM905 - a list of so many words is harder to read


def markov_text(characters: int, seed: int = 7) -> str:
    """English-looking text from a Markov chain over words: each word has four successors. The same for the same seed."""
    chain = random.Random(seed)
    followers = {word: chain.sample(_WORDS, 4) for word in _WORDS}
    pieces, length, word, line = [], 0, "the", 0
    while length < characters:
        word = chain.choice(followers[word])
        line += len(word) + 1
        end = " "
        if line > 50:
            end, line = chain.choice([",\n", ".\n\n", ";\n", "!\n"]), 0
        pieces.append((word.capitalize() if line == len(word) + 1 else word) + end)
        length += len(pieces[-1])
    return "".join(pieces)[:characters]


@pytest.fixture(scope="session")
def english() -> Callable[..., str]:
    """``english(characters, seed=7)``: generated text, see :func:`markov_text`."""
    return markov_text


@pytest.fixture(scope="session")
def english_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 6,000 generated characters."""
    path = tmp_path_factory.mktemp("texts") / "english.txt"
    path.write_text(markov_text(6000), encoding="utf-8")
    return path


# -- runs ------------------------------------------------------------------------------------------------------------

_TINY: dict[str, Any] = {
    "data": {"split": [0.8, 0.1, 0.1]},
    "model": {"cell": "lstm", "hidden": 16, "dropout": 0.0},
    "train": {"batch": 4, "seq_length": 10, "total_steps": 20, "lr": 0.01, "threads": 1, "precision": "fp32"},
    "evaluate": {"every": 5, "segments": 4, "warm": 50},
    "sample": {"length": 12},
}


@dataclass
class Run:
    """What a training left behind."""

    folder: Path
    record: dict[str, Any]
    events: list[Any] = field(repr=False)
    notices: list[str]

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, of one kind."""
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [line for line in map(json.loads, text.splitlines()) if kind in (None, line["kind"])]


def loaded_recipe(corpus: Path | str, *overrides: str) -> Any:
    """A tiny recipe with ``section.key=value`` overrides, as :func:`charlm.config.load_recipe` would return it."""
    from charlm.config import LoadedRecipe, apply_overrides, validate_recipe

    raw = apply_overrides({"corpus": str(corpus), **_TINY}, overrides)
    return LoadedRecipe("tiny", validate_recipe(raw, "tiny"), Path(corpus).parent)


def started(corpus: Path | str, out: Path, *overrides: str, **options: Any) -> Any:
    """A trainer that is ready to run: ``charlm.training.start.start`` with a tiny recipe."""
    from charlm.training.plan import Limits
    from charlm.training.start import Options, start

    limits = Limits(time.monotonic(), options.pop("max_steps", None), options.pop("max_seconds", None))
    return start(loaded_recipe(corpus, *overrides), Options(out=out, limits=limits, device="cpu", **options))


def train_tiny(corpus: Path | str, out: Path, *overrides: str, **options: Any) -> Run:
    """Train a tiny model to its end and return what happened."""
    from charlm.training.run import observed

    begun = started(corpus, out, *overrides, **options)
    try:
        events = list(observed(begun.trainer))
    finally:
        begun.trainer.folder.close()
    return Run(out, events[-1].record, events, begun.notices)


@pytest.fixture(scope="session")
def recipe_for() -> Callable[..., Any]:
    """``recipe_for(corpus, "model.cell=gru", …)``: a tiny recipe, loaded."""
    return loaded_recipe


@pytest.fixture(scope="session")
def begin() -> Callable[..., Any]:
    """``begin(corpus, out, "train.lr=0.1", …, resume="auto")``: a tiny run, started; close ``.trainer.folder`` yourself."""
    return started


@pytest.fixture(scope="session")
def tiny_run() -> Callable[..., Run]:
    """``tiny_run(corpus, out, "train.lr=0.1", …, resume="auto", max_steps=5)``: trains, returns a :class:`Run`."""
    return train_tiny


@pytest.fixture(scope="session")
def in_new_process() -> Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]:
    """Run several tiny trainings in ONE new process; each job holds ``corpus``, ``out``, ``overrides``, ``options``.

    Returns their final records.
    """
    script = (
        "import json, runpy, sys, pathlib\n"
        "shared = runpy.run_path(sys.argv[1])\n"
        "runs = [shared['train_tiny'](job['corpus'], pathlib.Path(job['out']), *job['overrides'], **job['options'])\n"
        "        for job in json.load(sys.stdin)]\n"
        "print(json.dumps([run.record for run in runs]))\n"
    )

    def run(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-c", script, __file__],
            input=json.dumps(jobs, default=str),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        records: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return records

    return run


@pytest.fixture
def charlm_process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``charlm_process("train", "x.yaml", …)``: a real process, with pipes; ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def launch(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "charlm", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", **options
        )
        processes.append(process)
        return process

    yield launch
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL) if process.poll() is None else None
        process.communicate()


# -- the same networks, written out once more ------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def naive_layer(
    cell: str, weights: dict[str, np.ndarray], inputs: np.ndarray, state: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """One recurrent layer in NumPy, gate by gate and step by step, independent of charlm's code.

    Args:
        cell: the name of a form, such as ``rnn_tanh`` or ``gru_reset_before``.
        weights: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` in PyTorch's gate order, and what else the form has.
        inputs: ``(T, B, D)``.
        state: ``(h,)`` or ``(h, c)``, each ``(B, H)``.
    """
    gates = {"lstm": 4, "lstm_peephole": 4, "lstm_coupled": 3, "gru": 3, "gru_reset_before": 3}.get(cell, 1)
    W, U = np.split(weights["weight_ih"], gates), np.split(weights["weight_hh"], gates)
    b, d = np.split(weights["bias_ih"], gates), np.split(weights["bias_hh"], gates)
    h = state[0]
    c = state[-1]
    outputs = []
    for x in inputs:
        if cell == "lstm":
            a = [x @ W[k].T + b[k] + h @ U[k].T + d[k] for k in range(4)]
            i, f, g, o = _sigmoid(a[0]), _sigmoid(a[1]), np.tanh(a[2]), _sigmoid(a[3])
            c = f * c + i * g
            h = o * np.tanh(c)
        elif cell == "lstm_peephole":
            a = [x @ W[k].T + b[k] + h @ U[k].T + d[k] for k in range(4)]
            p = weights["weight_peephole"].reshape(3, -1)
            i, f, g = _sigmoid(a[0] + p[0] * c), _sigmoid(a[1] + p[1] * c), np.tanh(a[2])
            c = f * c + i * g
            h = _sigmoid(a[3] + p[2] * c) * np.tanh(c)
        elif cell == "lstm_coupled":
            a = [x @ W[k].T + b[k] + h @ U[k].T + d[k] for k in range(3)]
            f, g, o = _sigmoid(a[0]), np.tanh(a[1]), _sigmoid(a[2])
            c = f * c + (1 - f) * g
            h = o * np.tanh(c)
        elif cell.startswith("gru"):
            r = _sigmoid(x @ W[0].T + b[0] + h @ U[0].T + d[0])
            z = _sigmoid(x @ W[1].T + b[1] + h @ U[1].T + d[1])
            if cell == "gru":
                n = np.tanh(x @ W[2].T + b[2] + r * (h @ U[2].T + d[2]))
            else:
                n = np.tanh(x @ W[2].T + b[2] + (r * h) @ U[2].T + d[2])
            h = (1 - z) * n + z * h
        else:
            a0 = x @ W[0].T + b[0] + h @ U[0].T + d[0]
            h = np.tanh(a0) if cell == "rnn_tanh" else np.maximum(a0, 0)
        outputs.append(h)
    return np.stack(outputs), (h, c) if cell.startswith("lstm") else (h,)


def naive_model(model: Any, ids: np.ndarray) -> np.ndarray:
    """The logits ``(T, B, V)`` of a whole language model from a zero state, in float64 NumPy.

    Args:
        model: a :class:`charlm.model.language_model.LanguageModel`; only its weights and its recipe are read.
        ids: ``(T, B)``.
    """
    section = model.section
    weights = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}
    cell = section.cell
    if cell == "rnn":
        cell = f"rnn_{section.nonlinearity}"
    elif cell == "gru" and not section.reset_after:
        cell = "gru_reset_before"
    elif section.variant != "vanilla":
        cell = f"{cell}_{section.variant}"
    rows = weights["embedding"] if "embedding" in weights else np.eye(model.vocabulary_size)
    values = rows[ids]
    for number in range(section.layers):
        own = {name.rpartition(".")[2]: weight for name, weight in weights.items() if name.startswith(f"layers.{number}.")}
        zero = np.zeros((ids.shape[1], section.hidden))
        values, _ = naive_layer(cell, own, values, (zero, zero) if cell.startswith("lstm") else (zero,))
    output = weights["embedding"] if section.tied else weights["output_weight"]
    return values @ output.T + weights["output_bias"]


@pytest.fixture(scope="session")
def numpy_layer() -> Callable[..., Any]:
    """See :func:`naive_layer`."""
    return naive_layer


@pytest.fixture(scope="session")
def numpy_model() -> Callable[..., Any]:
    """See :func:`naive_model`."""
    return naive_model


@pytest.fixture(scope="session")
def network() -> Callable[..., Any]:
    """``network(7, "torch", cell="gru", hidden=8)``: an initialised language model over 7 symbols."""

    def make(symbols: int, engine: str = "reference", seed: int = 1, **section: Any) -> Any:
        from charlm.config import ModelSection
        from charlm.model.language_model import LanguageModel

        model = LanguageModel(ModelSection(**section), symbols, engine)
        model.initialise(seed)
        return model

    return make


@pytest.fixture(scope="session")
def text_of() -> Callable[..., Any]:
    """``text_of([3, 1, 2])``: these ids as a :class:`charlm.data.dataset.Text`; what occurs once is marked so."""

    def make(ids: Sequence[int] | np.ndarray, symbols: int | None = None) -> Any:
        from charlm.data.dataset import Text

        indices = np.asarray(ids, dtype=np.uint32)
        size = symbols if symbols is not None else int(indices.max()) + 1
        once = np.bincount(indices, minlength=size) == 1
        return Text(indices, np.arange(size, dtype=np.int64), once)

    return make
