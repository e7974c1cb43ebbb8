"""The attention weights of the last step of a text over the steps before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from charlm.errors import DivergedError, UsageError
from charlm.model.language_model import LanguageModel


def attention_weights(model: LanguageModel, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Read a text, and return the attention weights of its last step.

    Args:
        ids: N ids.

    Returns:
        ``(N − 1,)``, oldest first; 0 beyond the window. 1 − their sum is the weight of attending to nothing.

    Raises:
        DivergedError: the weights are not finite.
        UsageError: the model has no attention, or the text has fewer than two characters.
    """
    if model.attention is None:
        raise UsageError("this model has no attention; train one with model.attention: 256")
    if len(ids) < 2:
        raise UsageError("the text is too short for attention; expected two or more characters")
    weights = np.zeros(len(ids) - 1)
    with torch.inference_mode():
        text = torch.tensor(ids, device=model.output_bias.device)[:, None]
        found = model.attention_weights(text, model.zero_state(1))[0].double().cpu().numpy()
    if not np.isfinite(found).all():
        raise DivergedError("the model's attention weights are NaN or infinite: its weights have become too large")
    seen = min(len(found), len(weights))
    weights[len(weights) - seen :] = found[len(found) - seen :]
    return weights
