"""The section ``train`` of a recipe. Optimizers and schedules come from their tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from charlm.config.values import FIXED, MAX_SEED, MAX_STEPS, MAX_THREADS, Probability, Seconds, Section, Steps
from charlm.optimizers import OPTIMIZERS
from charlm.schedules import SCHEDULES

if TYPE_CHECKING:
    OptimizerName = str
    ScheduleName = str
else:  # one of the tables' names
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    ScheduleName = Literal[tuple(SCHEDULES)]


def _listed(names: Iterable[str]) -> str:
    """``a``, ``a and b``, or ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _used_by(key: str) -> str:
    """The optimizers or schedules that use a key."""
    return _listed(name for table in (OPTIMIZERS, SCHEDULES) for name, entry in table.items() if key in entry.keys)


class TrainSection(Section):
    """How the weights are trained."""

    batch: Annotated[int, Field(ge=1, le=1_000_000, json_schema_extra=FIXED)] = 32
    """Batch size: parallel streams B."""
    accumulate: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Parts of the batch whose gradients are computed one after the other and summed: 4 parts need about a quarter of the
    memory for activations, and give the same result up to rounding."""
    seq_length: Annotated[int, Field(ge=1, le=1_000_000, json_schema_extra=FIXED)] = 64
    """Time steps T of truncated backpropagation through time."""
    batching: Annotated[Literal["streams", "windows"], Field(json_schema_extra=FIXED)] = "streams"
    """`streams`: B contiguous streams with carried state; `windows`: B random windows from a zero state."""
    random_offset: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Skip a random 0 to T−1 characters at the start of each epoch (d2l)."""
    drop_last: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Skip the last, shorter batch of each epoch (d2l)."""
    optimizer: Annotated[OptimizerName, Field(json_schema_extra=FIXED)] = "adamw"
    """The update rule."""
    lr: Annotated[float, Field(gt=0, le=1e6)] = 2e-3
    """Peak learning rate."""
    momentum: Annotated[
        float, Field(ge=0, lt=1, json_schema_extra=FIXED, description=f"Momentum ({_used_by('momentum')}).")
    ] = 0.0
    betas: Annotated[
        list[Probability],
        Field(min_length=2, max_length=2, description=f"Decay rates of Adam's two moments ({_used_by('betas')})."),
    ] = Field(default=[0.9, 0.99])
    weight_decay: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="Weight decay of the matrices, not of the biases; decoupled in "
            f"{_listed(name for name, entry in OPTIMIZERS.items() if entry.decoupled)}.",
        ),
    ] = 0.0
    clip: Annotated[float | None, Field(gt=0, le=1e12)] = 1.0
    """Maximum norm of the whole gradient; null: no clipping."""
    schedule: ScheduleName = "cosine"
    """Learning-rate schedule over the planned length."""
    warmup: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Optimizer steps of linear warm-up."""
    lr_final: Annotated[float, Field(ge=0, le=1, description=f"Final learning rate ÷ peak ({_used_by('lr_final')}).")] = 0.01
    decay_ratio: Annotated[
        float,
        Field(ge=1e-6, le=1, description=f"Decay steps ÷ all steps after the warm-up ({_used_by('decay_ratio')})."),
    ] = 0.2
    gamma: Annotated[float, Field(gt=0, le=1, description=f"Factor on the learning rate ({_used_by('gamma')}).")] = 0.95
    gamma_every: Annotated[
        float, Field(ge=1e-6, le=1e9, description=f"Epochs per factor `gamma` ({_used_by('gamma_every')}).")
    ] = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a moving average of the weights (0.999: about a thousand steps; 0: no average). The average is
    validated too, and becomes `best` if it is better than the weights."""
    epochs: Annotated[float | None, Field(gt=0, le=1_000_000)] = None
    """Planned length in epochs. A schedule that needs no length (such as `constant`) can be limited by `time` alone. Unset:
    given by `total_steps`, or planned from the length of the text."""
    total_steps: Steps | None = None
    """Planned length in optimizer steps. Unset: given by `epochs`."""
    time: Seconds | None = None
    """Time limit (`90s`, `10m`), final evaluation included. If `epochs` or `total_steps` gives the length, the limit does not
    change the schedule. Otherwise the length of a schedule such as `cosine` is planned to fit the limit. Unset: no limit."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Field(json_schema_extra=FIXED)] = "auto"
    """Precision of matrix products: `auto` is bf16 if the processor has fast bf16 products, else fp32. fp16 needs CUDA."""
    deterministic: bool = False
    """On a GPU, use only algorithms that give the same bits at every repetition, so that resuming is exact; slower. No
    effect on a CPU."""
    threads: Annotated[int | None, Field(ge=1, le=MAX_THREADS)] = None
    """CPU threads. Unset: chosen by the number of cores and the load of the machine."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, json_schema_extra=FIXED)] = 1
    """Determines every random choice."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.epochs is not None and self.total_steps is not None:
            raise ValueError("epochs and total_steps both give the planned length; keep one")
        if self.batching == "windows" and (self.random_offset or self.drop_last):
            raise ValueError("random_offset and drop_last belong to batching: streams")
        return self
