"""The state of every layer after every character of a text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from charlm.data.dataset import Text
from charlm.errors import DivergedError, UsageError
from charlm.evaluation.limits import CHUNK
from charlm.model.language_model import LanguageModel
from charlm.threads import Tuner

HiddenStates = npt.NDArray[np.float32]


def hidden_states(model: LanguageModel, text: Text, which: str = "h") -> HiddenStates:
    """Read a text from a zero state, and return one part of the state after each character.

    Besides the result, this needs memory for one chunk of the text.

    Args:
        text: N characters.
        which: ``h``, the output; or ``c``, the cell state of an LSTM. Engines return ``c`` only after the last step, so it is
            computed one step per call, which is slower.

    Returns:
        ``(N, L, H)`` in fp32.

    Raises:
        UsageError: the cell has no such state; or the text has several records.
        DivergedError: the states are NaN or infinite.
    """
    text.require_one_stream()
    names = model.layers[0].entry.state
    if which not in names:
        raise UsageError(
            f"{which!r}: expected {' or '.join(names)}, the state of the cell {model.section.cell}", parameter="which"
        )
    result = np.empty((len(text), model.section.layers, model.section.hidden), dtype=np.float32)
    is_output = which == names[0]
    if not is_output:
        model = model.for_single_steps()
    tuner = Tuner("evaluation", model.is_thread_invariant)
    with torch.inference_mode():
        state = model.zero_state(1)
        for start in range(0, len(text), CHUNK):
            ids = torch.from_numpy(text.ids(start, start + CHUNK)).to(state[0].device)[:, None]
            with tuner.piece(len(ids)):
                if is_output:
                    outputs, state = model.layer_outputs(ids, state)
                    part = outputs[:, :, 0]
                else:
                    steps = []
                    for step in ids.unbind(0):
                        _, state = model.layer_outputs(step[None], state)
                        steps.append(state[names.index(which)][:, 0])
                    part = torch.stack(steps)
            if not bool(torch.isfinite(part).all()):
                raise DivergedError("the model's states are NaN or infinite: its weights have become too large")
            result[start : start + len(ids)] = part.float().cpu().numpy()
    return result
