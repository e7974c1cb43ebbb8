"""The state of a model at some places of a text, carried from the text's first character."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charlm.data.dataset import Text
from charlm.evaluation.limits import CHUNK
from charlm.model.cells import State
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.threads import Tuner


def states_before(model: LanguageModel, text: Text, places: Sequence[int], progress: Progress | None = None) -> State:
    """Read a text once with the model's own engine, and keep the state before each of P places.

    Args:
        places: ascending; 0 is the first character, before which the state is zero.
        progress: is told the characters read.

    Returns:
        A state of P streams; see :meth:`LanguageModel.zero_state`.
    """
    tuner = Tuner("evaluation", model.is_thread_invariant)
    kept: list[State] = []
    at = 0
    with torch.no_grad():
        state = model.zero_state(1)
        for place in places:
            while at < place:
                ids = torch.from_numpy(text.ids(at, min(at + CHUNK, place))).to(state[0].device)
                with tuner.piece(len(ids)):
                    _, state = model.features(ids[:, None], state)
                at += len(ids)
                if progress is not None:
                    progress(at, places[-1])
            kept.append(state)
    return tuple(torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))
