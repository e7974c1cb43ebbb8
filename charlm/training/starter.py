"""A commented recipe for a text, with the values that training on the text would choose."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from charlm.cells import cell_names
from charlm.config import (
    LoadedRecipe,
    Recipe,
    SplitFiles,
    apply_overrides,
    is_path,
    list_keys,
    load_recipe,
    validate_recipe,
    value_at,
)
from charlm.data.dataset import Dataset, open_dataset
from charlm.data.splits import DEFAULT_SPLIT
from charlm.data.streams import batches_of
from charlm.errors import UsageError
from charlm.progress import Progress
from charlm.resources import shipped_folder
from charlm.runtime import resolve_device
from charlm.training import budget, defaults
from charlm.training.plan import Limits, Plan
from charlm.training.resolve import resolve
from charlm.yaml_text import dump_yaml

_COMMENTS = {
    "data.split": "training, validation, test",
    "model.cell": f"recurrent cell: {', '.join(cell_names())}",
    "model.hidden": "hidden units; a larger network learns more and trains more slowly",
    "model.layers": "stacked recurrent layers",
    "model.init": "initial weights; orthogonal recurrent matrices preserve the norm of the state",
    "model.dropout": "dropout on the layer output; more epochs need more",
    "model.input_dropout": "dropout on the embedding",
    "train.batch": "parallel streams",
    "train.seq_length": "length of truncated backpropagation through time",
    "train.optimizer": "adamw is Adam with decoupled weight decay",
    "train.lr": "peak learning rate; charlm chooses 0.001 for cell: rnn",
    "train.weight_decay": "decays weight matrices, not biases",
    "train.schedule": "learning rate over the run; cosine: half a cosine",
    "train.lr_final": "final learning rate ÷ peak",
    "train.average": "decay of the weight average; 0.998: about the last 500 steps",
    "train.clip": "maximum gradient norm",
    "train.epochs": "passes over the training text",
    "train.seed": "determines every random choice",
    "evaluate.characters": "validation characters scored during training; the end of the run scores up to a million",
    "sample.prompt": "text to continue in the samples",
    "sample.length": "new characters",
    "sample.temperature": "below 1 favours likely characters",
}
"""The keys of a starting recipe, in its order, with their comments."""

_UNSET = {
    "train": ["# time: 10m  # time limit for slow machines; does not change the schedule"],
    "evaluate": ["# every: {every}  # optimizer steps between evaluations and samples; unset: a tenth of the run"],
}
"""Lines about keys that stay unset."""

_RECORDS = "# records: line  # makes each line a sample of its own, for names or molecules; unset: one stream"
_LONGEST_RECORD = 64  # characters per line, on average
_LOOKED_AT = 1_000_000  # characters


@dataclass(frozen=True)
class Starter:
    """A starting recipe.

    Attributes:
        text: YAML with comments.
        notices: how reading changed the text, as sentences for the user.
    """

    text: str
    notices: tuple[str, ...]


def starting_recipe(corpus: str, overrides: Sequence[str] = (), encode_progress: Progress | None = None) -> Starter:
    """Read a text, and choose the values that :func:`charlm.train` chooses for it.

    Args:
        corpus: a file, a folder, a glob, or the name of a corpus card.
        overrides: ``KEY=VALUE``, as for a training; ``train.time`` is planned for by timing a few steps.
        encode_progress: is called while the text is encoded.

    Raises:
        CharlmError: the text cannot be used, or an override is wrong.
    """
    started_at = time.monotonic()
    loaded = _loaded(corpus, overrides)
    dataset = open_dataset(loaded, encode_progress=encode_progress)
    recipe = loaded.recipe
    resolved, _ = resolve(recipe, resolve_device("auto"), None)
    if defaults.needs_plan(recipe):
        values = budget.default_values(recipe, dataset, resolved, Limits.of(recipe, started_at))
        recipe = defaults.with_defaults(recipe, values)
    return Starter(_text(recipe, dataset), dataset.notices)


def _loaded(corpus: str, overrides: Sequence[str]) -> LoadedRecipe:
    if is_path(corpus) or has_magic(corpus):
        loaded = load_recipe(corpus, overrides)
        if not loaded.of_text:
            raise UsageError(f"{corpus} is a recipe already; expected a text: a file, a folder, a glob or a corpus name")
        return loaded
    recipe = validate_recipe(apply_overrides({"corpus": corpus}, overrides), f"the corpus {corpus}", overrides)
    return LoadedRecipe(corpus, recipe, Path.cwd())


def _text(recipe: Recipe, dataset: Dataset) -> str:
    batches = batches_of(dataset.text("train"), recipe.train, recipe.data.unknown_rate)
    plan = Plan.of(recipe, batches)
    characters, symbols = dataset.encoded.characters, len(dataset.encoded.alphabet)
    about = (
        f"A recipe for a text of {characters:,} characters, {symbols:,} of them distinct. The values are those that charlm "
        "chooses for a text of this length. `charlm recipe keys` explains every key."
    )
    schema = (shipped_folder("configs") / "recipe.schema.json").as_uri()
    lines = [f"# yaml-language-server: $schema={schema}"]
    lines += textwrap.wrap(about, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    lines += ["", _line("corpus", recipe.corpus, "")]
    for section, keys in _keys(recipe).items():
        lines += ["", f"{section}:"]
        for key, comment in keys.items():
            value = value_at(recipe, f"{section}.{key}")
            if section == "data" and key == "split" and value is None:
                value = DEFAULT_SPLIT
            if key == "epochs" and plan.total_steps is not None:
                comment += f", {plan.total_steps:,} optimizer steps in all"
            lines.append(textwrap.indent(_line(key, value, comment), "  "))
        lines += [f"  {line.format(every=plan.evaluate_every)}" for line in _unset(recipe, section)]
        if section == "data" and recipe.data.records is None and _looks_like_a_list(dataset):
            lines.append(f"  {_RECORDS}")
    return "\n".join(lines) + "\n"


def _keys(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Section → key → comment: the keys of every starting recipe, and those that this one sets."""
    found: dict[str, dict[str, str]] = {}
    for name, comment in _COMMENTS.items():
        section, _, key = name.partition(".")
        is_set = key in getattr(recipe, section).model_fields_set
        by_card = name == "data.split" and not (is_path(recipe.corpus) or has_magic(recipe.corpus))
        no_length = name == "train.epochs" and recipe.train.epochs is None
        if is_set or not (by_card or no_length):
            found.setdefault(section, {})[key] = comment
    for section in recipe.model_fields_set - {"corpus", "reported"}:
        for key in getattr(recipe, section).model_fields_set - {*found.get(section, {})}:
            meaning = list_keys(f"{section}.{key}")[0].help.partition(". ")[0].rstrip(".")
            found.setdefault(section, {})[key] = meaning[:1].lower() + meaning[1:]
    return {section: found[section] for section in Recipe.model_fields if section in found}


def _unset(recipe: Recipe, section: str) -> list[str]:
    """The lines about keys of a section that stay unset."""
    lines = _UNSET.get(section, [])
    return [line for line in lines if value_at(recipe, f"{section}.{line.split()[1].rstrip(':')}") is None]


def _looks_like_a_list(dataset: Dataset) -> bool:
    """Whether a text has short lines and no empty ones, such as a list of names. Prose and code have empty lines."""
    symbols = dataset.encoded.symbols(0, min(dataset.encoded.characters, _LOOKED_AT))
    (ends,) = np.nonzero(symbols.read(0, len(symbols)) == ord("\n"))
    lengths = np.diff(ends, prepend=-1) - 1
    return len(ends) >= 20 and bool(lengths.min() > 0) and float(lengths.mean()) <= _LONGEST_RECORD


def _line(key: str, value: Any, comment: str) -> str:
    """A key with its value, in YAML that parses to the same value."""
    if isinstance(value, SplitFiles):
        value = value.model_dump(mode="json")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | dict):
        written = dump_yaml({key: value}).rstrip("\n")
    else:  # alone, a mapping would be written in braces
        written = f"{key}: {dump_yaml([value]).strip()[1:-1]}"
    return f"{written}  # {comment}" if comment else written
