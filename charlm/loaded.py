"""Opens a trained model from a run's name, folder or file, for sampling and evaluation.

:func:`load` and :class:`Model` are public (``charlm.load``, ``charlm.Model``), and the commands use them too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from charlm import checkpoint as checkpoints
from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.data.dataset import Text, text_in_memory
from charlm.data.encoding import preprocess
from charlm.data.records import RecordForm
from charlm.data.symbols import Symbols
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CorpusError, UsageError
from charlm.evaluation import perplexity
from charlm.evaluation.attention import attention_weights
from charlm.evaluation.context import Context, context
from charlm.evaluation.gates import GateReport, gates
from charlm.evaluation.gradients import DISTANCE, Gradients, gradients
from charlm.evaluation.hidden_states import HiddenStates, hidden_states
from charlm.evaluation.influence import Influence, influence
from charlm.evaluation.perplexity import Score
from charlm.evaluation.probes import Probes, probes
from charlm.evaluation.samples import Novelty, novelty
from charlm.evaluation.surprisal import Surprisal, surprisal
from charlm.evaluation.texts import training_corpus
from charlm.evaluation.units import Units, units
from charlm.model.engines import ENGINES, resolve_engine
from charlm.model.language_model import LanguageModel
from charlm.runtime import prepare, resolve_device
from charlm.sampling import SamplingParams, generate, next_characters

Unknown = Literal["error", "skip", "map"]
"""Treatment of characters outside a vocabulary: refused, left out, or read as ``<unk>``."""


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model; made by :func:`load`. Using it never changes it.

    Attributes:
        path: the checkpoint's file.
        checkpoint: its content.
        network: the weights, on ``device``.
        device: the device of the computations.
    """

    path: Path
    checkpoint: Checkpoint = field(repr=False)
    network: LanguageModel = field(repr=False)
    device: torch.device

    @property
    def recipe(self) -> Recipe:
        """The recipe of its training."""
        return self.checkpoint.recipe

    @property
    def vocabulary(self) -> Vocabulary:
        """Its symbols."""
        return self.checkpoint.vocabulary

    @property
    def step(self) -> int:
        """The number of optimizer steps behind these weights."""
        return int(self.checkpoint.progress["step"])

    @property
    def engine(self) -> str:
        """The name of the engine that executes it: ``native``, ``torch`` or ``reference``."""
        return self.network.engine.name

    def sample(
        self,
        prompt: str = "",
        length: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        *,
        unknown: Unknown = "error",
    ) -> str:
        """Continue a prompt; the same seed and options give the same text on every engine and in ``charlm sample``.

        Args:
            prompt: text to continue; empty: a line end. A model of records begins a record with it.
            length: number of new characters (bytes, with ``data.unit: byte``); a record may end earlier.
            temperature: below 1: safer; above 1: more random; 0: always the most likely character.
            top_k: draw only from the k most likely characters; 0: all.
            top_p: draw only from the most likely characters that together reach this probability.
            seed: ``None``: random.
            unknown: treatment of prompt characters outside the vocabulary.

        Returns:
            The new characters only.

        Raises:
            UsageError: an option is out of range, or the prompt has unknown characters.
        """
        if length < 0:
            raise UsageError(f"{length}: expected 0 or more", parameter="length")
        params = SamplingParams(temperature, top_k, top_p)
        ids = self._prompt(prompt, unknown)
        seed = secrets.randbelow(2**31) if seed is None else seed
        return self.vocabulary.decode(islice(generate(self.network, self.vocabulary, ids, params, seed), length))

    def perplexity(self, text: str) -> Score:
        """Score every character but the first, each given all before it: the exact result of ``charlm eval perplexity``.

        A model of records scores each record of the text, with the separator after it, from a zero state.

        Args:
            text: read as the recipe reads its corpus (see :meth:`as_read`); unknown characters are scored as ``<unk>``.

        Raises:
            CorpusError: the text has fewer than two characters.
        """
        read = self._text(text)
        if len(read) < 2:
            raise CorpusError(f"the text has {len(read)} characters; expected at least two, since the first is not scored")
        return perplexity.carried(self.network, read, unknown_id=self.vocabulary.unknown_id)

    def next_characters(self, prompt: str, *, unknown: Unknown = "error") -> dict[str, float]:
        """The probability of each symbol to follow a prompt, in descending order.

        ``<unk>`` is one of the symbols. Bytes that are not printable ASCII are named ``\\xNN``.

        Raises:
            UsageError: the prompt has unknown characters.
        """
        return next_characters(self.network, self.vocabulary, self._prompt(prompt, unknown))

    def hidden_states(self, text: str, which: str = "h") -> HiddenStates:
        """The state of every layer after each character, from a zero state.

        Args:
            text: N characters, read as the recipe reads its corpus; unknown characters are read as ``<unk>``.
            which: ``h``, the output of each layer; or ``c``, the cell state of an LSTM, which is computed step by step.

        Returns:
            ``(N, layers, hidden)`` in fp32.

        Raises:
            UsageError: the cell has no such state.
        """
        return hidden_states(self.network, self._text(text), which)

    def attention(self, text: str) -> npt.NDArray[np.float64]:
        """The attention weights at the end of a text of N characters, for a model with ``model.attention``.

        Returns:
            ``(N − 1,)``, oldest first. 1 − their sum is the weight of attending to nothing.

        Raises:
            UsageError: the model has no attention, the text has fewer than two characters, or the model was trained on records.
        """
        if self.record_form is not None:
            raise UsageError("attention weights are shown for models of one stream; this one was trained with data.records")
        return attention_weights(self.network, self.vocabulary.encode(self.as_read(text), "map"))

    def gradients(self, text: str, *, distance: int = DISTANCE) -> Gradients:
        """How far back losses reach: norms of ∂L_t/∂h_{t−k}, and ∂L_t/∂c_{t−k} of an LSTM, for k up to ``distance``.

        Args:
            text: is read as the recipe reads its corpus; unknown characters are read as ``<unk>``.

        Raises:
            CorpusError: the text has fewer than three characters.
        """
        return gradients(self.network, self._text(text), distance=distance)

    def gates(self, text: str) -> GateReport:
        """What the gates do while the model reads a text, and how much its state changes per step.

        Args:
            text: is read as the recipe reads its corpus; unknown characters are read as ``<unk>``.

        Raises:
            CorpusError: the text has fewer than two characters.
        """
        return gates(self.network, self._text(text))

    def surprisal(self, text: str, alternatives: int = 5) -> Surprisal:
        """−ln p of every character but the first, and what the model expected instead.

        Args:
            text: N characters, read as the recipe reads its corpus; unknown characters are scored as ``<unk>``.
            alternatives: k, the likeliest other symbols at each place.

        Returns:
            ``nats (N − 1,)``; ``alternatives`` and ``probabilities (N − 1, k)``. ``vocabulary.shown(id)`` names a symbol.

        Raises:
            CorpusError: the text has fewer than two characters.
        """
        return surprisal(self.network, self._text(text), alternatives=alternatives)

    def influence(
        self, text: str, position: int = -1, *, count: int = 1, distance: int = 100, replacements: int | None = None
    ) -> Influence:
        """Which past characters a prediction depends on: :mod:`charlm.evaluation.influence` defines the measures.

        Args:
            text: N characters, read as the recipe reads its corpus; unknown characters are read as ``<unk>``.
            position: index of the last character to explain.
            count: how many characters to explain.
            distance: how far back characters are tried.
            replacements: how many other symbols are tried for each; ``None``: all if there are at most 100, else 32.

        Raises:
            CorpusError: the text has fewer than two characters.
            UsageError: there is no such position, or nothing before it.
        """
        return influence(
            self.network, self._text(text), position, count=count, distance=distance, replacements=replacements,
            unknown_id=self.vocabulary.unknown_id,
        )  # fmt: skip

    def context(self, text: str, positions: int = 512) -> Context:
        """How far back the predictions depend on a text: :mod:`charlm.evaluation.context` defines the measures.

        Args:
            text: is read as the recipe reads its corpus; 1,456 characters or more allow all distances.
            positions: how many characters are scored, at most; fewer than 256 give no effective context.

        Raises:
            CorpusError: the text has fewer than two characters.
        """
        return context(self.network, self._text(text), positions=positions)

    def novelty(self, samples: Sequence[str], heldout: str | None = None) -> Novelty:
        """How much of some samples is copied from the training text, and whether they are well formed.

        Args:
            samples: such as :meth:`sample` writes.
            heldout: a text to compare with, read as the recipe reads its corpus; pieces of it get the same numbers.

        Raises:
            UsageError: the training text is not found, or the samples are empty or too long.
        """
        unit = self.vocabulary.unit
        corpus = training_corpus(self.checkpoint, self.path)
        training = corpus.encoded.symbols(*corpus.splits["train"])
        pieces = [Symbols.of_text(sample, unit) for sample in samples]
        other = None if heldout is None else Symbols.of_text(self.as_read(heldout), unit)
        return novelty([piece.read(0, len(piece)) for piece in pieces], training, other, unit)

    def probes(self, text: str) -> Probes:
        """Accuracy against distance in long-range tests: agreement, and closing of what the text opens.

        Args:
            text: read as the recipe reads its corpus. See :func:`charlm.evaluation.probes.probes`.
        """
        symbols = Symbols.of_text(self.as_read(text), self.vocabulary.unit)
        return probes(self.network, self.vocabulary, self._text(text), symbols)

    def units(self, text: str) -> Units:
        """The hidden unit that tracks each feature of a text best, such as quotes or indentation.

        Args:
            text: read as the recipe reads its corpus. See :func:`charlm.evaluation.units.units`.

        Raises:
            CorpusError: no feature occurs often enough.
        """
        return units(self.network, self._text(text), Symbols.of_text(self.as_read(text), self.vocabulary.unit))

    @property
    def record_form(self) -> RecordForm | None:
        """How the corpus contains records; ``None``: it is one stream."""
        return RecordForm.of(self.recipe.data.records, self.recipe.data.unit)

    def as_read(self, text: str) -> str:
        """A text as the recipe reads its corpus: ``data.newlines``, ``data.normalise`` and ``data.records``."""
        data, form = self.recipe.data, self.checkpoint.corpus["normalise"]
        return preprocess(text, unit=data.unit, newlines=data.newlines, normalise=form, records=data.records)

    def as_prompt(self, text: str) -> str:
        """A prompt as the model reads it: ``data.newlines`` applies, but it is not normalised.

        Raises:
            UsageError: it contains the separator of records.
        """
        form = self.record_form
        if form is not None and form.literal is not None and form.literal in text:
            raise UsageError(
                f"contains {form.literal!r}, which separates records; a prompt begins one record", parameter="prompt"
            )
        return preprocess(text, unit=self.recipe.data.unit, newlines=self.recipe.data.newlines, normalise="none")

    def _text(self, text: str) -> Text:
        return text_in_memory(self.as_read(text), self.vocabulary)

    def _prompt(self, prompt: str, unknown: Unknown) -> list[int]:
        try:
            return self.vocabulary.encode(self.as_prompt(prompt), unknown)
        except UsageError as error:
            raise UsageError(f"{error}; unknown='skip' leaves them out, unknown='map' reads them as <unk>") from None


