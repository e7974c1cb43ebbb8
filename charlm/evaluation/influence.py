"""Which past characters a prediction depends on: by the gradient, and by replacing each of them.

For the character x_t and the character x_i that came d = t − i places before it, p = p(· | x_0 … x_{t−1}) and
p^(i←r) the same with r in the place of x_i:

    gradient     Σ_j ∂(−ln p(x_t))/∂e_ij · e_ij, with e_i the input vector of x_i (one-hot, or a row of the embedding):
                 gradient × input. Negative: x_i makes x_t likelier, to first order
    divergence   mean over r of the Kullback-Leibler divergence D(p ‖ p^(i←r)), in nats
    change       mean over r of |ln p(x_t) − ln p^(i←r)(x_t)|, in nats

r runs over all other symbols of the vocabulary but ``<unk>``, or over a sample of them. Divergence and change are exact: the
model reads every changed text. The gradient is the local approximation: it is the idea behind the connectivity of Madsen 2019,
"Visualizing memorization in RNNs" (Distill), which is the norm of the gradient of an output with respect to each input.

Characters further back than D keep their effect through the state and are not tried.

    N characters    P explained characters    D largest distance    R replacements    V symbols    W attention window
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from charlm.data.dataset import Text
from charlm.errors import CorpusError, DivergedError, UsageError
from charlm.evaluation.carried import states_before
from charlm.model.cells import State
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress

ALL_UP_TO = 100
"""Vocabularies of at most this size are tried completely by default; of others, ``SAMPLED`` symbols."""
SAMPLED = 32

_NUMBERS_AT_ONCE = 1 << 24

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Influence:
    """What P successive characters depended on.

    Attributes:
        start: index in the text of the first explained character.
        nats: ``(P,)`` −ln p of each.
        divergence, change, gradient: ``(P, D)``, nearest first: column d − 1 is about the character d places before. 0 before
            the beginning of the text.
        attention: ``(P, D)``, how much the model's last step looked at the step that read that character; ``None``: the model
            has no attention. The last step does not look at itself, so the first column is 0.
        replacements: R.
    """

    start: int
    nats: Floats
    divergence: Floats
    change: Floats
    gradient: Floats
    attention: Floats | None
    replacements: int


def influence(
    model: LanguageModel,
    text: Text,
    position: int = -1,
    *,
    count: int = 1,
    distance: int = 100,
    replacements: int | None = None,
    unknown_id: int | None = None,
    seed: int = 1,
    progress: Progress | None = None,
) -> Influence:
    """Explain the prediction of some characters of a text.

    Args:
        text: N characters; those before the ones that are tried are read once.
        position: index of the last explained character, 1 … N − 1; negative: from the end.
        count: P, fewer where the text begins.
        distance: D at most.
        replacements: R at most; ``None``: all symbols if V ≤ 100, else 32.
        unknown_id: of ``<unk>``.
        seed: of the sample of symbols.

    Raises:
        CorpusError: the text has fewer than two characters.
        UsageError: there is no such position, or nothing before it; or the text has several records.
        DivergedError: the scores are NaN or infinite.
    """
    text.require_one_stream()
    N = len(text)
    if N < 2:
        raise CorpusError(f"the text has {N} characters; at least two are needed, the first depends on nothing")
    last = position + N if position < 0 else position
    if not 1 <= last < N:
        raise UsageError(f"{position}: expected 1 … {N - 1}; character 0 has nothing before it", parameter="position")
    start = max(1, last + 1 - count)
    D = min(distance, last)
    window = _Window(start, last + 1, D, text.ids(max(0, start - D), last + 1))
    tried = _Replacements(model.vocabulary_size, unknown_id, replacements, seed)
    P = last + 1 - start
    nats, divergence, change, gradient, looked = np.zeros(P), *np.zeros((4, P, D))
    attention = None if model.attention is None else looked
    found = Influence(start, nats, divergence, change, gradient, attention, tried.count)
    told = None if progress is None else lambda done, _: progress(done, last)
    state = states_before(model, text, [window.first], told)
    group = _group(model, window.D)
    for i in range(window.first, last):
        for first in range(start, last + 1, group):
            if i == max(0, first - window.D):
                _gradients(model, window, i, range(first, min(first + group, last + 1)), state, found)
        with torch.inference_mode():
            _replace(model, window, i, tried.of(i, int(window.ids[i - window.first])), state, found)
            here = torch.from_numpy(window.ids[i - window.first, None, None]).to(state[0].device)
            if attention is not None and i + 1 >= start:
                weights = model.attention_weights(here, state)[0].double().cpu().numpy()[::-1][: D - 1]
                attention[i + 1 - start, 1 : 1 + len(weights)] = weights
            _, state = model.features(here, state)
        if progress is not None:
            progress(i + 1, last)
    if not all(np.isfinite(part).all() for part in (nats, divergence, change, gradient, looked)):
        raise DivergedError("the model's scores are NaN or infinite: its weights have grown too large")
    return found


@dataclass(frozen=True)
class _Window:
    """The characters that are tried and explained.

    Attributes:
        start, stop: of the explained characters, in the text.
        D: largest distance.
        ids: of the characters ``first … stop − 1``.
    """

    start: int
    stop: int
    D: int
    ids: npt.NDArray[np.int64]

    @property
    def first(self) -> int:
        """The first character that is tried."""
        return max(0, self.start - self.D)


class _Replacements:
    """Which symbols are tried in the place of a character."""

    def __init__(self, V: int, unknown_id: int | None, wanted: int | None, seed: int) -> None:
        known = np.array([index for index in range(V) if index != unknown_id], dtype=np.int64)
        self._symbols = known if len(known) > 1 else np.arange(V)
        self._most = len(self._symbols) - 1
        self.count = min(self._most, wanted if wanted is not None else V if V <= ALL_UP_TO else SAMPLED)
        self._seed = seed

    def of(self, i: int, own: int) -> npt.NDArray[np.int64]:
        """R symbols for the character with the index i and the id ``own``; the same ones whenever it is asked for."""
        others = np.delete(self._symbols, np.flatnonzero(self._symbols == own))
        if self.count == self._most:  # all, and one more for an <unk>
            return others
        drawn: npt.NDArray[np.int64] = np.random.default_rng([self._seed, i]).choice(others, self.count, replace=False)
        return drawn


def _replace(
    model: LanguageModel, window: _Window, i: int, tried: npt.NDArray[np.int64], state: State, found: Influence
) -> None:
    """Fill in divergence and change for the character i, and the nats of the next one.

    Args:
        state: before the character i.
    """
    first, last = max(window.start, i + 1), min(window.stop - 1, i + window.D)
    if first > last:
        return
    device = state[0].device
    ids = torch.from_numpy(window.ids[i - window.first : last + 1 - window.first]).to(device)
    inputs, targets = ids[:-1], ids[first - i :]
    scored = len(targets)
    kept = scored * model.vocabulary_size + (len(inputs) + model.section.attention) * model.section.hidden
    size = max(1, _NUMBERS_AT_ONCE // kept)
    divergence = torch.zeros(scored, dtype=torch.float64, device=device)
    change = torch.zeros_like(divergence)
    for symbols in np.array_split(tried, -(-len(tried) // size)):
        # Stream 0 reads the text as it is: the same kernels then give the same rounding.
        streams = inputs[:, None].repeat(1, 1 + len(symbols))
        streams[0, 1:] = torch.from_numpy(symbols).to(device)
        began = tuple(part.expand(-1, streams.shape[1], -1).contiguous() for part in state)
        features, _ = model.features(streams, began)
        log_p = torch.log_softmax(model.logits(features[first - 1 - i :]), dim=-1)
        own, other = log_p[:, :1], log_p[:, 1:]
        divergence += (own.exp() * (own - other)).double().sum(-1).clamp(min=0).sum(1)
        true = log_p.gather(2, targets[:, None, None].expand(-1, streams.shape[1], 1))[..., 0].double()
        change += (true[:, 1:] - true[:, :1]).abs().sum(1)
    rows = torch.stack([divergence, change], dim=1) / len(tried)
    for t, (divergent, changed) in enumerate(rows.tolist(), first):
        found.divergence[t - window.start, t - i - 1] = divergent
        found.change[t - window.start, t - i - 1] = changed
    if first == i + 1:
        found.nats[first - window.start] = -float(true[0, 0])


def _group(model: LanguageModel, D: int) -> int:
    """How many characters' gradients are computed side by side: bounded by what the backward pass keeps."""
    section = model.section
    kept = (section.layers * 12 + section.attention) * section.hidden + 2 * model.layers[0].width
    return max(1, min(64, _NUMBERS_AT_ONCE // (max(D, 16) * kept)))


def _gradients(model: LanguageModel, window: _Window, i: int, explained: range, state: State, found: Influence) -> None:
    """Fill in gradient × input for some explained characters, each in a stream of its own: one backward pass for all.

    Args:
        i: the first character that is read.
        state: before it.
    """
    P = len(explained)
    ids = torch.from_numpy(window.ids[i - window.first : explained[-1] + 1 - window.first]).to(state[0].device)
    rows = F.one_hot(ids[:-1], model.vocabulary_size) if model.embedding is None else F.embedding(ids[:-1], model.embedding)
    inputs = rows.detach().to(model.output_bias.dtype)[:, None].repeat(1, P, 1).requires_grad_()
    began = tuple(part.expand(-1, P, -1).clone() for part in state)
    with torch.enable_grad():
        features, _ = model.with_engine("reference").features(inputs, began)
        steps = torch.tensor([t - 1 - i for t in explained], device=ids.device)
        log_p = torch.log_softmax(model.logits(features[steps, torch.arange(P, device=ids.device)]), dim=-1)
        nats = -log_p.gather(1, ids[steps + 1, None]).sum()
        (slope,) = torch.autograd.grad(nats, inputs)
    products = (slope * inputs).detach().sum(-1).double().cpu().numpy()  # (T, P)
    for stream, t in enumerate(explained):
        reach = min(window.D, t - i)
        found.gradient[t - window.start, :reach] = products[t - i - reach : t - i, stream][::-1]
