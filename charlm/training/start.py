"""From a recipe to a trainer that is ready to run: the one place where data, model, device and an earlier run meet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from charlm import checkpoint
from charlm.cells import option_keys
from charlm.checkpoint import Checkpoint
from charlm.config import LoadedRecipe, Recipe, SplitFiles, is_path, path_of, reconcile
from charlm.data.dataset import Dataset, open_dataset
from charlm.data.recorded import recorded_text
from charlm.data.streams import fit_batch
from charlm.data.vocabulary import Vocabulary, describe_characters
from charlm.errors import CheckpointError, RecipeError, UsageError
from charlm.files import is_utf8
from charlm.model.engines import ENGINES, resolve_engine
from charlm.model.language_model import LanguageModel, embedding_width
from charlm.progress import Progress
from charlm.runtime import prepare, resolve_device, resolve_precision
from charlm.schedules import SCHEDULES
from charlm.training import defaults
from charlm.training.plan import Limits, Plan, Resolved, training_bytes
from charlm.training.run_folder import RunFolder
from charlm.training.trainer import Trainer

Resume = Literal["never", "auto", "must"]


@dataclass(frozen=True)
class Options:
    """What the command line adds to a recipe.

    Attributes:
        out: the run's folder.
        resume: what to do with a run that is there already.
        overwrite: move it aside and start anew.
        init: a checkpoint to take initial weights from.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        verify: hash the corpus even if its files look unchanged.
    """

    out: Path
    limits: Limits
    resume: Resume = "never"
    overwrite: bool = False
    init: str | None = None
    device: str = "auto"
    verify: bool = False
    fetch_progress: Progress | None = None
    encode_progress: Progress | None = None


@dataclass
class Started:
    """A trainer, and the sentences that its user should read first. As a context it closes the run's folder at its end."""

    trainer: Trainer
    notices: list[str] = field(default_factory=list)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.folder.close()


def start(loaded: LoadedRecipe, options: Options) -> Started:
    """Lock the run's folder, read the text, build the model, and go on from an earlier checkpoint if asked.

    Raises:
        CharlmError: whatever keeps the run from starting; the folder is then unlocked, and an earlier run in it untouched.
    """
    if options.resume != "never" and (options.overwrite or options.init):
        raise UsageError("--resume goes on with a run; --overwrite and --init start one. Choose one of them")
    folder = RunFolder(options.out)
    try:
        return _start(loaded, options, folder)
    except BaseException:
        folder.abandon()
        raise


