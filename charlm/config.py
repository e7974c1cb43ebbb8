"""The recipe: the schema of a YAML file, its loading, overriding and validation.

A recipe that says only ``corpus: FILE`` is complete. Every field has a sentence; the help, the JSON Schema for editors
and the error messages are made from it. This module knows nothing of torch, of texts or of the terminal.

Each field also says what happens when it changed between two attempts at one run (see :func:`reconcile`):
``fixed`` fields must stay as they were, since another value would be another model or another order of the data; for all
others the newest recipe wins.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from charlm import cells
from charlm.errors import RecipeError, UsageError
from charlm.optimizers import OPTIMIZERS
from charlm.resources import shipped_files
from charlm.schedules import SCHEDULES
from charlm.yaml_text import MAX_CHARACTERS, parse_yaml

# --------------------------------------------------------------------------------------------------------------------
# The schema
# --------------------------------------------------------------------------------------------------------------------

FIXED: dict[str, Any] = {"on_resume": "fixed"}

_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(s|m|h)?\s*$")


def parse_duration(value: object) -> object:
    """Turn ``90``, ``90s``, ``5m`` or ``1.5h`` into seconds; anything else is returned for the schema to refuse.

    Raises:
        ValueError: text that is not a duration.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.match(value)
    if not match:
        raise ValueError(f"expected a duration such as 90s, 5m or 1h, found {value!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def time_limit(given: float | str | None) -> float | None:
    """A limit on time in seconds, given so or as a duration such as ``5m``.

    Raises:
        UsageError: it is no duration, none at all, or longer than :data:`MAX_SECONDS`.
    """
    if given is None:
        return None
    try:
        seconds = float(parse_duration(given))  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"{given}: {error}", parameter="max_time") from None
    if seconds == 0:
        raise UsageError(f"{given}: expected more than no time at all, such as 90s", parameter="max_time")
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"{given}: expected at most {MAX_SECONDS:,.0f} seconds", parameter="max_time")
    return seconds


def _path_text(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"expected a name or a path, found {_shown(text)}")
    return text


def check_temperature(temperature: float) -> float:
    """Refuse a temperature that arithmetic cannot divide by, or that nobody means.

    Raises:
        ValueError: it is neither 0 nor in the range.
    """
    if temperature == 0 or 1e-6 <= temperature <= MAX_TEMPERATURE:  # false for NaN
        return temperature
    raise ValueError(f"expected 0, or 1e-06 to {MAX_TEMPERATURE:g}, found {temperature:g}")


# Every number has an upper bound that no sane use reaches, so that a slip of the finger is a sentence and not an endless run.
MAX_STEPS = 10**12
MAX_CHARACTERS_READ = 10**12
MAX_SECONDS = 1e9
MAX_TEMPERATURE = 1e9
MAX_SEED = 2**63 - 1
MAX_THREADS = 4096
MAX_WIDTH = 1_000_000
MAX_LAYERS = 1000

Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS), BeforeValidator(parse_duration)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
PathText = Annotated[str, AfterValidator(_path_text)]
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


def _read_by(key: str) -> str:
    """The optimizers or schedules that a key belongs to."""
    return _listed(name for table in (OPTIMIZERS, SCHEDULES) for name, entry in table.items() if key in entry.keys)


@dataclass(frozen=True)
class OneOf:
    """The allowed values of a text field, from a table; pydantic treats it as a ``Literal``, which needs them in the source."""

    values: tuple[str, ...]

    def __get_pydantic_core_schema__(self, _source: object, _handler: object) -> CoreSchema:
        return core_schema.literal_schema(list(self.values))


def _option(key: str) -> OneOf:
    return OneOf(tuple(map(str, cells.option_values(key))))


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are strictly typed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SplitFiles(Section):
    """Separate texts for validation and test; the whole corpus is then training text."""

    validation: PathText | None = None
    """File to validate on."""
    test: PathText | None = None
    """File kept for the end."""


Split = Annotated[list[Annotated[float, Field(le=1e15)]] | SplitFiles, Field(union_mode="smart")]