def load(checkpoint: str | os.PathLike[str], device: str | torch.device = "auto", *, engine: str = "auto") -> Model:
    """Open a trained model.

    Args:
        checkpoint: a file, a run's folder (best weights), or the name of a run under ``checkpoints/``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        engine: ``native``, ``torch`` or ``reference``; ``auto``: the fastest here. All give the same results.

    Raises:
        UsageError: no such checkpoint, device or engine, or an engine that cannot run the model here.
        CheckpointError: the file is damaged, or was not written by charlm.
    """
    if engine != "auto" and engine not in ENGINES:
        raise UsageError(f"{engine}: expected auto, {' or '.join(ENGINES)}", parameter="engine")
    path = checkpoints.find_checkpoint(os.fspath(checkpoint))
    stored = checkpoints.load(path)
    prepare(None)
    on = resolve_device(str(device))
    name, _ = resolve_engine(stored.recipe.model.model_copy(update={"engine": engine}), on)
    return Model(path, stored, stored.model(on, name), on)


def info(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint without its weights: the keys of ``charlm info --json``.

    Args:
        checkpoint: see :func:`load`.

    Raises:
        UsageError: no such checkpoint.
        CheckpointError: the file is damaged, or was not written by charlm.
    """
    path = checkpoints.find_checkpoint(os.fspath(checkpoint))
    return {"checkpoint": str(path), **checkpoints.describe(path)}
