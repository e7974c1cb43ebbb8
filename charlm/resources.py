"""Finds the files that are shipped with the package: recipes (``configs/``) and corpus cards (``corpora/``).

In an installed wheel both folders are inside the package. In a source tree, and after ``pip install -e``, they are beside it.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """Return the folder ``configs`` or ``corpora``, in the installed package or the source tree."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def shipped_files(name: str) -> dict[str, Path]:
    """Return the YAML files of ``configs`` or ``corpora``: bare name → path."""
    return {path.stem: path for path in sorted(shipped_folder(name).glob("*.yaml"))}
