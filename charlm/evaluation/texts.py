"""The text that a question is asked about: a file, or a part of the corpus that the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from charlm.checkpoint import Checkpoint
from charlm.data.dataset import Dataset, Text, open_text
from charlm.data.encoded import Encoded
from charlm.data.recorded import open_recorded
from charlm.data.symbols import Symbols
from charlm.data.verification import TextMismatchError
from charlm.errors import Advice, CharlmError, CorpusError, UsageError


@dataclass(frozen=True)
class EvaluationText:
    """A text as a model reads it.

    Attributes:
        text: N symbols, as ids of the model's vocabulary.
        name: of the file or the corpus.
        split: which part of the corpus; ``None``: a file, read whole.
        offsets: of its first symbol and after its last, in the file or the corpus.
        encoded: the whole file or corpus.
        corpus: that the text is a part of.
    """

    text: Text = field(repr=False)
    name: str
    split: str | None
    offsets: tuple[int, int]
    encoded: Encoded = field(repr=False)
    corpus: Dataset | None = field(repr=False, default=None)

    def describe(self) -> dict[str, Any]:
        """What identifies the text: the keys ``text``, ``sha256``, ``offsets`` and ``split`` of ``--json``."""
        return {"text": self.name, "sha256": self.encoded.sha256, "offsets": list(self.offsets), "split": self.split}

    @property
    def symbols(self) -> Symbols:
        """Its N symbols, as code points or byte values."""
        return self.encoded.symbols(*self.offsets)


def read_file(checkpoint: Checkpoint, file: str) -> EvaluationText:
    """Read a file as the model read its corpus.

    Args:
        file: a path; ``-``: standard input.

    Raises:
        UsageError: there is no such file.
        CorpusError: it cannot be read, or has fewer than two characters.
    """
    text, encoded = open_text(file, checkpoint.recipe.data, checkpoint.corpus["normalise"], checkpoint.vocabulary)
    name = "standard input" if file == "-" else Path(file).name
    return EvaluationText(text, name, None, (0, encoded.characters), encoded)


def read_part(checkpoint: Checkpoint, path: Path, split: str) -> EvaluationText:
    """Read a part of the corpus that a model was trained on.

    Args:
        path: the checkpoint's file; the corpus may be named relative to it.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        UsageError: the corpus is not found, or the part has fewer than two characters.
        CorpusError: what is found is another text.
    """
    corpus = _corpus(checkpoint, path, {"name a FILE to evaluate on": {}})
    start, stop = corpus.splits[split]
    if stop - start < 2:
        scorable = [name for name, (start, stop) in corpus.splits.items() if stop - start >= 2]
        raise UsageError(
            f"the {split} part of {corpus.name} is too short to score ({stop - start} characters, at least 2 are needed)",
            advice={f"choose the {name} part": {"split": name} for name in scorable},
        )
    return EvaluationText(corpus.text(split), corpus.name, split, (start, stop), corpus.encoded, corpus)


def training_corpus(checkpoint: Checkpoint, path: Path, parameter: str = "") -> Dataset:
    """The corpus that a model was trained on, where a question compares with it.

    Args:
        path: as of :func:`read_part`.
        parameter: the argument that asks for the comparison, such as ``baselines``, for the message.

    Raises:
        UsageError: it is not found, or is another text.
    """
    advice: Advice = {"supply it": {}, "leave this argument out": {}} if parameter else {"supply it": {}}
    try:
        return _corpus(checkpoint, path, advice)
    except CharlmError as error:
        needs = "needs the training text" if parameter else "the comparison needs the training text"
        raise UsageError(f"{needs}: {error.message}", parameter=parameter, advice=error.advice) from None


def _corpus(checkpoint: Checkpoint, path: Path, advice: Advice) -> Dataset:
    """Used only if it is the same to the byte."""
    try:
        return open_recorded(checkpoint.recipe, checkpoint.corpus, checkpoint.vocabulary, path)
    except UsageError as error:
        raise UsageError(f"the text this model was trained on is not available ({error})", advice=advice) from None
    except TextMismatchError as error:
        raise CorpusError(str(error), advice=advice) from None