class DataSection(Section):
    """How the text becomes numbers."""

    unit: Annotated[Literal["char", "byte"], Field(json_schema_extra=FIXED)] = "char"
    """What one symbol is: a Unicode code point, or a byte (no unknowns, any file)."""
    encoding: Annotated[str, Field(json_schema_extra=FIXED)] = "utf-8"
    """How the file's bytes are read when `unit` is `char`; strict: a wrong byte is an error that gives its offset."""
    newlines: Annotated[Literal["unix", "keep"], Field(json_schema_extra=FIXED)] = "unix"
    """`unix` reads CRLF and CR as LF and says how many; `keep` leaves them. A byte-order mark is never text."""
    normalise: Annotated[str | None, Field(json_schema_extra=FIXED)] = None
    """A named normalisation: `none`, `d2l-lines`, `d2l-whole`. Unset: what the corpus card says."""
    split: Annotated[Split | None, Field(json_schema_extra=FIXED)] = None
    """Training, validation, test: fractions `[0.9, 0.05, 0.05]`, counts `[10000, 5000, 0]`, or files. Unset: the card's."""
    unknown: Annotated[Literal["map", "error"], Field(json_schema_extra=FIXED)] = "map"
    """Characters outside the vocabulary: read as `<unk>` and counted, or refused."""
    min_count: Annotated[int, Field(ge=1, le=10**9, json_schema_extra=FIXED)] = 1
    """Characters seen less often than this in the training text become `<unk>`."""
    unknown_rate: Annotated[float, Field(ge=0, le=1, json_schema_extra=FIXED)] = 0.1
    """Probability, per epoch, that a character seen once in training is read as `<unk>`, so that `<unk>` is trained."""

    @field_validator("split")
    @classmethod
    def _split_is_possible(cls, split: list[float] | SplitFiles | None) -> list[float] | SplitFiles | None:
        if isinstance(split, list):
            check_split(split)
        return split


def check_split(split: Sequence[float]) -> None:
    """Refuse a split that is neither three fractions (sum at most 1) nor three counts.

    Raises:
        ValueError: says what was expected.
    """
    if len(split) != 3 or any(part < 0 for part in split) or split[0] <= 0:
        raise ValueError("expected three parts, training first and not empty: [0.9, 0.05, 0.05] or [10000, 5000, 0]")
    whole = all(float(part).is_integer() for part in split)
    if not whole and sum(split) > 1 + 1e-9:
        raise ValueError(f"fractions must sum to at most 1, these sum to {sum(split):g}")


