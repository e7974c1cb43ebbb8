"""Reopens the text that a checkpoint was trained on.

A checkpoint and its folder can come from anybody. A text that they name is used only if it consists of regular files with
the recorded size and sha256. These are compared before anything is written, or reported about the content.
"""

from __future__ import annotations

from collections.abc import Mapping
from glob import has_magic
from pathlib import Path
from typing import Any

from charlm.config import LoadedRecipe, Recipe, SplitFiles, is_path, load_recipe
from charlm.data.dataset import Dataset, open_dataset
from charlm.data.encoded import TextDigest
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CheckpointError, UsageError
from charlm.run_files import CONFIG


def open_recorded(recipe: Recipe, corpus: Mapping[str, Any], vocabulary: Vocabulary, checkpoint: Path) -> Dataset:
    """Open the text that a model was trained on.

    The text is identified by its card, or by ``config.yaml`` beside the checkpoint, which has its full path. The checkpoint
    itself stores only a name, which is looked up in its folder and in the current folder.

    Args:
        recipe: from the checkpoint.
        corpus: from the checkpoint: the description of the text (:meth:`charlm.data.dataset.Dataset.fingerprint`).
        vocabulary: of the model.
        checkpoint: path of the checkpoint.

    Raises:
        UsageError: the text is not found, or its name leads out of the folder.
        TextMismatchError: a different text is found.
        CheckpointError: the checkpoint does not record size and sha256.
    """
    recorded = recorded_text(corpus, checkpoint)
    config = checkpoint.parent / CONFIG
    if not any(_is_path(name) for name in _names(recipe)):
        named = recipe
    elif config.is_symlink():
        raise UsageError(f"{config} is a symbolic link; expected a regular file")
    elif config.is_file():
        beside = load_recipe(str(config), stored=True).recipe
        split = beside.data.split if isinstance(recipe.data.split, SplitFiles) else recipe.data.split
        data = recipe.data.model_copy(update={"split": split})
        named = recipe.model_copy(update={"corpus": beside.corpus, "data": data})
    else:
        for name in _names(recipe):
            _refuse_outside(name)
        named = recipe
    return open_dataset(
        LoadedRecipe(checkpoint.stem, named, checkpoint.parent.absolute()), vocabulary=vocabulary, recorded=recorded
    )


def recorded_text(corpus: Mapping[str, Any], checkpoint: Path) -> TextDigest:
    """Size and sha256 of the text that a checkpoint was trained on.

    Raises:
        CheckpointError: they are missing.
    """
    size, sha256 = corpus.get("bytes"), corpus.get("sha256")
    if not isinstance(size, int) or not isinstance(sha256, str):
        raise CheckpointError(f"{checkpoint} does not record the size and sha256 of its training text")
    return TextDigest(size, sha256)


def _refuse_outside(name: str) -> None:
    """Refuse a corpus name that leads out of the checkpoint's folder; charlm never writes one.

    Raises:
        UsageError: an absolute path, ``~``, ``..`` or a pattern.
    """
    path = Path(name)
    if path.is_absolute() or name.startswith("~") or ".." in path.parts or has_magic(name):
        raise UsageError(f"the checkpoint names the corpus {name!r}; expected a plain file or folder name")


def _names(recipe: Recipe) -> list[str]:
    split = recipe.data.split
    parts = [split.validation, split.test] if isinstance(split, SplitFiles) else []
    return [recipe.corpus, *(part for part in parts if part is not None)]


def _is_path(name: str) -> bool:
    return is_path(name) or has_magic(name)
