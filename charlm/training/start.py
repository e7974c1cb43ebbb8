"""Starts or resumes a run: a recipe, a folder and an earlier run become a trainer that is ready."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from charlm import __version__, checkpoint
from charlm.checkpoint import Checkpoint
from charlm.config import LoadedRecipe, Recipe, SplitFiles, fields, reconcile, value_at
from charlm.data.dataset import Dataset, open_dataset
from charlm.data.recorded import recorded_text
from charlm.data.streams import fit_batch
from charlm.distributed import ALONE, World
from charlm.errors import RecipeError, UsageError
from charlm.model.language_model import LanguageModel
from charlm.model.native import library
from charlm.model.native.engine import NativeEngine
from charlm.progress import Progress
from charlm.runtime import resolve_device
from charlm.schedules import SCHEDULES
from charlm.training import budget, defaults
from charlm.training.initial_weights import transplant
from charlm.training.memory import check_memory
from charlm.training.plan import Limits, Plan
from charlm.training.recipe_paths import anchored, portable
from charlm.training.resolve import Resolved, resolve
from charlm.training.run_folder import OtherFolder, RunFolder
from charlm.training.trainer import Trainer

Resume = Literal["never", "auto", "must"]


@dataclass(frozen=True)
class Options:
    """How to start a run.

    Attributes:
        out: the run's folder.
        limits: when to stop.
        resume: ``never``; ``auto``: resume if the folder holds a run; ``must``: fail if it does not.
        overwrite: move an earlier run aside and start a new one.
        init: a checkpoint with initial weights.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        verify: hash the corpus even if its files look unchanged.
        fetch_progress: is called while the corpus is downloaded.
        encode_progress: is called while the corpus is encoded.
        world: the processes that train together. The first one reads the earlier run and sends it to the others.
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
    world: World = ALONE


@dataclass
class Started:
    """A trainer, and notices for its user. As a context manager, it closes the run's folder."""

    trainer: Trainer
    notices: list[str] = field(default_factory=list)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.folder.close()


def start(loaded: LoadedRecipe, options: Options) -> Started:
    """Lock the run's folder, read the text, build the model, and restore an earlier run if it is to be resumed.

    Raises:
        CharlmError: the run cannot be started. The folder is unlocked, and an earlier run in it is unchanged.
    """
    world = options.world
    if options.resume != "never" and (options.overwrite or options.init):
        new = ({"overwrite": True} if options.overwrite else {}) | ({"init": options.init} if options.init else {})
        raise UsageError(
            "a run cannot be resumed and started anew at once",
            advice={"resume it": {"resume": options.resume}, "start a new one": new},
        )
    folder = world.together(lambda: RunFolder(options.out) if world.is_first else OtherFolder(options.out))
    try:
        return _start(loaded, options, folder)
    except BaseException:
        folder.abandon()
        raise


def _start(given: LoadedRecipe, options: Options, folder: RunFolder) -> Started:
    """What can fail in one process alone is done by ``together``, so that the others do not wait for it."""
    world, notices = options.world, list[str]()

    def found() -> Checkpoint | None:
        if not world.is_first:
            return None
        notices.extend(folder.check_ownership())
        return _earlier(options, folder, notices)

    earlier = _sent(world, world.together(found))
    initial = world.together(lambda: checkpoint.load(checkpoint.find_checkpoint(options.init)) if options.init else None)
    loaded = world.together(lambda: replace(given, recipe=_inherited(given.recipe, earlier, initial, notices)))
    device = world.together(lambda: resolve_device(options.device, world.local_rank))
    opened = world.together(  # one process on each machine encodes the text; the others find it in the cache
        lambda: None if world.local_rank else _open(loaded, given.recipe, options, earlier, initial)
    )
    dataset = world.together(lambda: opened or _open(loaded, given.recipe, options, earlier, initial))
    notices += dataset.notices

    def checked() -> Resolved:
        resolved, changes = resolve(loaded.recipe, device, earlier, world)
        notices.extend(changes)
        _check_shares(loaded.recipe, dataset, world)
        check_memory(loaded.recipe, dataset, resolved, world)
        return resolved

    resolved = world.together(checked)
    world.together(lambda: world.same(_identity(loaded.recipe, dataset, resolved, options.limits)))

    def made() -> Trainer:
        planned = _planned(loaded.recipe, given.recipe, options, earlier, dataset, resolved, notices)
        model = _model(planned, options, earlier, initial, dataset, resolved, notices)
        complete = replace(loaded, recipe=planned)
        if world.is_first:
            _prepare(folder, complete, options, earlier, notices)
        return Trainer(planned, portable(planned), dataset, model, resolved, folder, options.limits, earlier, world)

    trainer = world.together(made)
    notices += _about_shape(trainer)
    if resolved.device.type == "cuda" and trainer.graph_refusal is not None:
        notices.append(f"training steps run without a CUDA graph, which is slower: {trainer.graph_refusal}")
    if earlier is not None:
        notices += _about_length(trainer, earlier)
    return Started(trainer, notices)