class ModelSection(Section):
    """The network: layers of one recurrent cell between an input lookup and an output layer."""

    cell: Annotated[str, OneOf(cells.cell_names()), Field(json_schema_extra=FIXED)] = "lstm"
    """The recurrence."""
    variant: Annotated[
        str,
        _option("variant"),
        Field(description=f"Form of {cells.option_help('variant')}.", json_schema_extra=FIXED),
    ] = "vanilla"
    hidden: Annotated[int, Field(ge=1, le=MAX_WIDTH, json_schema_extra=FIXED)] = 512
    """Hidden units H of each layer."""
    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS, json_schema_extra=FIXED)] = 1
    """Recurrent layers L, one on top of the other."""
    dropout: Probability = 0.3
    """Probability of zeroing a layer's output on its way to the next layer or to the output layer, in training."""
    input_dropout: Probability = 0.0
    """Probability of zeroing each number of the embedding for a whole training step (Gal & Ghahramani 2016)."""
    locked_dropout: bool = False
    """`dropout` zeroes the same units at all steps of a stream (Gal & Ghahramani 2016), not new ones at each step."""
    weight_drop: Probability = 0.0
    """Probability of zeroing each recurrent weight for a whole training step (Wan et al. 2013; Merity et al. 2018)."""
    residual: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Each layer but the first adds its input to its output (He et al. 2016)."""
    attention: Annotated[int, Field(ge=0, le=MAX_WIDTH, json_schema_extra=FIXED)] = 0
    """How many of its own past outputs the last layer can look at, one attention head (Merity 2019); 0: none."""
    engine: Literal["auto", "reference", "torch", "native"] = "auto"
    """What executes the cell: `reference` (readable), `torch` (PyTorch's fused kernels), `native` (ours, CPU), or `auto`."""
    nonlinearity: Annotated[str, _option("nonlinearity"), Field(json_schema_extra=FIXED)] = "tanh"
    """Of `cell: rnn` only."""
    reset_after: Annotated[bool, Field(json_schema_extra=FIXED)] = True
    """Of `cell: gru` only: apply the reset gate after the recurrent product (PyTorch, cuDNN) or before it (Cho et al. 2014)."""
    input: Annotated[Literal["embedding", "one-hot"], Field(json_schema_extra=FIXED)] = "embedding"
    """How a symbol enters: as a learned vector, which learns much faster, or as a one-hot vector (width V)."""
    embedding: Annotated[int | None, Field(ge=1, le=MAX_WIDTH, json_schema_extra=FIXED)] = None
    """Width D of the embedding. Unset: the hidden width."""
    tied: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Use the embedding's matrix in the output layer too (Press & Wolf 2017); needs `embedding` = `hidden`."""
    forget_bias: Annotated[float | None, Field(ge=-1000, le=1000)] = 1.0
    """Initial bias of the LSTM's forget gate (Jozefowicz et al. 2015); null: as `init` leaves it."""
    init: Literal["pytorch", "normal", "orthogonal"] = "pytorch"
    """Initial weights: uniform(±1/√H), normal(0, 0.01) with zero biases (d2l), or orthogonal recurrent matrices."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelSection:
        for key in cells.option_keys():
            owners, is_default = cells.cells_with(key), getattr(self, key) == cells.option_default(key)
            # Recipes and checkpoints of other cells have always been allowed to contain reset_after: false.
            if not is_default and self.cell not in owners and key != "reset_after":
                raise ValueError(f"{key} belongs to cell: {' or '.join(owners)}, not to cell: {self.cell}")
        entry = cells.entry_of(self)
        if self.engine not in ("auto", "reference", *entry.kernels):
            raise ValueError(f"engine: {self.engine} has no {entry.title}; use engine: auto or reference")
        if self.weight_drop and "weight_hh" not in entry.parameters:
            raise ValueError(f"weight_drop drops weights of weight_hh, which the {entry.title} does not have; remove it")
        if self.input == "one-hot" and (self.tied or self.embedding or self.input_dropout):
            raise ValueError("tied, embedding and input_dropout need an embedding; remove input: one-hot")
        if self.tied and self.embedding not in (None, self.hidden):
            raise ValueError(f"tied: true needs embedding = hidden, found {self.embedding} and {self.hidden}")
        return self


class TrainSection(Section):
    """How the weights are found."""

    batch: Annotated[int, Field(ge=1, le=1_000_000, json_schema_extra=FIXED)] = 32
    """Streams B that are read side by side."""
    seq_length: Annotated[int, Field(ge=1, le=1_000_000, json_schema_extra=FIXED)] = 64
    """Time steps T of truncated backpropagation through time."""
    batching: Annotated[Literal["streams", "windows"], Field(json_schema_extra=FIXED)] = "streams"
    """`streams`: B contiguous streams with carried state; `windows`: B random windows from a zero state."""
    random_offset: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Skip a random 0 to T−1 characters at each epoch's start (d2l)."""
    drop_last: Annotated[bool, Field(json_schema_extra=FIXED)] = False
    """Skip each epoch's last, shorter batch (d2l)."""
    optimizer: Annotated[OptimizerName, Field(json_schema_extra=FIXED)] = "adamw"
    """The update rule."""
    lr: Annotated[float, Field(gt=0, le=1e6)] = 2e-3
    """Peak learning rate."""
    momentum: Annotated[
        float, Field(ge=0, lt=1, json_schema_extra=FIXED, description=f"Momentum ({_read_by('momentum')}).")
    ] = 0.0
    betas: Annotated[
        list[Probability],
        Field(min_length=2, max_length=2, description=f"Decay rates of Adam's two moments ({_read_by('betas')})."),
    ] = [0.9, 0.99]
    weight_decay: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="Weight decay of matrices (biases are left alone); decoupled in "
            f"{_listed(name for name, entry in OPTIMIZERS.items() if entry.decoupled)}.",
        ),
    ] = 0.0
    clip: Annotated[float | None, Field(gt=0, le=1e12)] = 1.0
    """Largest norm of the whole gradient; null: no clipping."""
    schedule: ScheduleName = "cosine"
    """How the learning rate moves over the planned length."""
    warmup: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Optimizer steps of linear warm-up."""
    lr_final: Annotated[float, Field(ge=0, le=1, description=f"Final learning rate ÷ peak ({_read_by('lr_final')}).")] = 0.01
    decay_ratio: Annotated[
        float,
        Field(ge=1e-6, le=1, description=f"Share of the steps after the warm-up in the decay ({_read_by('decay_ratio')})."),
    ] = 0.2
    gamma: Annotated[float, Field(gt=0, le=1, description=f"Factor on the learning rate ({_read_by('gamma')}).")] = 0.95
    gamma_every: Annotated[
        float, Field(ge=1e-6, le=1e9, description=f"Epochs per factor `gamma` ({_read_by('gamma_every')}).")
    ] = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a moving average of the weights (0.999: about a thousand steps; 0: none). It is validated too, and is
    the run's `best` when it is better than the weights themselves."""
    epochs: Annotated[float | None, Field(gt=0, le=1_000_000)] = None
    """Planned passes over the training text. Without `total_steps` too, this and more follows from the text's length (guide),
    unless `time` alone ends a schedule that needs no length (such as `constant`)."""
    total_steps: Steps | None = None
    """Planned length in optimizer steps, instead of `epochs`."""
    time: Seconds | None = None
    """Stop after this long (`90s`, `10m`), last evaluation included. Beside `epochs` or `total_steps` it changes no schedule;
    without them it is the budget that the length is planned for, if the schedule needs a length (such as `cosine`)."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Field(json_schema_extra=FIXED)] = "auto"
    """Arithmetic of matrix products: `auto` is bf16 where the processor multiplies it fast, else fp32. fp16: CUDA only."""
    threads: Annotated[int | None, Field(ge=1, le=MAX_THREADS)] = None
    """CPU threads; unset: one per core."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, json_schema_extra=FIXED)] = 1
    """Every random choice follows from this number."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.epochs is not None and self.total_steps is not None:
            raise ValueError("epochs and total_steps both give the planned length; keep one")
        if self.batching == "windows" and (self.random_offset or self.drop_last):
            raise ValueError("random_offset and drop_last belong to batching: streams")
        return self


class EvaluateSection(Section):
    """The cheap validation during training; see `charlm eval perplexity` for the exact one."""

    every: Steps | None = None
    """Optimizer steps between evaluations. Unset: ten evaluations over the planned length."""
    segments: Annotated[int, Field(ge=1, le=100_000)] = 32
    """Pieces S that the text is cut into and read side by side."""
    warm: Annotated[int, Field(ge=0, le=MAX_CHARACTERS_READ)] = 1000
    """Characters W read before each piece and not scored, to warm the state."""
    characters: Annotated[int | None, Field(ge=1, le=MAX_CHARACTERS_READ)] = 1_000_000
    """Score at most so many characters of the validation text while training, evenly over it; null: all of it, however long."""
    patience: Steps | None = None
    """Stop after this many evaluations without a new best."""


class CheckpointSection(Section):
    """When the run is written to disk."""

    every: Steps | None = None
    """Optimizer steps between writes of `last.safetensors`. Unset: at each evaluation."""
    keep_every: Steps | None = None
    """Also keep `step-N.safetensors` every so many optimizer steps."""


class SampleSection(Section):
    """The texts that are written while training, so that one can watch."""

    every: Steps | None = None
    """Optimizer steps between samples in `samples.txt`. Unset: at each evaluation."""
    prompt: str | list[str] = ""
    """What to continue; several prompts give several samples."""
    length: Annotated[int, Field(ge=1, le=10_000_000)] = 200
    """New characters of each sample."""
    temperature: Annotated[float, AfterValidator(check_temperature)] = 0.8
    """Divides the logits; 0 takes the likeliest character each time."""

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ReportedSection(Section):
    """What this recipe reached when its author ran it; the end of a run compares itself with it."""

    metric: Literal["train_perplexity", "validation_perplexity", "validation_nats", "validation_bits_per_character"]
    """Which result."""
    value: Annotated[float, Field(ge=1e-6, le=1e12)]
    """Its value."""
    note: str = ""
    """Machine, protocol, what to compare it with."""


class Recipe(Section):
    """Everything about one training run."""

    corpus: Annotated[PathText, Field(json_schema_extra=FIXED)]
    """A card's name (`shakespeare`), or a path to a file, a folder or a glob of your own (`./mine.txt`)."""
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    sample: SampleSection = SampleSection()
    reported: ReportedSection | None = None


