"""The work that is timed: training, evaluation, sampling and matrix products.

Each is an endless generator that does one piece of work per step and yields its amount.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.bench.record import TORCH_NN, Configuration, Shape, section_of
from charlm.config import TrainSection
from charlm.data.dataset import Text
from charlm.data.vocabulary import Vocabulary
from charlm.evaluation.limits import CHUNK
from charlm.evaluation.perplexity import carried
from charlm.model.language_model import LanguageModel
from charlm.runtime import arithmetic
from charlm.sampling import SamplingParams, generate
from charlm.threads import most, use
from charlm.training.update import Updater

_RATE = 0.1
_CLIP = 1.0
_BATCHES = 4  # that take turns
_DRAWN_AT_ONCE = 32


def build(case: Configuration, shape: Shape, device: torch.device) -> Callable[[], int]:
    """A function that does a piece of the work of a case and returns its number of characters."""
    work = {
        ("train", False): _training,
        ("train", True): _training_with_torch_nn,
        ("evaluate", False): _evaluation,
        ("evaluate", True): _evaluation_with_torch_nn,
        ("sample", False): _sampling,
        ("sample", True): _sampling_with_torch_nn,
    }
    return work[case.kind, case.engine == TORCH_NN](case, shape, device).__next__


def _training(case: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _model(case, shape, device)
    update = Updater(model, TrainSection(optimizer="sgd", lr=_RATE, clip=_CLIP), case.precision)
    state = model.zero_state(shape.batch)
    for inputs, targets in _batches(shape, device):
        use(most(), torch_threads=1 if model.is_thread_invariant else None)
        state = update(inputs, targets, targets.numel(), state, _RATE).state
        yield targets.numel()


def _training_with_torch_nn(case: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = TorchNN(case.cell, shape).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)
    state = None
    for inputs, targets in _batches(shape, device):
        use(most())
        with arithmetic(case.precision, device):
            logits, state = model(inputs, state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        loss.item()
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        yield targets.numel()


def _evaluation(case: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _model(case, shape, device)
    indices = _random_ids(shape, CHUNK + 1).astype(np.uint32)
    text = Text(indices, np.arange(shape.symbols), np.zeros(shape.symbols, dtype=np.bool_))
    while True:
        yield carried(model, text).characters


def _evaluation_with_torch_nn(case: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = TorchNN(case.cell, shape).to(device)
    ids = torch.from_numpy(_random_ids(shape, CHUNK + 1)).to(device)[:, None]
    state = None
    while True:
        use(most())
        with torch.inference_mode():
            logits, state = model(ids[:-1], state)
            F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten(), reduction="sum").item()
        yield CHUNK


def _sampling(case: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = _model(case, shape, device)
    vocabulary = Vocabulary("char", tuple(range(shape.symbols - 1)))  # and <unk>
    drawn = generate(model, vocabulary, [], SamplingParams(), seed=1, precision=case.precision)
    while True:
        for _ in range(_DRAWN_AT_ONCE):
            next(drawn)
        yield _DRAWN_AT_ONCE


def _sampling_with_torch_nn(case: Configuration, shape: Shape, device: torch.device) -> Iterator[int]:
    model = TorchNN(case.cell, shape).to(device)
    ids, state = torch.zeros(1, 1, dtype=torch.long, device=device), None
    while True:
        use(most())
        with torch.inference_mode():
            for _ in range(_DRAWN_AT_ONCE):
                logits, state = model(ids, state)
                ids = torch.multinomial(torch.softmax(logits[0], dim=-1), 1)
                ids.item()
        yield _DRAWN_AT_ONCE


def matrix_products(rows: int, inner: int, columns: int, precision: str, device: torch.device) -> Iterator[float]:
    """Matrix products, the ceiling of training; yields floating-point operations."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    product = torch.empty(rows, columns, dtype=dtype, device=device)
    while True:
        use(most())
        torch.mm(a, b, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield 2.0 * rows * inner * columns


def product_sizes(device: torch.device) -> list[tuple[int, int, int]]:
    """Rows, inner size and columns: large enough for full speed, small enough for several per turn."""
    return [(8192, 8192, 8192)] if device.type == "cuda" else [(1024, 1024, 1024), (2048, 1024, 2048)]


class TorchNN(nn.Module):
    """One-hot vectors, recurrent layers, a linear layer: the same network in torch.nn."""

    def __init__(self, cell: str, shape: Shape) -> None:
        super().__init__()
        self.symbols = shape.symbols
        self.recurrent = getattr(nn, cell.upper())(shape.symbols, shape.hidden, shape.layers)
        self.output = nn.Linear(shape.hidden, shape.symbols)

    def forward(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Like :meth:`LanguageModel.forward`, with the state in the form of ``torch.nn``; ``None``: zeros."""
        outputs, state = self.recurrent(F.one_hot(ids, self.symbols).float(), state)
        return self.output(outputs), state


def _model(case: Configuration, shape: Shape, device: torch.device) -> LanguageModel:
    model = LanguageModel(section_of(case.cell, shape), shape.symbols, case.engine)
    model.initialise(seed=1)
    model.to(device)
    model.flatten_for_cudnn()
    return model


def _batches(shape: Shape, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """A few random batches, ``(T, B)`` inputs and targets, repeated without end."""
    ids = torch.from_numpy(_random_ids(shape, _BATCHES, shape.seq_length + 1, shape.batch)).to(device)
    return itertools.cycle([(batch[:-1], batch[1:]) for batch in ids])


def _random_ids(shape: Shape, *size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(1).integers(shape.symbols, size=size)