def _start(loaded: LoadedRecipe, options: Options, folder: RunFolder) -> Started:
    notices = folder.check_ownership()
    given = loaded.recipe
    earlier = _earlier(options, folder, notices)
    replan = False
    if earlier is not None:
        time_given, time_before = loaded.recipe.train.time, earlier.recipe.train.time
        replan = defaults.needs_plan(loaded.recipe) and time_given is not None and time_given != time_before
        loaded = replace(loaded, recipe=defaults.restore_choices(loaded.recipe, earlier.recipe))
        changes = reconcile(earlier.recipe, portable(loaded.recipe))
        notices += [f"changed since the run began: {change}" for change in changes]
    initial = checkpoint.load(checkpoint.find_checkpoint(options.init)) if options.init else None
    if initial is not None:
        loaded = replace(loaded, recipe=defaults.inherit_architecture(loaded.recipe, initial.recipe.model))
    source = earlier or initial

    device = resolve_device(options.device)
    dataset = open_dataset(
        loaded,
        vocabulary=source.vocabulary if source else None,
        grow=initial is not None,
        verify=options.verify,
        recorded=recorded_text(earlier.corpus, options.out) if earlier and _names_files(earlier, given) else None,
        fetch_progress=options.fetch_progress,
        encode_progress=options.encode_progress,
    )
    notices += dataset.notices
    if earlier is not None:
        _same_text(earlier, dataset)

    resolved = _resolve(loaded.recipe, device, earlier, notices)
    check_memory(loaded.recipe, dataset, resolved)
    if replan and earlier is not None:
        loaded = replace(loaded, recipe=_replanned(loaded.recipe, earlier, dataset, resolved, options.limits))
    if defaults.needs_plan(loaded.recipe):
        planned = defaults.with_defaults(loaded.recipe, _rule(loaded.recipe, dataset, resolved, options.limits))
        notices.append("chosen for a text of this length: " + " ".join(defaults.chosen_overrides(loaded.recipe, planned)))
        loaded = replace(loaded, recipe=planned)
    recipe, stored_recipe = loaded.recipe, portable(loaded.recipe)
    if initial is not None and initial.vocabulary.unit != dataset.vocabulary.unit:
        raise RecipeError(f"--init: that model reads {initial.vocabulary.unit}s, the recipe says data.unit: {recipe.data.unit}")
    model = LanguageModel(recipe.model, len(dataset.vocabulary), resolved.engine)
    if earlier is not None:
        checkpoint.copy_weights(model, earlier.weights)
    else:
        model.initialise(recipe.train.seed)
    if initial is not None:
        notices.append(transplant(model, dataset.vocabulary, initial))
    model.to(device)
    model.flatten_for_cudnn()

    if earlier is None and options.overwrite and folder.holds_run():
        notices.append(f"the run that was here is now in {folder.move_aside()}")
    if earlier is None:
        folder.truncate_logs({})  # what a run left that never reached its first checkpoint
    folder.remove_temporaries()
    folder.write_config(anchored(loaded))
    trainer = Trainer(recipe, stored_recipe, dataset, model, resolved, folder, options.limits, earlier)
    shape = trainer.batches.shape
    if shape.shrunk:
        notices.append(
            f"the training text is too small for batch {recipe.train.batch} × steps {recipe.train.seq_length}: "
            f"shrunk to {shape.batch} × {shape.seq_length}"
        )
    if earlier is not None:
        notices += _about_the_length(trainer, earlier)
    return Started(trainer, notices)


def _about_the_length(trainer: Trainer, earlier: Checkpoint) -> list[str]:
    """Whether a resumed run is planned for another length than before, and whether it has steps left."""
    before, now = Plan.of(earlier.recipe, trainer.batches).total_steps, trainer.plan.total_steps
    if before != now:
        lengths = [f"{steps:,} steps" if steps is not None else "no end but the time" for steps in (before, now)]
        schedule = trainer.recipe.train.schedule
        rate = (
            f"; from step {trainer.step + 1:,} on, the learning rate follows the {schedule} schedule of the new length"
            if SCHEDULES[schedule].needs_length
            else f"; the {schedule} learning rate does not depend on it"
        )
        return [f"the planned length is now {lengths[1]}, not {lengths[0]}{rate}"]
    if now is not None and trainer.step >= now:
        return [
            f"this run is finished: it has made its {now:,} steps. To train it further, give it a longer schedule: "
            f"--resume auto --set train.total_steps={2 * now}"
        ]
    patience, worse = trainer.recipe.evaluate.patience, earlier.progress["worse_in_a_row"]
    if patience is not None and worse >= patience:
        return [
            f"this run is finished: {worse} evaluations in a row brought no new best. To train it further: "
            f"--resume auto --set evaluate.patience={worse + patience}"
        ]
    return []


def _earlier(options: Options, folder: RunFolder, notices: list[str]) -> Checkpoint | None:
    """The checkpoint to go on from, as ``--resume`` and ``--overwrite`` say."""
    holds_run = folder.holds_run()
    if options.resume == "never":
        if holds_run and not options.overwrite:
            raise UsageError(
                f"{folder.path} holds a run already; --resume auto goes on with it, --overwrite moves it aside, "
                "--out DIR goes elsewhere"
            )
        return None
    if options.resume == "auto" and not holds_run:
        return None
    earlier, problems = folder.load_newest()
    notices += problems
    return earlier