# --------------------------------------------------------------------------------------------------------------------
# Reading a recipe
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedRecipe:
    """A validated recipe, the name of its run, and the folder that its relative paths start from.

    Attributes:
        of_text: whether the user named a text, and the recipe is the default one for it.
    """

    name: str
    recipe: Recipe
    folder: Path
    of_text: bool = False


@dataclass
class _Problem:
    key: str
    text: str
    suggestions: list[str] = field(default_factory=list)


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, stored: bool = False) -> LoadedRecipe:
    """Read a recipe and apply ``KEY=VALUE`` overrides.

    Args:
        name_or_path: the bare name of a shipped recipe, the path of a YAML file, or a text: the path of any other file, of a
            folder, or a glob.
        overrides: ``section.key=value``; the value is read as YAML and typed by the schema.
        stored: it is a run's own ``config.yaml``, which an earlier version may have written.

    Raises:
        RecipeError: no such recipe or text, not YAML, or wrong keys and values: all of them, in one message.
    """
    if _is_text(name_or_path):
        if (path_of(name_or_path) / "last.safetensors").exists():
            config = Path(name_or_path) / "config.yaml"
            raise RecipeError(
                f"{name_or_path} is a run's folder, not a text; its recipe is {config}. To resume the run: "
                f"charlm train {config} --out {name_or_path} --resume auto"
            )
        recipe = validate_recipe(apply_overrides({"corpus": name_or_path}, overrides), f"the text {name_or_path}", overrides)
        return LoadedRecipe(recipe_name(name_or_path), recipe, Path.cwd(), of_text=True)
    path = find_recipe(name_or_path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)  # one more than parse_yaml accepts
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a recipe: byte {error.start} is not UTF-8 text") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a recipe: expected keys such as `corpus: FILE`, found {_kind(raw)}")
    raw = with_present_names(raw) if stored else raw
    recipe = validate_recipe(apply_overrides(raw, overrides), str(path), overrides)
    return LoadedRecipe(name=path.stem, recipe=recipe, folder=path.resolve().parent)


