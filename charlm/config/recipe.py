"""The recipe, and its sections about the events of a run: evaluation, checkpoints, samples, the reported result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from charlm.config.data import DataSection
from charlm.config.model import ModelSection
from charlm.config.train import TrainSection
from charlm.config.values import FIXED, MAX_CHARACTERS_READ, MAX_TEMPERATURE, PathText, Section, Steps, check_temperature


class EvaluateSection(Section):
    """Validation during training, on a part of the text; `charlm eval perplexity` is exact."""

    every: Steps | None = None
    """Optimizer steps between evaluations. Unset: a tenth of the planned length."""
    segments: Annotated[int, Field(ge=1, le=100_000)] = 32
    """Segments S of the text, which are read in parallel."""
    warm: Annotated[int, Field(ge=0, le=MAX_CHARACTERS_READ)] = 1000
    """Characters W before each segment that are read but not scored, to warm up the state."""
    characters: Annotated[int | None, Field(ge=1, le=MAX_CHARACTERS_READ)] = 1_000_000
    """Maximum number of characters scored per evaluation, spread evenly over the validation text; null: all."""
    patience: Steps | None = None
    """Early stopping: evaluations without a new best. Unset: no early stopping."""


class CheckpointSection(Section):
    """When the run is saved."""

    every: Steps | None = None
    """Optimizer steps between writes of `last.safetensors`. Unset: at each evaluation."""
    keep_every: Steps | None = None
    """Optimizer steps between extra checkpoints `step-N.safetensors`. Unset: no extra checkpoints."""


class SampleSection(Section):
    """Texts that the model writes during training."""

    every: Steps | None = None
    """Optimizer steps between samples in `samples.txt`. Unset: at each evaluation."""
    prompt: str | list[str] = ""
    """Text to continue; a list gives one sample per prompt."""
    length: Annotated[int, Field(ge=1, le=10_000_000)] = 200
    """New characters of each sample."""
    temperature: Annotated[
        float, AfterValidator(check_temperature), Field(json_schema_extra={"minimum": 0, "maximum": MAX_TEMPERATURE})
    ] = 0.8
    """Divides the logits; 0: always the likeliest character."""

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ReportedSection(Section):
    """The result that the author of this recipe measured; a run is compared with it at its end."""

    metric: Literal["train_perplexity", "validation_perplexity", "validation_nats", "validation_bits_per_character"]
    """The metric of the result."""
    value: Annotated[float, Field(ge=1e-6, le=1e12)]
    """Its value."""
    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """How long the whole run took, in minutes. Unset: unknown."""
    note: str = ""
    """Machine, protocol, results to compare with."""


class Recipe(Section):
    """The configuration of one training run."""

    corpus: Annotated[PathText, Field(json_schema_extra=FIXED)]
    """Name of a corpus card (`shakespeare`), or path of your own file, folder or glob (`./mine.txt`)."""
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    sample: SampleSection = SampleSection()
    reported: ReportedSection | None = None

    @model_validator(mode="after")
    def _records_are_separate(self) -> Recipe:
        records, train = self.data.records, self.train
        separator = {"line": "\n", "file": None}.get(records, records) if records is not None else None
        if separator is not None and any(separator in prompt for prompt in self.sample.prompts):
            raise ValueError(f"sample.prompt contains {separator!r}, which separates records (data.records)")
        if records is not None and (train.batching == "windows" or train.random_offset or train.drop_last):
            raise ValueError(
                "data.records reads every record from its start; remove train.batching, train.random_offset and train.drop_last"
            )
        return self