def _prepare(folder: RunFolder, loaded: LoadedRecipe, options: Options, earlier: Checkpoint | None, notices: list[str]) -> None:
    """Prepare the run's folder for the first step."""
    if earlier is None and options.overwrite and folder.holds_run():
        notices.append(f"the earlier run is now in {folder.move_aside()}")
    if earlier is None:
        folder.truncate_logs({})  # of a run that ended before its first checkpoint
    folder.remove_temporaries()
    folder.write_config(anchored(loaded))


def _sent(world: World, earlier: Checkpoint | None) -> Checkpoint | None:
    """The first process's checkpoint, in all processes: the others need not see its folder."""
    if world.size == 1:
        return earlier
    with tempfile.TemporaryDirectory(prefix="charlm-") as scratch:
        path = Path(scratch) / "last.safetensors"
        if earlier is not None:
            checkpoint.save(path, earlier)
        content = world.send(path.read_bytes() if earlier is not None else b"")
        if world.is_first or not content:
            return earlier
        path.write_bytes(content)
        return checkpoint.load(path)


def _check_shares(recipe: Recipe, dataset: Dataset, world: World) -> None:
    start, stop = dataset.splits["train"]
    streams = fit_batch(stop - start - 1, recipe.train.batch, recipe.train.seq_length).batch
    if world.size > streams:
        raise RecipeError(
            f"{world.size} processes share the {streams} streams of a batch, and each needs at least one; start at most "
            f"{streams} processes, or use a larger train.batch"
        )


def _identity(recipe: Recipe, dataset: Dataset, resolved: Resolved, limits: Limits) -> dict[str, object]:
    """The values that all processes of a run must share: otherwise they wait for each other or train different models."""
    values = {key: value_at(recipe, key) for key, _ in fields() if key.partition(".")[0] not in ("corpus", "reported", "data")}
    is_native = resolved.engine == NativeEngine.name
    text = dataset.fingerprint()
    return values | {
        "text (sha256)": text["sha256"], "splits": text["splits"], "vocabulary": len(dataset.vocabulary),
        "engine": resolved.engine, "precision": resolved.precision, "device": resolved.device.type,
        "instruction set": library.choose() if is_native else torch.backends.cpu.get_cpu_capability(),
        "charlm": __version__, "torch": torch.__version__, "max_steps": limits.max_steps,
    }  # fmt: skip


def _earlier(options: Options, folder: RunFolder, notices: list[str]) -> Checkpoint | None:
    """The checkpoint to resume from; ``None`` for a new run."""
    holds_run = folder.holds_run()
    if options.resume == "never":
        if holds_run and not options.overwrite:
            raise UsageError(
                f"{folder.path} holds a run already",
                advice={
                    "resume it": {"resume": "auto"},
                    "move it aside": {"overwrite": True},
                    "use another folder": {"out": "DIR"},
                },
            )
        return None
    if options.resume == "auto" and not holds_run:
        return None
    earlier, problems = folder.load_newest()
    notices += problems
    return earlier


def _inherited(recipe: Recipe, earlier: Checkpoint | None, initial: Checkpoint | None, notices: list[str]) -> Recipe:
    """The recipe with the values that it takes from an earlier run or from initial weights."""
    if earlier is not None:
        recipe = defaults.restore_choices(recipe, earlier.recipe)
        notices += [f"changed since the run began: {change}" for change in reconcile(earlier.recipe, portable(recipe))]
    elif initial is not None:
        recipe = defaults.inherit_architecture(recipe, initial.recipe.model)
    return recipe


