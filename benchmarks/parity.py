"""What must hold on a device, as checks that report numbers. ``benchmarks/cuda.py`` prints them, ``tests/gpu`` asserts them.

A check compares the device with the CPU, or one engine with another, and never looks at the clock.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charlm import checkpoint
from charlm.checkpoint import Checkpoint
from charlm.config import ModelSection, Recipe, TrainSection
from charlm.data.dataset import Text
from charlm.data.streams import Batches
from charlm.data.vocabulary import Vocabulary
from charlm.evaluation.dynamic import dynamic
from charlm.evaluation.perplexity import carried, segments
from charlm.model.dropout import Dropout, Places, kept
from charlm.model.engines import ENGINES
from charlm.model.language_model import LanguageModel
from charlm.optimizers import OPTIMIZERS
from charlm.run_files import LAST
from charlm.runtime import arithmetic, derived_seed
from charlm.sampling import SamplingParams, generate_parallel, sample
from charlm.training.cuda_graph import AT_ONCE, GraphUpdater, Job
from charlm.training.optimizer import optimizer_tensors, restore_optimizer
from charlm.training.update import Updater
from charlm.training.weight_average import WeightAverage

SYMBOLS, STEPS, STREAMS = 40, 20, 8
CPU = torch.device("cpu")

MODELS: dict[str, dict[str, Any]] = {
    "rnn tanh": {"cell": "rnn"},
    "rnn relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "gru, reset before": {"cell": "gru", "reset_after": False},
    "lstm": {"cell": "lstm"},
    "lstm, one-hot": {"cell": "lstm", "input": "one-hot"},
    "lstm, tied": {"cell": "lstm", "tied": True},
    "lstm, 3 layers, residual": {"cell": "lstm", "layers": 3, "residual": True},
    "lstm, attention": {"cell": "lstm", "attention": 8},
    "gru, dropout": {"cell": "gru", "layers": 2, "dropout": 0.3, "input_dropout": 0.1},
    "lstm, locked dropout": {"cell": "lstm", "layers": 2, "dropout": 0.3, "locked_dropout": True},
    "lstm, weight drop": {"cell": "lstm", "weight_drop": 0.3},
}
"""Name → what differs from the recipe's defaults."""

TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Precision → the largest allowed difference of a tensor, as a share of its norm."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        found: the largest difference; ``nan``: the check could not be carried out.
        allowed: the largest that passes.
        note: the error, or what the numbers mean.
    """

    name: str
    found: float
    allowed: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed."""
        return self.found <= self.allowed