def _is_text(name_or_path: str) -> bool:
    """Whether a path names a text to train on: a folder, a glob, or a file that is not YAML."""
    path = path_of(name_or_path)
    if has_magic(name_or_path) and not path.exists():
        return True
    return is_path(name_or_path) and (path.is_dir() or (path.exists() and path.suffix.lower() not in _YAML))


_YAML = (".yaml", ".yml")


def recipe_name(name_or_path: str) -> str:
    """The name of a recipe's run: the file's, without suffix; of a text, made fit for a folder's name and a bare word."""
    path = path_of(name_or_path)
    if not _is_text(name_or_path):
        return path.stem
    parts = (path.stem, path.resolve().stem, *path.resolve().parent.parts[:0:-1])  # a glob may say nothing itself
    names = (re.sub(r"[^\w+-]+", "-", part).strip("-") for part in parts)
    return next((name for name in names if name), "text")


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a shipped recipe (a bare word) or of a path.

    Raises:
        RecipeError: there is none; names the closest shipped recipes.
    """
    if is_path(name_or_path):
        try:
            path = path_of(name_or_path)
            is_file = path.is_file()
        except OSError as error:  # such as a name that is too long
            raise RecipeError(f"cannot read the recipe {name_or_path}: {error.strerror}") from None
        if not is_file:
            found = "is a folder" if path.is_dir() else "does not exist"
            raise RecipeError(f"{path} {found}; expected a YAML file, a text to train on, or a shipped recipe: {_listing()}")
        return path
    shipped = shipped_files("configs")
    if name_or_path in shipped:
        return shipped[name_or_path]
    close = difflib.get_close_matches(name_or_path, shipped, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    own = f"A file of your own needs a suffix or a /, such as ./{name_or_path}"
    if Path(name_or_path).exists():
        kind = "folder" if Path(name_or_path).is_dir() else "file"
        own = f"There is a {kind} of that name here: to train on it, write ./{name_or_path}"
    raise RecipeError(f"no shipped recipe is called {name_or_path!r}{hint}\nShipped: {_listing()}\n{own}")


def is_path(name: str) -> bool:
    """Tell a path (contains ``/`` or a suffix) from the bare name of something shipped."""
    return "/" in name or "\\" in name or Path(name).suffix != "" or name.startswith((".", "~"))


def path_of(text: str) -> Path:
    """The path that a user typed, with ``~`` and ``~user`` expanded.

    Raises:
        UsageError: it is empty, contains a NUL character, or names a user who does not exist.
    """
    if not text or "\0" in text:
        raise UsageError(f"expected a path, found {_shown(text)}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: no home folder of that user is known; write the folder out") from None


def _listing() -> str:
    return ", ".join(shipped_files("configs"))


_ALTERNATIVES = {"train.epochs": "total_steps", "train.total_steps": "epochs"}
"""Keys of which a recipe has one."""


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``raw`` with each ``section.key=value`` set.

    Raises:
        RecipeError: an override without ``=``, or with a key that no recipe has.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals:
            raise RecipeError(f"--set {override}: expected KEY=VALUE, such as train.lr=1e-3")
        check_key(key, f"--set {override}")
        section, _, name = key.rpartition(".")
        other = _ALTERNATIVES.get(key)
        if other and isinstance(result.get(section), dict):
            result[section].pop(other, None)  # one given on the command line replaces the other in the file
        target = result.setdefault(section, {}) if section else result
        if target is None:
            target = result[section] = {}
        if isinstance(target, dict):  # a wrong type is left for the schema to report
            target[name] = _typed(key, value, f"--set {override}")
    return result


def _typed(key: str, value: str, given: str) -> Any:
    """What an override's text stands for: YAML, but a text where the schema wants one (`sample.prompt=1603`)."""
    parsed = parse_yaml(value, given)
    annotation = dict(fields())[key].annotation
    wants_text = annotation is str or annotation == str | list[str]
    return value if wants_text and not isinstance(parsed, str | list) else parsed


