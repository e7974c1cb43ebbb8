"""The text that a checkpoint was trained on, found again.

A checkpoint and the folder around it may come from anybody. So what they name is used only if it is the recorded text:
ordinary files of the recorded size and sha256, which are compared before anything is written or said of their content.
"""

from __future__ import annotations

from collections.abc import Mapping
from glob import has_magic
from pathlib import Path
from typing import Any

from charlm.config import LoadedRecipe, Recipe, SplitFiles, is_path, load_recipe
from charlm.data.dataset import Dataset, open_dataset
from charlm.data.encoding import Recorded
from charlm.data.vocabulary import Vocabulary
from charlm.errors import CheckpointError, UsageError
from charlm.run_files import CONFIG


def open_recorded(recipe: Recipe, corpus: Mapping[str, Any], vocabulary: Vocabulary, checkpoint: Path) -> Dataset:
    """Open the text that a model was trained on.

    A text is named by its card, or by the run's ``config.yaml`` beside the checkpoint, which has its full path; the checkpoint
    itself has only a name, which is looked for in its folder and in the current one.

    Args:
        recipe: in the checkpoint.
        corpus: in the checkpoint: what identifies the text (:meth:`charlm.data.dataset.Dataset.fingerprint`).
        vocabulary: of the model.
        checkpoint: its file.

    Raises:
        UsageError: the text is not found, or is named in a way that charlm does not follow.
        OtherTextError: what is found is another text.
        CheckpointError: the checkpoint does not say which text it was.
    """
    recorded = recorded_text(corpus, checkpoint)
    config = checkpoint.parent / CONFIG
    if not any(_is_path(name) for name in _names(recipe)):
        named = recipe
    elif config.is_symlink():
        raise UsageError(f"{config} is a symbolic link, which is not followed")
    elif config.is_file():
        beside = load_recipe(str(config), stored=True).recipe
        split = beside.data.split if isinstance(recipe.data.split, SplitFiles) else recipe.data.split
        data = recipe.data.model_copy(update={"split": split})
        named = recipe.model_copy(update={"corpus": beside.corpus, "data": data})
    else:
        for name in _names(recipe):
            refuse_outside(name)
        named = recipe
    return open_dataset(
        LoadedRecipe(checkpoint.stem, named, checkpoint.parent.absolute()), vocabulary=vocabulary, recorded=recorded
    )


def recorded_text(corpus: Mapping[str, Any], checkpoint: Path) -> Recorded:
    """Bytes and sha256 of the text that a checkpoint names.

    Raises:
        CheckpointError: it has none.
    """
    size, sha256 = corpus.get("bytes"), corpus.get("sha256")
    if not isinstance(size, int) or not isinstance(sha256, str):
        raise CheckpointError(f"{checkpoint} does not say which text it was trained on (size and sha256)")
    return Recorded(size, sha256)


def refuse_outside(name: str) -> None:
    """Refuse a name in a checkpoint that leads out of its folder; charlm writes none.

    Raises:
        UsageError: an absolute path, ``~``, ``..`` or a pattern.
    """
    path = Path(name)
    if path.is_absolute() or name.startswith("~") or ".." in path.parts or has_magic(name):
        raise UsageError(f"the checkpoint names it {name!r}; only the name of a file or folder is followed")


def _names(recipe: Recipe) -> list[str]:
    split = recipe.data.split
    parts = [split.validation, split.test] if isinstance(split, SplitFiles) else []
    return [recipe.corpus, *(part for part in parts if part is not None)]


def _is_path(name: str) -> bool:
    return is_path(name) or has_magic(name)