@dataclass(frozen=True)
class Check:
    """A name and the function that carries it out: the largest difference, and what it is."""

    name: str
    allowed: float
    difference: Callable[[], tuple[float, str]]

    def run(self) -> Finding:
        """Carry it out. An exception is a finding too, and so is a warning that cuDNN copies its weights at every call."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found, note = self.difference()
        except Exception as error:  # one failing check must not hide the others
            return Finding(self.name, math.nan, self.allowed, f"{type(error).__name__}: {error}".splitlines()[0])
        copied = [str(warning.message) for warning in caught if "contiguous chunk" in str(warning.message)]
        if copied:
            return Finding(self.name, math.nan, self.allowed, f"warning: {copied[0]}")
        return Finding(self.name, found, self.allowed, note)


def checks(device: torch.device, hidden: int = 64, steps: int = 20, length: int = 4000) -> Iterator[Check]:
    """All checks of a device.

    Args:
        hidden: H of every network.
        steps: k, the optimizer steps before and after a save.
        length: characters that are evaluated.
    """
    for name, keys in MODELS.items():
        section = ModelSection.model_validate({"hidden": hidden, "dropout": 0.0} | keys)
        for engine in ("reference", "torch"):
            if ENGINES[engine].why_not(section, device) is None:
                for precision in precisions(device):
                    yield Check(
                        f"gradients: {name}, {engine} {precision}",
                        TOLERANCES[precision],
                        lambda section=section, engine=engine, precision=precision: _gradients(  # type: ignore[misc]
                            section, engine, precision, device
                        ),
                    )
    yield Check("bf16 keeps the range of fp32", 0, lambda: _range(hidden, device))
    for name in ("rnn tanh", "gru", "gru, reset before", "lstm", "lstm, 3 layers, residual", "lstm, attention"):
        section = ModelSection.model_validate({"hidden": hidden, "dropout": 0.0} | MODELS[name])
        yield Check(f"evaluation: {name}", 1e-6, lambda section=section: _evaluation(section, device, length))  # type: ignore[misc]
        yield Check(f"sampling: {name}", 0, lambda section=section: _sampling(section, device, 200))  # type: ignore[misc]
    yield Check("dynamic evaluation", 1e-4, lambda: _dynamic(hidden, device, min(length, 1000)))
    for optimizer in OPTIMIZERS:
        for precision in precisions(device):
            yield Check(
                f"resume: {optimizer} {precision}",
                1e-5,
                lambda optimizer=optimizer, precision=precision: _resume(  # type: ignore[misc]
                    optimizer, precision, hidden, steps, device
                ),
            )
        yield Check(
            f"moving: cpu, {device.type}, cpu, {optimizer}",
            1e-3,
            lambda optimizer=optimizer: _moving(optimizer, hidden, device),  # type: ignore[misc]
        )
    yield Check("zeros of dropout", 0, lambda: _masks(device))
    for optimizer in ("sgd", "adam", "adamw"):
        for precision in precisions(device):
            yield Check(
                f"graph: {optimizer} {precision}",
                1e-3,
                lambda optimizer=optimizer, precision=precision: _queued(optimizer, precision, hidden, device),  # type: ignore[misc]
            )
        yield Check(f"graph, loss of NaN: {optimizer}", 0, lambda optimizer=optimizer: _skipped(optimizer, hidden, device))  # type: ignore[misc]
    yield Check("average of the weights", 1e-5, lambda: _average(hidden, device))


def precisions(device: torch.device) -> tuple[str, ...]:
    """What is checked on a device: fp16 needs a GPU."""
    return ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")


# -- networks and texts --


def _model(section: ModelSection, engine: str, device: torch.device) -> LanguageModel:
    model = LanguageModel(section, SYMBOLS, engine)
    model.initialise(1)
    if model.attention is not None:  # it begins at zero, which would hide all that it reads
        with torch.no_grad():
            model.attention.output.copy_(model.attention.query)
    model.to(device)
    model.flatten_for_cudnn()
    return model


def _ids(seed: int, *size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(SYMBOLS, size=size))


def _text(length: int) -> Text:
    return Text(_ids(2, length).numpy().astype(np.uint32), np.arange(SYMBOLS), np.zeros(SYMBOLS, dtype=np.bool_))


def _vocabulary() -> Vocabulary:
    return Vocabulary("char", tuple(range(ord("0"), ord("0") + SYMBOLS - 1)))  # and <unk>


def _engine(section: ModelSection, device: torch.device) -> str:
    """The fastest engine without a native build."""
    return "torch" if ENGINES["torch"].why_not(section, device) is None else "reference"


def _largest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of any tensor, ‖found − expected‖ ÷ ‖expected‖, and the tensor's name. NaN counts as infinite."""
    shares = {}
    for name, one in expected.items():
        share = float((found[name].cpu().double() - one.cpu().double()).norm() / one.cpu().double().norm().clamp(min=1e-12))
        shares[name] = share if math.isfinite(share) else math.inf
    worst = max(shares, key=lambda name: shares[name])
    return shares[worst], worst


# -- the checks --


def _gradients(section: ModelSection, engine: str, precision: str, device: torch.device) -> tuple[float, str]:
    """Loss, next state and gradients of one step, against the reference engine on the CPU in fp32."""

    def step(engine: str, precision: str, device: torch.device) -> dict[str, Tensor]:
        model = _model(section, engine, device)
        ids = _ids(1, STEPS + 1, STREAMS).to(device)
        state = tuple(part + 0.1 for part in model.zero_state(STREAMS))
        scale = 2.0**12 if precision == "fp16" else 1.0
        with arithmetic(precision, device):
            nats, state = model.nll_sum(ids[:-1], ids[1:], state, Dropout(section, seed=1, step=3))
        weights = dict(model.named_parameters())
        gradients = torch.autograd.grad(nats * (scale / ids[1:].numel()), list(weights.values()))
        found = {name: gradient / scale for name, gradient in zip(weights, gradients, strict=True)}
        return found | {"nats": nats.detach()} | {f"state {n}": part.detach() for n, part in enumerate(state)}

    return _largest(step(engine, precision, device), step("reference", "fp32", CPU))