def check_key(key: str, given: str) -> None:
    """Refuse a key that no recipe has.

    Args:
        key: a dotted name.
        given: what the user wrote, such as ``--set model.hiden=64``.

    Raises:
        RecipeError: names the closest key.
    """
    if key in _SECTIONS:
        raise RecipeError(f"{given}: {key} is a section; set a key of it, such as {_example(key)}")
    known = list(field_names())
    if key in RENAMED:
        raise RecipeError(f"{given}: the key {key} is now called {RENAMED[key]}")
    if key not in known:
        meant = _SYNONYMS.get(key.rpartition(".")[2])
        raise RecipeError(f"{given}: no key {key!r}{_did_you_mean([meant] if meant else _closest(key, known))}")


RENAMED = {
    "train.steps": "train.seq_length",
    "train.updates": "train.total_steps",
    "train.sampling": "train.batching",
    "figure": "reported",
}
"""Keys of recipes in checkpoints of format 1, and what they are called now."""


def with_present_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe of an earlier version, with the keys' names of now."""
    renamed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
    for old, new in RENAMED.items():
        section, _, name = old.rpartition(".")
        values = renamed.get(section) if section else renamed
        if isinstance(values, dict) and name in values:
            values[new.rpartition(".")[2]] = values.pop(name)
    return renamed