def check_memory(recipe: Recipe, dataset: Dataset, resolved: Resolved) -> None:
    """Refuse a model that cannot be trained in this machine's memory, before any of it is allocated.

    Raises:
        RecipeError: says how much is needed and how much there is.
    """
    start, stop = dataset.splits["train"]
    shape = fit_batch(stop - start - 1, recipe.train.batch, recipe.train.seq_length)
    needed = training_bytes(recipe, len(dataset.vocabulary), shape, resolved.precision, resolved.engine)
    available = memory_of(resolved.device)
    if available is not None and needed > available:
        raise RecipeError(
            f"training this model takes about {needed / 1e9:,.1f} GB, but {resolved.device} has {available / 1e9:,.1f} GB; "
            "use a smaller model.hidden, model.layers, train.batch or train.seq_length"
        )


def memory_of(device: torch.device) -> int | None:
    """The physical memory of a device in bytes; ``None`` where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _rule(recipe: Recipe, dataset: Dataset, resolved: Resolved, limits: Limits) -> defaults.Values:
    """What follows from the text's length, and from the time that the recipe or the command gives."""
    start, stop = dataset.splits["train"]
    budget: float = defaults.CHARACTERS
    times = [seconds for seconds in (recipe.train.time, limits.max_seconds) if seconds is not None]
    if times:
        budget = defaults.characters_in(min(times), recipe, dataset, resolved, limits.started_at)
    return defaults.rule(max(1, stop - start), budget, recipe.model.cell)


def _names_files(earlier: Checkpoint, given: Recipe) -> bool:
    """Whether the checkpoint, and not the user's recipe, says which files are read."""
    return isinstance(earlier.recipe.data.split, SplitFiles) and "split" not in given.data.model_fields_set


def _replanned(recipe: Recipe, earlier: Checkpoint, dataset: Dataset, resolved: Resolved, limits: Limits) -> Recipe:
    """The recipe of a resumed run with another `time`: as long as it is already, and what this time allows beside it."""
    assert recipe.train.time is not None
    start, stop = dataset.splits["train"]
    more = defaults.characters_in(recipe.train.time, recipe, dataset, resolved, limits.started_at)
    epochs = earlier.progress["epoch"] + more / max(1, stop - start)
    length = {"total_steps": None, "epochs": float(f"{epochs:.4g}")}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=length)})


def _same_text(earlier: Checkpoint, dataset: Dataset) -> None:
    now = dataset.fingerprint()
    different = [key for key in ("sha256", "characters", "splits") if earlier.corpus.get(key) != now[key]]
    if different:
        key = different[0]
        raise RecipeError(
            f"the text of {dataset.name} is not the one this run was started with ({key} was {earlier.corpus.get(key)}, is now "
            f"{now[key]}); bring the old text back, or start anew with --overwrite, perhaps with --init"
        )


def _resolve(recipe: Recipe, device: torch.device, earlier: Checkpoint | None, notices: list[str]) -> Resolved:
    """Settle engine, precision and threads; an earlier attempt's choices stand unless they were made for another device."""
    before: dict[str, Any] = earlier.resolved if earlier else {}
    stands = before.get("device") == device.type
    if before and not stands:
        notices.append(
            f"the run began on {before.get('device')} and goes on on {device.type}: exact to rounding, not to the bit"
        )
    section = recipe.model
    if stands and section.engine == "auto" and ENGINES[before["engine"]].why_not(section, device) is None:
        section = section.model_copy(update={"engine": before["engine"]})
    engine, engine_reason = resolve_engine(section, device)
    if before and engine != before["engine"]:
        notices.append(
            f"the run began with engine {before['engine']} and goes on with {engine}: exact to rounding, not to the bit"
        )
    wanted = before["precision"] if stands and recipe.train.precision == "auto" else recipe.train.precision
    precision, precision_reason = resolve_precision(wanted, device, ENGINES[engine].fp32_reason)
    if stands and engine == before["engine"]:
        engine_reason = "as the run began"
    if stands and precision == before["precision"]:
        precision_reason = "as the run began"
    threads = prepare(recipe.train.threads)
    if stands and recipe.train.threads is None:
        threads = before.get("threads", threads)
    return Resolved(device, engine, engine_reason, precision, precision_reason, threads)


