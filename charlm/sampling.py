"""Writes text, one character at a time: temperature, top-k, top-p, banned characters, stop text.

The draw is defined here, in float64 and by the ids' order, and not left to a library: the same model, seed and options
give the same text on every engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from charlm.config import check_temperature
from charlm.data.vocabulary import Vocabulary
from charlm.errors import DivergedError, UsageError
from charlm.model.cells import State
from charlm.model.engines import BlockSampler
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.runtime import derived_seed
from charlm.threads import Tuner

Probabilities = npt.NDArray[np.float64]

NONFINITE = "the model's scores are NaN or infinite, so nothing can be drawn: its weights have grown too large"

_PROMPT_CHUNK = 1024
_BLOCK = 128


@dataclass(frozen=True)
class SamplingParams:
    """How to choose from a distribution.

    Attributes:
        temperature: divides the logits; 0: always the likeliest.
        top_k: keep the k likeliest; 0: all.
        top_p: keep the likeliest that together reach this probability (Holtzman et al. 2020); 1: all.
        banned: ids that are never drawn.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    banned: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        try:
            check_temperature(self.temperature)
        except ValueError as error:
            raise UsageError(f"{self.temperature:g}: {error}", parameter="temperature") from None
        if self.top_k < 0:
            raise UsageError(f"{self.top_k}: expected 0 (all) or more", parameter="top_k")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"{self.top_p:g}: expected more than 0, at most 1", parameter="top_p")


def distribution(logits: npt.ArrayLike, params: SamplingParams) -> Probabilities:
    """The probabilities that a character is drawn with, ``(V,)``, summing to 1.

    Ties at the border of top-k go to the smaller id, so that exactly k remain.
    """
    scores = np.array(logits, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise DivergedError(NONFINITE)
    if params.banned:
        scores[list(params.banned)] = -np.inf
    if not np.isfinite(scores.max()):
        raise UsageError("every character is banned; nothing is left to draw")
    order = np.argsort(-scores, kind="stable")
    if params.temperature == 0:
        scores[order[1:]] = -np.inf
        params = SamplingParams(temperature=1.0)
    scores = np.exp((scores - scores[order[0]]) / params.temperature)
    if params.top_k:
        scores[order[params.top_k :]] = 0
    if params.top_p < 1:
        mass = np.cumsum(scores[order])
        kept = int(np.searchsorted(mass, params.top_p * mass[-1])) + 1
        scores[order[kept:]] = 0
    probabilities: Probabilities = scores / scores.sum()
    return probabilities


def draw(probabilities: Probabilities, uniform: float) -> int:
    """The id at which the cumulative sum of probabilities, in the ids' order, passes ``uniform`` in [0, 1)."""
    mass = np.cumsum(probabilities)
    index = int(np.searchsorted(mass, uniform * mass[-1], side="right"))
    return min(index, int(np.flatnonzero(probabilities)[-1]))


def start_ids(vocabulary: Vocabulary) -> list[int]:
    """What stands before an empty prompt: a newline if the model knows it, else its first symbol."""
    newline = vocabulary.id_of(ord("\n"))
    return [newline if newline is not None else len(vocabulary) - len(vocabulary.symbols)]


def read(model: LanguageModel, ids: Sequence[int]) -> tuple[Probabilities, State]:
    """Read a prompt from a zero state.

    Returns:
        The logits of the next character ``(V,)``, and the state.
    """
    tuner = Tuner("evaluation", model.is_thread_invariant)
    with torch.inference_mode():
        state = model.zero_state(1)
        for start in range(0, len(ids), _PROMPT_CHUNK):
            part = torch.tensor(ids[start : start + _PROMPT_CHUNK], device=state[0].device)[:, None]
            with tuner.piece(len(part)):
                features, state = model.features(part, state)
        return _logits(model, features), state


def next_characters(
    model: LanguageModel, vocabulary: Vocabulary, prompt: Sequence[int], params: SamplingParams | None = None
) -> dict[str, float]:
    """The probability of each symbol to follow a prompt, the likeliest first; ``<unk>`` is one of them.

    Args:
        prompt: ids; empty: see :func:`start_ids`.
        params: what would be drawn with them; ``None``: what the model predicts.

    Returns:
        A symbol as :meth:`charlm.data.vocabulary.Vocabulary.shown` names it → its probability.
    """
    logits, _ = read(model, prompt or start_ids(vocabulary))
    probabilities = distribution(logits, params or SamplingParams())
    order = np.argsort(-probabilities, kind="stable").tolist()
    return {vocabulary.shown(index): float(probabilities[index]) for index in order}


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int,
    number: int = 0,
    precision: str = "fp32",
) -> Iterator[int]:
    """Yield ids without end. Memory does not grow.

    Args:
        prompt: ids to continue; empty: see :func:`start_ids`.
        seed, number: each pair has its own random sequence; ``number`` tells several samples of one seed apart.
        precision: ``fp32``, or ``bf16`` where the engine has it for sampling: faster, and not the same text.
    """
    for (index,) in generate_together(model, vocabulary, prompt, params, seed, [number], precision):
        yield index