def validate_recipe(raw: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """Turn plain values into a :class:`Recipe`.

    Args:
        origin: where the values come from, such as a file's name.
        overrides: ``KEY=VALUE`` texts that have been applied to them; a problem with one of these keys is theirs.

    Raises:
        RecipeError: names the origin of every problem.
    """
    # An empty section (`model:` with all its keys commented out) is null in YAML and means its defaults.
    raw = {key: value for key, value in raw.items() if not (value is None and key in _SECTIONS)}
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        found = [_problem(details) for details in error.errors(include_url=False)]
    problems = list({problem.key: problem for problem in reversed(found)}.values())[::-1]  # a union reports each branch
    by_origin: dict[str, list[_Problem]] = {}
    for problem in problems:
        by_origin.setdefault(_blamed(problem, origin, overrides), []).append(problem)
    lines = []
    for blamed, theirs in by_origin.items():
        lines.append(f"{blamed}: {len(theirs)} problem{'s' if len(theirs) > 1 else ''}")
        lines += [f"  {problem.key}: {problem.text}{_did_you_mean(problem.suggestions)}" for problem in theirs]
    raise RecipeError("\n".join(lines))


def _blamed(problem: _Problem, origin: str, overrides: Sequence[str]) -> str:
    """Where a problem comes from: an override, the file, or both where values of one section contradict each other."""
    by_key = {override.partition("=")[0].strip(): f"--set {override}" for override in overrides}
    own = [given for key, given in by_key.items() if problem.key == key or problem.key.startswith(f"{key}.")]
    if own:
        return own[-1]
    return " with ".join([origin, *(given for key, given in by_key.items() if key.startswith(f"{problem.key}."))])


def _problem(details: Any) -> _Problem:
    place = [str(part) for part in details["loc"]]
    key = ".".join(part for part in place if not part.startswith(("list[", "SplitFiles"))) or "recipe"
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        if key in RENAMED:
            return _Problem(key, f"this key is now called {RENAMED[key]}")
        if meant := _SYNONYMS.get(key.rpartition(".")[2]):
            return _Problem(key, "unknown key", [meant])
        return _Problem(key, "unknown key", _closest(key, [*field_names(), *_SECTIONS]))
    if kind == "missing":
        return _Problem(key, f"missing; {description_of(key)}")
    message = str(details["msg"]).removeprefix("Value error, ")
    if kind != "value_error":
        message = f"{message[:1].lower()}{message[1:]}, found {_shown(found)}"
    return _Problem(key, message)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list that contains itself
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else _shown(value)


def _example(section: str) -> str:
    return next(f"{name}=…" for name in field_names() if name.startswith(f"{section}."))


_SYNONYMS = {
    synonym: key
    for key, synonyms in {
        "corpus": "dataset data_path data_dir input_file text_file text",
        "data.split": "train_frac val_frac test_frac validation_split",
        "model.cell": "rnn_type cell_type model_type rnn",
        "model.hidden": "hidden_size hidden_dim rnn_size n_hidden num_hidden num_hiddens num_units units nhid size d_model",
        "model.layers": "num_layers n_layers n_layer nlayers depth",
        "model.dropout": "p dropout_rate drop_rate dropout_p drop_prob",
        "model.embedding": "embedding_size embedding_dim embed_size embed_dim emb_size emsize n_embd",
        "model.tied": "tie_weights tied_weights weight_tying",
        "model.nonlinearity": "activation",
        "train.batch": "batch_size bs num_streams",
        "train.seq_length": "seq_len sequence_length block_size bptt unroll num_steps n_ctx context_length window",
        "train.optimizer": "optim optimiser opt",
        "train.lr": "learning_rate eta lrate max_lr alpha",
        "train.lr_final": "min_lr lr_min",
        "train.weight_decay": "wd l2 decay",
        "train.betas": "beta beta1 beta2",
        "train.clip": "grad_clip clip_grad gradient_clip clip_norm grad_norm max_grad_norm clip_value",
        "train.schedule": "lr_schedule scheduler lr_scheduler",
        "train.decay_ratio": "decay_share decay_fraction decay_frac fract_decay cooldown cooldown_ratio",
        "train.warmup": "warmup_steps warmup_iters num_warmup_steps",
        "train.average": "ema ema_decay swa",
        "train.epochs": "num_epochs n_epochs max_epochs nepochs",
        "train.total_steps": "max_iters iterations iters num_iters max_steps updates num_updates",
        "train.time": "max_time time_limit",
        "train.precision": "dtype amp fp16 bf16",
        "train.threads": "num_threads n_threads cpus",
        "train.seed": "random_seed manual_seed",
        "evaluate.every": "eval_every eval_interval eval_iters validate_every",
        "checkpoint.every": "save_every save_interval checkpoint_every",
        "sample.length": "sample_length max_new_tokens",
        "sample.temperature": "temp",
        "sample.prompt": "start prime primetext seed_text",
    }.items()
    for synonym in synonyms.split()
}
"""What other programs call our keys."""


def _closest(key: str, known: list[str]) -> list[str]:
    """The known key that looks most like ``key``, or whose last word is the same or looks like its last word."""
    word = key.rpartition(".")[2]
    same_word = [name for name in known if name.rpartition(".")[2] == word]
    if same_word:
        return same_word
    by_word = {name.rpartition(".")[2]: name for name in known}
    close = [by_word[match] for match in difflib.get_close_matches(word, by_word, n=1, cutoff=0.7)]
    return close or difflib.get_close_matches(key, known, n=1)


def _did_you_mean(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


# --------------------------------------------------------------------------------------------------------------------
# Walking over the schema
# --------------------------------------------------------------------------------------------------------------------


def _section_of(info: FieldInfo) -> type[Section] | None:
    for candidate in (info.annotation, *getattr(info.annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


_SECTIONS: dict[str, type[Section]] = {
    name: section for name, info in Recipe.model_fields.items() if (section := _section_of(info))
}


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every field of a recipe by its dotted name, such as ``train.lr``."""
    for name, info in Recipe.model_fields.items():
        if name in _SECTIONS:
            yield from ((f"{name}.{key}", inner) for key, inner in _SECTIONS[name].model_fields.items())
        else:
            yield name, info


def field_names() -> Iterator[str]:
    """Yield the dotted name of every field of a recipe."""
    return (name for name, _ in fields())


def description_of(key: str) -> str:
    """The sentence that explains a field."""
    return next((one_line(info) for name, info in fields() if name == key), "")


def one_line(info: FieldInfo) -> str:
    """A field's sentence without line ends."""
    return " ".join((info.description or "").split())


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of recipes, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def value_at(recipe: Recipe, key: str) -> Any:
    """The value of a field by its dotted name; ``None`` inside a section that is absent."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def reconcile(before: Recipe, now: Recipe) -> list[str]:
    """Compare the recipe of an earlier attempt with the one given now, and say what the newer one changes.

    Returns:
        A sentence for each changed field for which the newer recipe wins.

    Raises:
        RecipeError: a ``fixed`` field changed; lists all of them with both values.
    """
    changed = [
        (key, info, old, new)
        for key, info in fields()
        if (old := value_at(before, key)) != (new := value_at(now, key)) and not _is_a_text(key, old, new)
    ]
    is_fixed = [(key, old, new) for key, info, old, new in changed if info.json_schema_extra == FIXED]
    if is_fixed:
        lines = [f"  {key}: was {_plain(old)}, is now {_plain(new)}" for key, old, new in is_fixed]
        raise RecipeError(
            "this run was started with other values, which cannot change while it goes on:\n"
            + "\n".join(lines)
            + "\nGive the old values back, or start anew with --overwrite or another --out."
        )
    return [
        f"{key}: was {_plain(old)}, goes on with {_plain(new)}"
        for key, _, old, new in changed
        if not key.startswith("reported")
    ]


def _is_a_text(key: str, old: object, new: object) -> bool:
    """Whether a field names texts. These are compared by their content, not by where they lie."""
    return key == "corpus" or (isinstance(old, SplitFiles) and isinstance(new, SplitFiles))


def _plain(value: object) -> str:
    return _shown(value.model_dump() if isinstance(value, BaseModel) else value)
