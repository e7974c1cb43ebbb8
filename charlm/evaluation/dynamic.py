"""Dynamic evaluation: the model goes on learning from the text that it has already been scored on (Krause et al. 2018).

A text repeats its own names, words and habits. So after each segment of n characters has been scored, a copy of the model
takes one step of gradient descent on it, W ← W − rate·∂(mean nats of the segment)/∂W, and then scores the next. Every
character is still predicted from those before it alone, as in the exact figure; but it is another question (how well does
this model *learn*?), so the figure is reported apart and never compared with static ones.
"""

from __future__ import annotations

import copy
import math

import torch

from charlm.data.dataset import Text
from charlm.errors import DivergedError
from charlm.evaluation.perplexity import Progress, Score
from charlm.model.language_model import LanguageModel
from charlm.threads import Tuner

SEGMENT = 32
"""Characters between two updates."""

RATE = 0.1
"""The learning rate; from 0.05 to 0.15 it hardly matters (docs/results.md)."""


def dynamic(
    model: LanguageModel,
    text: Text,
    *,
    segment: int = SEGMENT,
    rate: float = RATE,
    unknown_id: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score every character but the first, each given all before it, and learn on the way. The model is left as it is.

    Args:
        text: N characters; N − 1 are scored.
        segment: n, characters between two updates.
        rate: of plain gradient descent; 0 gives the exact, static figure.
        unknown_id: what to count as unknown.

    Raises:
        DivergedError: the rate is so high that the weights stop being finite.
    """
    learner = copy.deepcopy(model)
    learner.flatten_for_cudnn()
    weights: list[torch.Tensor] = list(learner.parameters())
    targets = len(text) - 1
    total, unknown = 0.0, 0
    state = learner.zero_state(1)
    tuner = Tuner("dynamic evaluation", model.is_thread_invariant)
    for start in range(0, targets, segment):
        ids = torch.from_numpy(text.ids(start, min(start + segment, targets) + 1)).to(state[0].device)
        with tuner.piece(len(ids)):
            nats, state = learner.nll_sum(ids[:-1, None], ids[1:, None], state)
            gradients = torch.autograd.grad(nats / (len(ids) - 1), weights)
        state = tuple(part.detach() for part in state)
        total += float(nats.detach())
        if not math.isfinite(total):
            if start == 0:
                raise DivergedError("the model's scores are NaN or infinite: its weights have grown too large")
            raise DivergedError(
                f"the model's weights or scores became NaN or infinite after {start:,} characters; use a lower --dynamic-rate"
            )
        with torch.no_grad():
            torch._foreach_add_(weights, gradients, alpha=-rate)
        unknown += int((ids[1:] == unknown_id).sum()) if unknown_id is not None else 0
        if progress is not None:
            progress(min(start + segment, targets), targets)
    return Score(total, targets, unknown)