def _range(hidden: int, device: torch.device) -> tuple[float, str]:
    """A state of 10⁵, which fp16 cannot hold, stays finite under bf16."""
    model = _model(ModelSection(cell="rnn", nonlinearity="relu", hidden=hidden), "torch", device)
    state = tuple(part + 1e5 for part in model.zero_state(STREAMS))
    with torch.no_grad(), arithmetic("bf16", device):
        features, _ = model.features(_ids(1, 1, STREAMS).to(device), state)
    return float((~torch.isfinite(features)).sum()), "numbers that overflowed"


def _evaluation(section: ModelSection, device: torch.device, length: int) -> tuple[float, str]:
    """Exact and cheap evaluation against the CPU's."""
    text, nats = _text(length), []
    for engine, on in ((_engine(section, device), device), ("reference", CPU)):
        model = _model(section, engine, on)
        nats.append([carried(model, text).nats_per_character, segments(model, text, pieces=4, warm=100).nats_per_character])
    return max(abs(one - other) for one, other in zip(*nats, strict=True)), "nats per character"


def _sampling(section: ModelSection, device: torch.device, length: int) -> tuple[float, str]:
    """The same seed gives the same text as on the CPU: alone, and three together."""
    texts, vocabulary = [], _vocabulary()
    for engine, on in ((_engine(section, device), device), ("reference", CPU)):
        model = _model(section, engine, on)
        alone = [vocabulary.id_of(ord(one)) for one in sample(model, vocabulary, "12", length, SamplingParams(), seed=1)]
        together = generate_parallel(model, vocabulary, [1, 2], SamplingParams(top_p=0.9), 1, [0, 1, 2])
        texts.append(alone + [index for _ in range(length // 4) for index in next(together)])
    return float(sum(one != other for one, other in zip(*texts, strict=True))), f"of {len(texts[0])} characters differ"


def _dynamic(hidden: int, device: torch.device, length: int) -> tuple[float, str]:
    section = ModelSection(cell="lstm", hidden=hidden, dropout=0.0)
    nats = [
        dynamic(_model(section, engine, on), _text(length)).nats_per_character
        for engine, on in (("torch", device), ("reference", CPU))
    ]
    return abs(nats[0] - nats[1]), "nats per character"


_CORPUS: dict[str, Any] = {
    "name": "none", "identity": "", "normalise": "none", "sha256": "", "bytes": 0, "characters": 0, "splits": {},
}  # fmt: skip


class _Run:
    """A short training with what a checkpoint must hold."""

    def __init__(self, optimizer: str, precision: str, hidden: int, device: torch.device) -> None:
        section = ModelSection(cell="lstm", layers=2, hidden=hidden, dropout=0.2, weight_drop=0.1)
        momentum = 0.9 if "momentum" in OPTIMIZERS[optimizer].keys else 0.0
        train = {"optimizer": optimizer, "momentum": momentum, "lr": 0.1 if optimizer == "sgd" else 1e-3}
        self.recipe = Recipe(corpus="none", model=section, train=TrainSection.model_validate(train))
        self.device, self.precision = device, precision
        self.model = _model(section, "torch", device)
        self.step = 0
        self.state = self.model.zero_state(STREAMS)
        self.update = Updater(self.model, self.recipe.train, precision)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            ids = _ids(self.step, STEPS + 1, STREAMS).to(self.device)
            dropout = Dropout(self.recipe.model, seed=1, step=self.step)
            rate = self.recipe.train.lr
            outcome = self.update(ids[:-1], ids[1:], ids[1:].numel(), self.state, rate, dropout)
            if outcome.diverged:
                raise ArithmeticError(f"the loss or gradient of step {self.step} is not finite")
            self.state = outcome.state

    def tensors(self) -> dict[str, Tensor]:
        moments = optimizer_tensors(self.update.optimizer, self.model)
        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        return weights | moments | {f"state {n}": part for n, part in enumerate(self.state)}

    def through_a_file(self, device: torch.device) -> _Run:
        """Save, and resume in new memory on a device."""
        resumed = _Run(str(self.recipe.train.optimizer), self.precision, self.recipe.model.hidden, device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / LAST
            weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
            moments = optimizer_tensors(self.update.optimizer, self.model)
            progress = {
                "step": self.step, "epoch": 0.0, "characters": 0, "train_nats": None, "validation_nats": None, "seconds": 0.0,
                "best": {"nats": None, "step": None}, "position": [0, self.step], "recent": [], "worse_in_a_row": 0,
                "loss_scale": [self.update.scale.scale, self.update.scale.good_steps], "logs": {},
            }  # fmt: skip
            resolved = {"engine": "torch", "precision": self.precision, "threads": 1, "device": self.device.type}
            stored = Checkpoint(self.recipe, _vocabulary(), _CORPUS, resolved, progress, weights, moments, self.state)
            checkpoint.save(path, stored)
            stored = checkpoint.load(path)
        checkpoint.copy_weights(resumed.model, stored.weights)
        restore_optimizer(resumed.update.optimizer, resumed.model, resumed.recipe.train, stored.optimizer)
        resumed.state = tuple(part.to(device, copy=True) for part in stored.state)
        resumed.update.scale = self.update.scale
        resumed.step = self.step
        return resumed


def _resume(optimizer: str, precision: str, hidden: int, steps: int, device: torch.device) -> tuple[float, str]:
    """2k steps against k, save, k. 0 is bit-equal; more, up to rounding, means kernels that sum in no fixed order."""
    whole, first = (_Run(optimizer, precision, hidden, device) for _ in range(2))
    whole.train(2 * steps)
    first.train(steps)
    resumed = first.through_a_file(device)
    resumed.train(steps)
    found, worst = _largest(resumed.tensors(), whole.tensors())
    return found, "bit-equal" if found == 0 else f"not bit-equal: {worst}"


def _moving(optimizer: str, hidden: int, device: torch.device) -> tuple[float, str]:
    """A run that moves to the device and back, against one that stays on the CPU.

    Three steps of each, so that Adam has no time to blow the rounding up where a gradient is nearly zero.
    """
    stays = _Run(optimizer, "fp32", hidden, CPU)
    stays.train(9)
    moves = _Run(optimizer, "fp32", hidden, CPU)
    moves.train(3)
    for on in (device, CPU):
        moves = moves.through_a_file(on)
        moves.train(3)
    weights = dict(stays.model.named_parameters())
    return _largest(moves.tensors(), {name: weight.detach() for name, weight in weights.items()})


def _average(hidden: int, device: torch.device) -> tuple[float, str]:
    """The average of one update is a tenth of the way from the first weights; it reads a text as the CPU does."""
    run = _Run("sgd", "fp32", hidden, device)
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    average = WeightAverage(run.model, 0.999)
    run.train(WeightAverage.EVERY)
    average.update(WeightAverage.EVERY)
    carried(average.model, _text(100))
    after = dict(run.model.named_parameters())
    expected = {name: before[name] + 0.9 * (after[name].detach() - before[name]) for name in before}
    return _largest(dict(average.model.named_parameters()), expected)


# -- steps as CUDA graphs --


class QueuedSteps:
    """Training steps of a network on random text, queued as the trainer queues them."""

    def __init__(
        self,
        section: ModelSection,
        train: TrainSection,
        symbols: int,
        precision: str,
        device: torch.device,
        engine: str = "torch",
    ) -> None:
        model = LanguageModel(section, symbols, engine)
        model.initialise(seed=1)
        model.to(device)
        model.flatten_for_cudnn()
        length = 4 * train.batch * train.seq_length + 2
        ids = np.random.default_rng(1).integers(symbols, size=length).astype(np.uint32)
        text = Text(ids, np.arange(symbols), np.zeros(symbols, dtype=np.bool_))
        self.batches = Batches(text, train, unknown_rate=0)
        self.model, self.rate = model, train.lr
        self.update = GraphUpdater(model, train, precision, self.batches)
        self.why_not = self.update.record()
        self.state = model.zero_state(self.batches.shape.batch)
        self.step = 0

    def jobs(self, count: int) -> list[Job]:
        """The next steps."""
        first, self.step = self.step, self.step + count
        jobs = []
        for step in range(first, first + count):
            epoch, index = divmod(step, self.batches.epoch_length(0))
            jobs.append(Job(self.batches.span(epoch, index), epoch, index, self.rate, Dropout(self.model.section, 1, step)))
        return jobs

    def train(self, count: int = AT_ONCE) -> int:
        """Train for some steps; returns the number of characters."""
        jobs = self.jobs(count)
        self.state = self.update.train(jobs, self.state)[-1].state
        return sum(job.span.scored for job in jobs)


def _queued(optimizer: str, precision: str, hidden: int, device: torch.device) -> tuple[float, str]:
    """Weights and moments after 24 steps that are replays of a graph, against the same steps launched from Python."""
    section = ModelSection(cell="lstm", layers=2, hidden=hidden, dropout=0.2, weight_drop=0.1)
    momentum = 0.9 if optimizer == "sgd" else 0.0
    lr = 0.1 if optimizer == "sgd" else 1e-3
    train = TrainSection(optimizer=optimizer, momentum=momentum, lr=lr, batch=STREAMS, seq_length=STEPS)
    queued = QueuedSteps(section, train, SYMBOLS, precision, device)
    if queued.why_not is not None and device.type == "cuda":
        raise RuntimeError(queued.why_not)
    single = Updater(QueuedSteps(section, train, SYMBOLS, precision, device).model, train, precision)
    state = queued.model.zero_state(STREAMS)
    for job in queued.jobs(24):
        batch = queued.batches.batch(job.epoch, job.index)
        if batch.fresh:
            state = queued.model.zero_state(STREAMS)
        inputs, targets = batch.inputs.to(device), batch.targets.to(device)
        state = single(inputs, targets, batch.scored, state, job.rate, job.dropout).state
    queued.step = 0
    for count in (1, 7, 16):
        queued.train(count)

    def tensors(update: Updater) -> dict[str, Tensor]:
        weights = {name: weight.detach() for name, weight in update.model.named_parameters()}
        return weights | optimizer_tensors(update.optimizer, update.model)

    return _largest(tensors(queued.update), tensors(single))


def _skipped(optimizer: str, hidden: int, device: torch.device) -> tuple[float, str]:
    """A loss of NaN in a queue changes no weight, moment or state, and neither do the steps after it."""
    train = TrainSection(optimizer=optimizer, lr=1e-3, batch=STREAMS, seq_length=STEPS)
    queued = QueuedSteps(ModelSection(hidden=hidden), train, SYMBOLS, "fp32", device)
    queued.train(3)
    parts = [*queued.model.parameters(), *queued.state, *optimizer_tensors(queued.update.optimizer, queued.model).values()]
    before = [part.detach().clone() for part in parts]
    bad, *good = queued.jobs(3)
    nothing = replace(bad.span, lengths=np.zeros_like(bad.span.lengths))  # a mean over no character
    outcomes = queued.update.train([replace(bad, span=nothing), *good], queued.state)
    if len(outcomes) != 1 or not outcomes[0].diverged:
        raise ArithmeticError("the step was not reported")
    changed = sum(int((one != other).sum()) for one, other in zip(before, parts, strict=True))
    return float(changed), "numbers that changed"


def _masks(device: torch.device) -> tuple[float, str]:
    """The zeros of dropout, from a key in Python and from one on the device."""
    different = 0
    for seed in range(8):
        key = derived_seed(seed, "dropout")
        places = Places(99_999, 99_999, seed)
        expected = kept(key, places, 1, 12_345, CPU)
        for given in (key, torch.tensor(key, device=device)):
            different += int((kept(given, places, 1, 12_345, device).cpu() != expected).sum())
    return float(different), "values that differ"
