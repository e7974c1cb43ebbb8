"""Generates text, one character at a time: temperature, top-k, top-p, banned characters, stop text.

The draw is defined here, in float64 and in the order of the ids, not by a library. Native kernels and GPUs follow the same
rule, so the same model, seed and options give the same text on every engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile

import numpy as np
import numpy.typing as npt
import torch

from charlm.config import check_temperature
from charlm.data.vocabulary import Vocabulary
from charlm.errors import DivergedError, UsageError
from charlm.model.cells import State
from charlm.model.engines import BlockSampler
from charlm.model.graph_sampler import GraphSampler
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.runtime import derived_seed
from charlm.threads import Tuner

Probabilities = npt.NDArray[np.float64]

NONFINITE = "the model's logits are NaN or infinite, so nothing can be drawn: its weights have become too large"

_PROMPT_CHUNK = 1024
_BLOCK = 128


@dataclass(frozen=True)
class SamplingParams:
    """Options of the draw from a distribution.

    Attributes:
        temperature: divides the logits; 0: always the most likely id.
        top_k: keep the k most likely ids; 0: all.
        top_p: keep the most likely ids that together reach this probability (Holtzman et al. 2020); 1: all.
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
    """The probabilities of the draw, ``(V,)``, with the sum 1.

    Of equal logits at the border of top-k the smaller ids are kept, so exactly k remain.
    """
    scores = np.array(logits, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise DivergedError(NONFINITE)
    if params.banned:
        scores[list(params.banned)] = -np.inf
    if not np.isfinite(scores.max()):
        raise UsageError("all characters are banned; nothing is left to draw")
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
    """The id at which the cumulative sum of probabilities, in the order of the ids, exceeds ``uniform`` in [0, 1)."""
    mass = np.cumsum(probabilities)
    index = int(np.searchsorted(mass, uniform * mass[-1], side="right"))
    return min(index, int(np.flatnonzero(probabilities)[-1]))


def opening(vocabulary: Vocabulary, prompt: Sequence[int]) -> list[int]:
    """What a model reads before it draws.

    A model of records reads the separator and the prompt. Any other model reads the prompt; in place of an empty one, a
    newline if the vocabulary has it, else its first symbol.
    """
    if vocabulary.separator_id is not None:
        return [vocabulary.separator_id, *prompt]
    newline = vocabulary.id_of(ord("\n"))
    return list(prompt) or [newline if newline is not None else len(vocabulary) - len(vocabulary.symbols)]


def prefill(model: LanguageModel, ids: Sequence[int]) -> tuple[Probabilities, State]:
    """Run the model over a prompt, from a zero state.

    Args:
        ids: the prompt, not empty.

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
    """The probability of each symbol to follow a prompt, in descending order; ``<unk>`` is one of the symbols.

    Args:
        prompt: ids; see :func:`opening`.
        params: of the draw; ``None``: the model's own probabilities.

    Returns:
        Symbol (see :meth:`charlm.data.vocabulary.Vocabulary.shown`) → probability.
    """
    logits, _ = prefill(model, opening(vocabulary, prompt))
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
    """Yield ids without end, in constant memory. A model of records ends its record before the separator.

    Args:
        prompt: ids to continue; see :func:`opening`.
        seed, number: each pair has its own random sequence; ``number`` distinguishes samples of one seed.
        precision: one of the engine's ``sampling_precisions``; ``bf16`` is faster and gives another text.
    """
    for (index,) in generate_parallel(model, vocabulary, prompt, params, seed, [number], precision):
        if index == vocabulary.separator_id:
            return
        yield index


def until_separator(ids: Iterable[int], vocabulary: Vocabulary) -> Iterator[int]:
    """The ids of one sample of :func:`generate_parallel` before the first separator; all if the text is one stream."""
    separator = vocabulary.separator_id
    return iter(ids) if separator is None else takewhile(lambda index: index != separator, ids)


def generate_parallel(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int,
    numbers: Sequence[int],
    precision: str = "fp32",
) -> Iterator[list[int]]:
    """Yield the next ids of N samples that continue one prompt; each sample is that of :func:`generate` for its number.

    A record is followed by its separator and by ids without meaning, until all N records have ended.
    """
    rows = _generate(model, vocabulary, prompt, params, seed, numbers, precision)
    if vocabulary.separator_id is None:
        yield from rows
        return
    open_records = set(range(len(numbers)))
    for row in rows:
        yield row
        open_records.difference_update([number for number in open_records if row[number] == vocabulary.separator_id])
        if not open_records:
            return


def _generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int,
    numbers: Sequence[int],
    precision: str,
) -> Iterator[list[int]]:
    """Yield the next ids of N samples without end."""
    if vocabulary.unknown_id is not None:  # <unk> is not a character
        params = replace(params, banned=params.banned | {vocabulary.unknown_id})
    random = [np.random.default_rng(derived_seed(seed, "sample", number)) for number in numbers]
    N = len(numbers)
    logits, state = prefill(model, opening(vocabulary, prompt))
    distribution(logits, params)  # raises if nothing is left to draw
    state = tuple(part.expand(-1, N, -1) for part in state)
    rows = np.tile(logits, (N, 1))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    sampler = model.engine.block_sampler(
        model, torch.from_numpy(rows), state, params.temperature, params.top_k, params.top_p, params.banned, dtype
    )
    if sampler is None and state[0].device.type == "cuda":
        sampler = GraphSampler(
            model, torch.from_numpy(rows), state, params.temperature, params.top_k, params.top_p, params.banned
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
    """Yield the next ids of N samples, computed in blocks."""
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
    """Generate ``length`` characters after ``prompt``; a record may end earlier. Unknown characters are read as ``<unk>``.

    Args:
        progress: called after each block of characters with (drawn, length); may raise to end the sampling.
    """
    ids = generate(model, vocabulary, vocabulary.encode(prompt, "map"), params, seed, number)
    drawn: list[int] = []
    while len(drawn) < length and (block := list(islice(ids, min(_BLOCK, length - len(drawn))))):
        drawn += block
        if progress is not None:
            progress(len(drawn), length)
    return vocabulary.decode(drawn)


def truncate_at_stop(pieces: Iterator[bytes], stop: bytes) -> Iterator[bytes]:
    """Yield pieces up to the first ``stop``, exclusive. An end that may be the beginning of ``stop`` is held back."""
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
