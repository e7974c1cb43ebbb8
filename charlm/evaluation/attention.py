"""Where a model with attention looks: the weights that its last step gives to the steps before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from charlm.errors import DivergedError, UsageError
from charlm.model.language_model import LanguageModel


def attention_weights(model: LanguageModel, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Read a text, and say how much its last step looks at each step before it.

    Args:
        ids: N of them.

    Returns:
        ``(N − 1,)``, oldest first; steps further back than the window get 0. What is missing from a sum of 1 looks at nothing.

    Raises:
        DivergedError: the weights are not finite.
        UsageError: the model has no attention, or there is nothing before the last step.
    """
    if model.attention is None:
        raise UsageError("this model has no attention; train one with --set model.attention=256")
    if len(ids) < 2:
        raise UsageError("attention looks back; give a text of two characters or more")
    weights = np.zeros(len(ids) - 1)
    with torch.inference_mode():
        text = torch.tensor(ids, device=model.output_bias.device)[:, None]
        found = model.attention_weights(text, model.zero_state(1))[0].double().cpu().numpy()
    if not np.isfinite(found).all():
        raise DivergedError("the model's attention weights are NaN or infinite: its weights have grown too large")
    seen = min(len(found), len(weights))
    weights[len(weights) - seen :] = found[len(found) - seen :]
    return weights