def generate_together(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int,
    numbers: Sequence[int],
    precision: str = "fp32",
) -> Iterator[list[int]]:
    """Yield the next id of N samples that continue one prompt, without end: what :func:`generate` yields for each number."""
    if vocabulary.unknown_id is not None:  # <unk> is no character
        params = replace(params, banned=params.banned | {vocabulary.unknown_id})
    random = [np.random.default_rng(derived_seed(seed, "sample", number)) for number in numbers]
    N = len(numbers)
    logits, state = read(model, prompt or start_ids(vocabulary))
    distribution(logits, params)  # says so if nothing is left to draw
    state = tuple(part.expand(-1, N, -1) for part in state)
    rows = np.tile(logits, (N, 1))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    sampler = model.engine.block_sampler(
        model, torch.from_numpy(rows), state, params.temperature, params.top_k, params.top_p, params.banned, dtype
    )
    if sampler is not None:
        yield from _in_blocks(sampler, random, Tuner("sampling", model.is_thread_invariant))
        return
    model = model.for_single_steps()
    tuner = Tuner("sampling", model.is_thread_invariant)
    while True:
        drawn = [draw(distribution(row, params), one.random()) for row, one in zip(rows, random, strict=True)]
        yield drawn
        with torch.inference_mode(), tuner.piece(N):
            features, state = model.features(torch.tensor([drawn], device=state[0].device), state)
            rows = np.asarray(model.logits(features[-1]).double().cpu().numpy())


def _in_blocks(sampler: BlockSampler, random: list[np.random.Generator], tuner: Tuner) -> Iterator[list[int]]:
    """The same with a block of characters per call."""
    count = 1  # the first characters appear at once; the blocks then grow
    while True:
        with tuner.piece(count * len(random)):
            drawn = sampler.draw(np.stack([one.random(count) for one in random], axis=1))
        if sampler.is_nonfinite:
            raise DivergedError(NONFINITE)
        yield from drawn.tolist()
        count = min(2 * count, _BLOCK)


def _logits(model: LanguageModel, features: torch.Tensor) -> Probabilities:
    return np.asarray(model.logits(features[-1, 0]).double().cpu().numpy())


def sample(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    params: SamplingParams,
    seed: int,
    number: int = 0,
    progress: Progress | None = None,
) -> str:
    """``length`` new characters after ``prompt``; unknown characters of the prompt are read as ``<unk>``.

    Args:
        progress: called after each block of characters with (drawn, in all); may raise to end it.
    """
    ids = generate(model, vocabulary, vocabulary.encode(prompt, "map"), params, seed, number)
    drawn: list[int] = []
    while len(drawn) < length:
        drawn += islice(ids, min(_BLOCK, length - len(drawn)))
        if progress is not None:
            progress(len(drawn), length)
    return vocabulary.decode(drawn)


def until(pieces: Iterator[bytes], stop: bytes) -> Iterator[bytes]:
    """Pass pieces on until ``stop`` has appeared; it is left out. What may still become ``stop`` is held back."""
    if not stop:
        yield from pieces
        return
    held = b""
    for piece in pieces:
        held += piece
        if (found := held.find(stop)) >= 0:
            yield held[:found]
            return
        kept = next(size for size in range(min(len(stop) - 1, len(held)), -1, -1) if held.endswith(stop[:size]))
        if len(held) > kept:
            yield held[: len(held) - kept]
            held = held[len(held) - kept :]
    yield held