def transplant(model: LanguageModel, vocabulary: Vocabulary, initial: Checkpoint) -> str:
    """Copy another model's weights into this one; what belongs to a character goes to the same character.

    Returns:
        A sentence that says what was mapped.

    Raises:
        CheckpointError: the networks differ in cell, width, layers or input.
    """
    here, there = model.section, initial.recipe.model
    differing = [
        f"model.{key}: {getattr(there, key)} there, {getattr(here, key)} here"
        for key in ("cell", "hidden", "layers", "tied", *option_keys(), "residual", "attention")
        if getattr(here, key) != getattr(there, key)
    ]
    widths = [embedding_width(section) or "one-hot" for section in (there, here)]
    if widths[0] != widths[1]:
        differing.append(f"model.input: {widths[0]} there, {widths[1]} here")
    if differing:
        raise CheckpointError("--init: the checkpoint is another network: " + "; ".join(differing))
    own = dict(model.named_parameters())

    shared = [symbol for symbol in vocabulary.symbols if initial.vocabulary.id_of(symbol) is not None]
    pairs = [(vocabulary.id_of(symbol), initial.vocabulary.id_of(symbol)) for symbol in shared]
    if vocabulary.unknown_id is not None:
        pairs.append((vocabulary.unknown_id, initial.vocabulary.unknown_id))
    to, come_from = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    # Name → the dimension that counts characters; with one-hot input they are the first layer's D.
    of_characters = {"embedding": 0, "output_weight": 0, "output_bias": 0}
    if model.embedding is None:
        parameters = model.layers[0].entry.parameters
        of_characters |= {f"layers.0.{name}": shape.index("D") for name, shape in parameters.items() if "D" in shape}
    with torch.no_grad():
        for name, weight in own.items():
            stored = initial.weights[name]
            if name in of_characters:
                dimension = of_characters[name]
                weight.index_copy_(dimension, to, stored.index_select(dimension, come_from))
            elif weight.shape == stored.shape:
                weight.copy_(stored)
            else:
                raise CheckpointError(f"--init: {name} is {tuple(stored.shape)} there and {tuple(weight.shape)} here")
    fresh = [symbol for symbol in vocabulary.symbols if initial.vocabulary.id_of(symbol) is None]
    added = f"; new, with fresh weights: {describe_characters(''.join(map(chr, fresh)))}" if fresh else "; none are new"
    return f"initial weights from step {initial.progress['step']} of another run: {len(shared)} symbols mapped{added}"


def portable(recipe: Recipe) -> Recipe:
    """The recipe as a checkpoint may hold it: absolute paths and those with ``..`` are reduced to names."""
    data = recipe.data
    if isinstance(data.split, SplitFiles):
        files = SplitFiles(validation=_relative(data.split.validation), test=_relative(data.split.test))
        data = data.model_copy(update={"split": files})
    return recipe.model_copy(update={"corpus": _relative(recipe.corpus), "data": data})


def _relative(path: str | None) -> str | None:
    if path is None or not is_path(path):
        return path
    expanded = path_of(path)
    return f"./{expanded.name}" if expanded.is_absolute() or ".." in expanded.parts else path


def anchored(loaded: LoadedRecipe) -> Recipe:
    """The recipe as the run's own ``config.yaml`` holds it: its texts are found from any folder of this machine."""
    data = loaded.recipe.data
    if isinstance(data.split, SplitFiles):
        split = SplitFiles(
            validation=_absolute(data.split.validation, loaded.folder), test=_absolute(data.split.test, loaded.folder)
        )
        data = data.model_copy(update={"split": split})
    return loaded.recipe.model_copy(update={"corpus": _absolute(loaded.recipe.corpus, loaded.folder), "data": data})


def _absolute(path: str | None, folder: Path) -> str | None:
    if path is None or not is_path(path):
        return path
    expanded = path_of(path)
    beside_recipe = (folder / expanded).exists() or any(folder.glob(path) if not expanded.is_absolute() else ())
    absolute = str((folder / expanded if beside_recipe else expanded).absolute())
    # YAML cannot hold a path that is not UTF-8: the text is then found from the recipe's folder alone.
    return absolute if is_utf8(absolute) else path