def _open(
    loaded: LoadedRecipe, given: Recipe, options: Options, earlier: Checkpoint | None, initial: Checkpoint | None
) -> Dataset:
    """Open the text, with the vocabulary of an earlier run or of initial weights."""
    source = earlier or initial
    recorded = None
    # Files that only the checkpoint names, and not the user, are read only if they are the recorded text.
    if earlier and isinstance(earlier.recipe.data.split, SplitFiles) and "split" not in given.data.model_fields_set:
        recorded = recorded_text(earlier.corpus, options.out)
    dataset = open_dataset(
        loaded,
        vocabulary=source.vocabulary if source else None,
        grow=initial is not None,
        verify=options.verify,
        recorded=recorded,
        fetch_progress=options.fetch_progress,
        encode_progress=options.encode_progress,
    )
    if earlier is not None:
        _check_same_text(earlier, dataset)
    return dataset


def _check_same_text(earlier: Checkpoint, dataset: Dataset) -> None:
    now = dataset.fingerprint()
    for key in ("sha256", "characters", "splits"):
        if earlier.corpus.get(key) != now[key]:
            raise RecipeError(
                f"the text of {dataset.name} is not the one this run was started with ({key} was {earlier.corpus.get(key)}, is "
                f"now {now[key]})",
                advice={
                    "restore the old text": {},
                    "start a new run": {"overwrite": True},
                    "start one from the weights of this run": {"overwrite": True, "init": "CHECKPOINT"},
                },
            )


def _planned(
    recipe: Recipe,
    given: Recipe,
    options: Options,
    earlier: Checkpoint | None,
    dataset: Dataset,
    resolved: Resolved,
    notices: list[str],
) -> Recipe:
    """The recipe with a length and defaults, if it has no length."""
    if earlier is not None and defaults.needs_plan(given) and given.train.time not in (None, earlier.recipe.train.time):
        recipe = budget.extend(recipe, earlier, dataset, resolved, options.limits, options.world)
    if not defaults.needs_plan(recipe):
        return recipe
    planned = defaults.with_defaults(recipe, budget.default_values(recipe, dataset, resolved, options.limits, options.world))
    notices.append("chosen for a text of this length: " + " ".join(defaults.chosen_overrides(recipe, planned)))
    return planned


def _model(
    recipe: Recipe,
    options: Options,
    earlier: Checkpoint | None,
    initial: Checkpoint | None,
    dataset: Dataset,
    resolved: Resolved,
    notices: list[str],
) -> LanguageModel:
    """The model on its device, with initial or stored weights."""
    if initial is not None and initial.vocabulary.unit != dataset.vocabulary.unit:
        raise RecipeError(
            f"{options.init}: this model reads {initial.vocabulary.unit}s, the recipe says data.unit: {recipe.data.unit}",
            parameter="init",
        )
    model = LanguageModel(recipe.model, len(dataset.vocabulary), resolved.engine)
    if earlier is not None:
        checkpoint.copy_weights(model, earlier.weights)
    else:
        model.initialise(recipe.train.seed)
    if initial is not None:
        notices.append(transplant(model, dataset.vocabulary, initial))
    model.to(resolved.device)
    model.flatten_for_cudnn()
    return model


def _about_shape(trainer: Trainer) -> list[str]:
    """A notice if the text is too small for the batch."""
    shape, train = trainer.batches.shape, trainer.recipe.train
    if not shape.shrunk:
        return []
    return [
        f"the training text is too small for batch {train.batch} × seq_length {train.seq_length}: shrunk to "
        f"{shape.batch} × {shape.seq_length}"
    ]


def _about_length(trainer: Trainer, earlier: Checkpoint) -> list[str]:
    """A notice if a resumed run has a new planned length, or no steps left."""
    before, now = Plan.of(earlier.recipe, trainer.batches).total_steps, trainer.plan.total_steps
    if before != now:
        lengths = [f"{steps:,} steps" if steps is not None else "limited by time only" for steps in (before, now)]
        schedule = trainer.recipe.train.schedule
        rate = (
            f"; from step {trainer.step + 1:,} on, the learning rate follows the {schedule} schedule of the new length"
            if SCHEDULES[schedule].needs_length
            else f"; the {schedule} learning rate does not depend on it"
        )
        return [f"the planned length is now {lengths[1]}, not {lengths[0]}{rate}"]
    if now is not None and trainer.step >= now:
        return [f"this run is finished, after {now:,} steps. To train it further, resume it with train.total_steps={2 * now}"]
    patience, worse = trainer.recipe.evaluate.patience, earlier.progress["worse_in_a_row"]
    if patience is not None and worse >= patience:
        return [
            f"this run is finished: {worse} evaluations in a row brought no new best. To train it further, resume it with "
            f"evaluate.patience={worse + patience}"
        ]
    return []
