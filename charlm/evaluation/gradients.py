"""How far back a loss reaches: the gradient of one character's loss with respect to the states before it.

For a position t of a text, L_t = −ln p(character t + 1), and k steps further back, this measures

    ‖∂L_t / ∂h_{t−k}‖     and for an LSTM     ‖∂L_t / ∂c_{t−k}‖        k = 0, 1, …, K

the Euclidean norm over the H units of a layer (Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013, section 2).
It is a total derivative: all paths from that state to the loss count, also those through higher layers and attention. A
change of c_{t−k} also changes h_{t−k} = o∘tanh(c_{t−k}).

It is exact: automatic differentiation in float64 through the reference equations, from the state that was carried from the
first character of the text. Positions are read side by side. The state of one stream influences no other stream's loss,
so one backward pass through the sum of their losses computes all their gradients.

Beside it is the rate that theory names, whose k-th power is compared with the curve:

    LSTM    mean forget gate f: along the cell state alone, ∂c_t / ∂c_{t−k} = Π f (Gers et al. 2000)
    GRU     mean update gate z (z near 1 keeps the old state, as in :func:`charlm.model.cells.gru`)
    RNN     mean spectral radius of one step's Jacobian ∂h_t / ∂h_{t−1} = diag(tanh′)·W

A mean over units says little about large k, where the units that keep most are left: the slowest unit has a rate of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from charlm.cells import option_default, option_keys
from charlm.data.dataset import Text
from charlm.errors import CorpusError, DivergedError
from charlm.evaluation.carried import states_before
from charlm.model.cells import EQUATIONS, KEEP_GATES, State
from charlm.model.engines import resolve_engine
from charlm.model.language_model import LanguageModel, activation_bytes, state_shapes
from charlm.model.recording import Recorded, with_record
from charlm.progress import Progress
from charlm.threads import Tuner

DISTANCE = 1000
"""K, by default."""

POSITIONS = 64
"""Positions of a text, by default."""

_RATES = {"f": "forget gate", "z": "update gate"}
_BYTES = 96 << 20  # kept for the backward pass at a time
_STEPS = 32  # of a window, whose graph is kept at a time
_RADII = 64 * 256**3  # Jacobians × H³: about ten seconds of eigenvalues

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GradientFlow:
    """The gradients with respect to one part of the state of one layer, K + 1 distances.

    Attributes:
        layer: from 0, the lowest.
        state: ``h`` or ``c``.
        median, lower_quartile, upper_quartile: ``(K + 1,)`` of the norm, over the positions.
    """

    layer: int
    state: str
    median: Curve = field(repr=False)
    lower_quartile: Curve = field(repr=False)
    upper_quartile: Curve = field(repr=False)

    @property
    def half_life(self) -> int | None:
        """The smallest k > 0 at which the median is at most half of that at k = 0; ``None``: not within K steps."""
        halved = np.flatnonzero((self.median <= self.median[0] / 2) & (self.median[0] > 0))
        return int(halved[0]) if len(halved) else None


@dataclass(frozen=True)
class Rate:
    """The factor per step that theory names for a layer.

    Attributes:
        name: ``forget gate``, ``update gate`` or ``spectral radius``.
        factor: its mean over the positions and units.
        slowest_unit: the mean of the unit whose gate keeps most, which is left at large k; ``None`` for an RNN.
    """

    layer: int
    name: str
    factor: float
    slowest_unit: float | None


@dataclass(frozen=True)
class Gradients:
    """The gradient flow of a model on a text.

    Attributes:
        cell: its name, as in the recipe.
        distances: ``(K + 1,)`` the k: 0, 1, …, K.
        positions: ``(P,)`` the t, counted from the text's first character.
        flows: for each layer, each part of its state.
        rates: for each layer.
    """

    cell: str
    distances: npt.NDArray[np.int64] = field(repr=False)
    positions: npt.NDArray[np.int64] = field(repr=False)
    flows: tuple[GradientFlow, ...]
    rates: tuple[Rate, ...]


def gradients(
    model: LanguageModel,
    text: Text,
    *,
    distance: int = DISTANCE,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> Gradients:
    """Measure how the gradient of a loss shrinks or grows on its way back through a text.

    Beside the model it needs at most about 400 MB, whatever the length of the text.

    Args:
        text: N characters. The positions are spread evenly over it, each with K characters before it.
        distance: K; at most half the text.
        positions: P; fewer if the text is too short for P.

    Raises:
        UsageError: the text has several records.
        CorpusError: the text has fewer than three characters.
        DivergedError: losses or gradients are NaN or infinite.
    """
    text.require_one_stream()
    inputs = len(text) - 1
    K = min(distance, inputs // 2)
    if K < 1:
        raise CorpusError(f"the text has {len(text)} characters; a gradient that reaches back needs at least three")
    P = min(positions, inputs - K)
    at = np.linspace(K, inputs - 1, P).round().astype(np.int64)
    starts = at - K
    window, read = K + 1, int(starts[-1])

    def told(characters: int) -> None:
        if progress is not None:
            progress(characters, read + P * window)

    state = states_before(model, text, starts.tolist(), lambda done, _: told(done))
    exact = _in_float64(model)
    norms = {(layer, name): np.empty((window, P)) for layer in range(len(exact.layers)) for name in exact.layers[0].entry.state}
    means: list[Curve | float] = [0.0] * len(exact.layers)
    keep = _keep_gate(exact)
    B = min(P, max(1, _BYTES // _stream_bytes(exact, window)))
    tuner = Tuner("evaluation", invariant=False)
    for first in range(0, P, B):
        group = slice(first, min(first + B, P))
        ids = np.stack([text.ids(start, start + window + 1) for start in starts[group].tolist()], axis=1)
        with tuner.piece(ids.size):
            before = tuple(part[:, group].double() for part in state)
            for stop, gradients, recorded in _backward(exact, torch.from_numpy(ids).to(before[0].device), before):
                for key, each in gradients.items():
                    norms[key][window - stop : window - stop + len(each), group] = each[::-1]
                for layer, record in enumerate(recorded):
                    if keep is not None:
                        with torch.no_grad():
                            means[layer] += record.gates()[keep].sum(dim=(0, 1)).cpu().numpy() / (window * P)
                    elif stop == window:
                        means[layer] += _spectral_radius(record, P) * (group.stop - first) / P
        told(read + group.stop * window)
    flows = []
    for (layer, name), each in norms.items():
        lower, median, upper = np.quantile(each, [0.25, 0.5, 0.75], axis=1)
        flows.append(GradientFlow(layer, name, median, lower, upper))
    title = _RATES.get(keep or "", "spectral radius")
    theory = tuple(
        Rate(layer, title, float(np.mean(units)), None if np.ndim(units) == 0 else float(np.max(units)))
        for layer, units in enumerate(means)
    )
    return Gradients(exact.section.cell, np.arange(window), at, tuple(flows), theory)


def untrained(model: LanguageModel, cell: str, seed: int) -> LanguageModel:
    """A model of the same size with initial weights.

    Args:
        cell: its recurrence, in the default form.
        seed: of the initial weights.
    """
    options = {key: option_default(key) for key in option_keys()}
    section = model.section.model_copy(update={**options, "cell": cell, "engine": "auto"})
    device = model.output_bias.device
    made = LanguageModel(section, model.vocabulary_size, resolve_engine(section, device)[0])
    made.initialise(seed)
    return made.to(device)


def _in_float64(model: LanguageModel) -> LanguageModel:
    """A copy for exact gradients: after some hundred steps they are smaller than the smallest number of float32."""
    copied = LanguageModel(model.section, model.vocabulary_size, "reference").double()
    copied.load_state_dict(model.state_dict())
    return copied.to(model.output_bias.device).requires_grad_(False)


def _stream_bytes(model: LanguageModel, window: int) -> int:
    """What :func:`_backward` keeps for each stream."""
    state = sum(math.prod(shape) for shape in state_shapes(model.section, 1)) * 8
    steps = min(_STEPS, window)
    return state * (window // _STEPS + 1) + 2 * activation_bytes(
        model.section, model.vocabulary_size, 1, steps, "fp32", "reference"
    )


def _backward(
    model: LanguageModel, ids: Tensor, before: State
) -> Iterator[tuple[int, dict[tuple[int, str], Curve], list[Recorded]]]:
    """Propagate the losses of B windows back through them, from the last steps to the first.

    Autograd would keep all steps of a window. So the windows are cut into pieces: a first pass keeps the state before each,
    a second one, backwards, computes a piece again with its graph and passes on the gradient of the state before it.

    Args:
        ids: ``(K + 2, B)``: K + 1 steps, and the character after them, whose loss counts.
        before: the state before the windows.

    Yields:
        Of each piece: one past its last step; the gradients' norms at its steps, ``(steps, B)`` for each layer and part of
        the state; the record of each layer.

    Raises:
        DivergedError: the gradients are NaN or infinite.
    """
    window = len(ids) - 1
    bounds = [*range(0, window, _STEPS), window]
    states = [before]
    with torch.no_grad():
        for start, stop in pairwise(bounds[:-1]):
            states.append(model.features(ids[start:stop], states[-1])[1])
    names = model.layers[0].entry.state
    later: State = ()
    for start, stop in reversed(list(pairwise(bounds))):
        first = tuple(part.requires_grad_() for part in states.pop())
        recording, engine = with_record(model)
        features, after = recording.features(ids[start:stop], first)
        nodes = {
            (layer, name): [state[part] for state in record.states[1:]]
            for layer, record in enumerate(engine.recorded)
            for part, name in enumerate(names)
        }
        last = stop == window
        outputs = [F.cross_entropy(model.logits(features[-1]), ids[-1], reduction="sum")] if last else list(after)
        inputs = [*first, *(node for each in nodes.values() for node in each)]
        # Attention's memory has no gradient where the window is longer than what it looks at.
        found = torch.autograd.grad(outputs, inputs, None if last else later, materialize_grads=True)
        later, rest = found[: len(first)], iter(found[len(first) :])
        norms = {key: torch.stack([_norm(next(rest)) for _ in each]).cpu().numpy() for key, each in nodes.items()}
        if not all(np.isfinite(each).all() for each in norms.values()):
            raise DivergedError("the gradients are NaN or infinite: the model's weights have grown too large")
        yield stop, norms, engine.recorded


def _norm(gradient: Tensor) -> Tensor:
    """Euclidean norm of each row of ``(B, H)``; squares of the smallest numbers would be zero, so it is scaled."""
    largest = gradient.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    sizes: Tensor = torch.linalg.vector_norm(gradient / scale, dim=-1) * scale[:, 0]
    return sizes


def _keep_gate(model: LanguageModel) -> str | None:
    return next((gate for gate in model.layers[0].entry.gates if gate in KEEP_GATES), None)


def _spectral_radius(record: Recorded, positions: int) -> float:
    """Mean largest |eigenvalue| of ∂h′/∂h = diag(∂h′/∂x)·W at the windows' last step, for some of the B streams.

    Eigenvalues of a wide layer take seconds, so it has fewer Jacobians: in proportion to 1/H³.
    """
    W = record.parameters[0]
    B, H = record.states[-1][0].shape
    x = record.x[-1].detach().requires_grad_()
    before = tuple(part.detach() for part in record.states[-2])
    (slope,) = torch.autograd.grad(EQUATIONS[record.entry.name](x, before, *record.parameters)[0].sum(), x)
    count = max(1, min(B, round(B * _RADII / H**3 / positions)))
    chosen = slope[torch.linspace(0, B - 1, count, device=slope.device).round().long()]
    return float(np.mean([float(torch.linalg.eigvals(each[:, None] * W).abs().max()) for each in chosen]))
