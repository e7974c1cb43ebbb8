"""The result of a run: the exact evaluation of the weights that it reports, and its final record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.config import EvaluateSection, Recipe
from charlm.data.dataset import Dataset, Text
from charlm.evaluation import perplexity
from charlm.evaluation.perplexity import Score
from charlm.model.language_model import LanguageModel
from charlm.progress import Progress
from charlm.training.progress import TrainingProgress
from charlm.training.resolve import Resolved


class _TimeOverError(Exception):
    """Ends an evaluation because the time limit is reached; what it has read so far counts."""


@dataclass(frozen=True)
class Exact:
    """An exact evaluation.

    Attributes:
        score: of the beginning of the validation text, or of all of it.
        same_nats: nats per character of those characters alone that the quick validation scores; ``None`` if it did not
            reach all of them.
    """

    score: Score
    same_nats: float | None


def exact_score(
    model: LanguageModel,
    validation: Text,
    section: EvaluateSection,
    unknown_id: int | None,
    limit: int,
    deadline: float,
    check: Callable[[], None],
    progress: Progress | None,
) -> Exact:
    """Evaluate the weights that a run reports, with the state carried through the text.

    Args:
        section: which characters the quick validation scores.
        unknown_id: of ``<unk>``, if the vocabulary has one.
        limit: how many characters to score at most.
        deadline: when to end, on ``time.monotonic``'s clock; at least one chunk is scored.
        check: is called after every chunk; what it raises ends the evaluation.
        progress: is told how many characters are done.
    """
    scored = 0

    def chunk_done(done: int, total: int | None) -> None:
        nonlocal scored
        scored = done
        check()
        if time.monotonic() > deadline and 0 < done < len(each):
            raise _TimeOverError
        if progress is not None:
            progress(done, total)

    text = validation[slice(0, limit + 1)]
    each = np.empty(len(text) - 1)
    chunk_done(0, len(each))
    try:
        score = perplexity.carried(model, text, unknown_id=unknown_id, progress=chunk_done, each=each)
    except _TimeOverError:
        unknown = int((text.ids(1, scored + 1) == unknown_id).sum()) if unknown_id is not None else 0
        score = Score(float(each[:scored].sum()), scored, unknown)
    starts, lengths = _quick_parts(validation, section)
    if starts[-1] + lengths[-1] > scored:
        return Exact(score, None)
    same = [each[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    return Exact(score, float(np.concatenate(same).mean()))


def _quick_parts(text: Text, section: EvaluateSection) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return perplexity.quick_parts(text, pieces=section.segments, warm=section.warm, characters=section.characters)


def final_record(
    reason: str,
    exact: Exact | None,
    *,
    progress: TrainingProgress,
    recipe: Recipe,
    dataset: Dataset,
    validation_length: int,
    resolved: Resolved,
    parameters: int,
    started_at: float,
    checkpoint: str,
    streams: Sequence[range],
) -> dict[str, Any]:
    """The keys of ``charlm train --json``.

    Args:
        reason: why the run stopped.
        exact: ``None`` without validation text, or if a stop was requested: then the quick validation is the result.
        validation_length: how many characters of the validation text can be scored; 0 without one.
        parameters: of the model.
        started_at: when the process started, on ``time.monotonic``'s clock.
        checkpoint: the file of the weights that the run reports.
        streams: of each process.
    """
    train_nats, best, has_validation = progress.train_nats, progress.reported_best, validation_length > 0
    quick_characters = int(_quick_parts(dataset.text("validation"), recipe.evaluate)[1].sum()) if has_validation else 0
    exactly, quickly = ("carried", "segments") if recipe.data.records is None else ("records", "spread records")
    if exact is not None:
        nats, characters = exact.score.nats_per_character, exact.score.characters
    elif best.nats is not None:
        nats, characters = best.nats, quick_characters
    elif progress.validation_nats is not None:
        nats, characters = progress.validation_nats, quick_characters
    else:
        nats, characters = train_nats, progress.recent_characters
    return {
        "perplexity": perplexity.perplexity(nats),
        "nats_per_character": nats,
        "bits_per_character": nats / math.log(2),
        "measured_on": "validation" if has_validation else "training",
        "context": exactly if exact is not None else quickly if has_validation else "training",
        "characters": characters,
        "unknown_characters": exact.score.unknown_characters if exact is not None else None,
        "characters_per_second": progress.mean_speed,
        "step": progress.step,
        "epoch": progress.epochs_done,
        "train_nats": train_nats,
        "train_perplexity": perplexity.perplexity(train_nats),
        "validation_nats": progress.validation_nats,
        "best_validation_nats": progress.validation_nats if best.nats is None else best.nats,
        "best_step": best.step,
        "best_averaged": best.averaged,
        "schedule_best_step": progress.best.step,
        "validation_characters": quick_characters,
        "validation_length": validation_length,
        "exact_nats_of_validation_characters": exact.same_nats if exact is not None else None,
        "training_characters": progress.characters,
        "training_seconds": progress.seconds,
        "seconds": time.monotonic() - started_at,
        "resumed_from": progress.resumed_from,
        "device": str(resolved.device),
        "engine": resolved.engine,
        "precision": resolved.precision,
        "threads": resolved.threads,
        "processes": len(streams),
        "streams": [[share.start, share.stop] for share in streams],
        "seed": recipe.train.seed,
        "parameters": parameters,
        "corpus": dataset.fingerprint(),
        "checkpoint": checkpoint,
        "stopped_because": reason,
    }
