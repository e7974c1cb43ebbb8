"""The paths in a recipe, as checkpoints and ``config.yaml`` store them."""

from __future__ import annotations

from pathlib import Path

from charlm.config import LoadedRecipe, Recipe, SplitFiles, is_path, path_of
from charlm.files import is_utf8


def portable(recipe: Recipe) -> Recipe:
    """The recipe as a checkpoint stores it: absolute paths, and paths with ``..``, are reduced to names."""
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
    """The recipe as ``config.yaml`` stores it: absolute paths, so that its texts are found from any current folder."""
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
    # YAML cannot hold a path that is not UTF-8. Such a text is found from the recipe's folder only.
    return absolute if is_utf8(absolute) else path
