"""Pictures, drawn with matplotlib (the extra ``plot``): ``--png``, and the learning curves of runs."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PngOption = Annotated[str | None, typer.Option(metavar="FILE", help="Draw a picture (needs matplotlib).")]


def picture_path(given: str | None) -> Path | None:
    """The path that ``--png`` names, checked before anything is computed.

    Raises:
        UsageError: matplotlib is missing, the path cannot be written, or it holds a file that charlm did not draw.
    """
    from charlm.config import path_of
    from charlm.training.own_files import may_draw

    if given is None:
        return None
    if not given:
        raise UsageError("--png is empty; expected a file, such as --png picture.png")
    if not has_matplotlib():
        raise UsageError("--png needs matplotlib: pip install 'charlm[plot]'")
    path = path_of(given)
    try:
        is_free = may_draw(path)
    except OSError as error:
        raise UsageError(f"--png {path}: cannot write: {error.strerror}") from None
    if not is_free:
        raise UsageError(f"--png {path} exists, and charlm did not draw it; choose another name")
    return path


def can_draw(path: Path) -> bool:
    """Whether matplotlib is installed, and no file of another program is at this path.

    Raises:
        OSError: the path cannot be read.
    """
    from charlm.training.own_files import may_draw

    return has_matplotlib() and may_draw(path)


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Figure:
    """An empty picture, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture atomically.

    Raises:
        UsageError: the file cannot be written.
    """
    from charlm.files import whole_file
    from charlm.training.own_files import PICTURE_SOFTWARE

    try:
        with whole_file(path) as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script that the font lacks
            figure.savefig(file, format="png", dpi=120, metadata={"Software": PICTURE_SOFTWARE})
    except OSError as error:
        raise UsageError(f"cannot write the picture {path}: {error.strerror}") from None
