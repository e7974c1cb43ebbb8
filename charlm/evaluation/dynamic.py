"""Dynamic evaluation: the model is trained on the text after scoring it, segment by segment (Krause et al. 2018).

A text repeats its own names, words and habits. After each segment of n characters is scored, a copy of the model takes one
step of gradient descent on it, W ← W − rate·∂(mean nats of the segment)/∂W, and then scores the next segment. Every
character is still predicted only from those before it, as in the exact result. But the question differs (how well does this
model *learn*?), so the result is reported separately and never compared with static ones.
"""

from __future__ import annotations

import copy
import math

import torch

from charlm.data.dataset import Text
from charlm.errors import DivergedError
from charlm.evaluation.perplexity import Score
from charlm.model.gradients import Backpropagation
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.threads import Tuner

SEGMENT = 32
"""Characters between two updates."""

RATE = 0.1
"""The learning rate; results hardly change from 0.05 to 0.15 (docs/results.md)."""


def dynamic(
    model: LanguageModel,
    text: Text,
    *,
    segment: int = SEGMENT,
    rate: float = RATE,
    unknown_id: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score every character but the first, each given all before it, and train a copy of the model meanwhile.

    Args:
        text: N characters; N − 1 are scored.
        segment: n, characters between two updates.
        rate: learning rate of plain gradient descent; 0 gives the exact, static result.
        unknown_id: the id to count as unknown.

    Raises:
        UsageError: the text has several records.
        DivergedError: the rate is too high, so that weights became NaN or infinite.
    """
    text.require_one_stream()
    learner = copy.deepcopy(model)
    learner.flatten_for_cudnn()
    backpropagate = Backpropagation(learner, "fp32")
    fused = learner.engine.fused_optimizer(torch.optim.SGD(backpropagate.weights, lr=1.0))
    targets = len(text) - 1
    total, unknown = 0.0, 0
    state = learner.zero_state(1)
    tuner = Tuner("dynamic evaluation", model.is_thread_invariant)
    for start in range(0, targets, segment):
        ids = torch.from_numpy(text.ids(start, min(start + segment, targets) + 1)).to(state[0].device)
        with tuner.piece(len(ids)):
            nats, state = backpropagate(ids[:-1, None], ids[1:, None], 1 / (len(ids) - 1), state)
        total += nats
        if not math.isfinite(total):
            if start == 0:
                raise DivergedError("the model's logits are NaN or infinite: its weights have become too large")
            raise DivergedError(
                f"the model's weights or logits became NaN or infinite after {start:,} characters; "
                f"use a learning rate below {rate:g}"
            )
        if fused is not None:
            fused.step(rate)
        else:
            with torch.no_grad():
                torch._foreach_add_(backpropagate.weights, backpropagate.gradient.parts, alpha=-rate)
        unknown += int((ids[1:] == unknown_id).sum()) if unknown_id is not None else 0
        if progress is not None:
            progress(min(start + segment, targets), targets)
    return Score(total, targets, unknown)
