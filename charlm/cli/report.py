"""``charlm report``: one web page about a run, or about several."""

from __future__ import annotations

from typing import Annotated

import typer

from charlm.cli import completion
from charlm.cli.console import out, progress_bar, size, visible_word
from charlm.errors import UsageError


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", autocompletion=completion.runs, help="Runs: folders or names. Several are compared."),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The file to write.", show_default="report.html in the run's folder")
    ] = None,
) -> None:
    """Write one web page about a run: curves, samples, surprisal, gradients, gates, and the model itself to try.

    Examples:
        charlm report shakespeare
        charlm report mine-rnn mine-lstm -o report.html
    """
    from charlm.config import path_of
    from charlm.html.page import check_page_path, page_file
    from charlm.report.page import report as make
    from charlm.report.run import open_run

    opened = [open_run(name) for name in runs]
    if output is None and len(opened) > 1:
        raise UsageError("name the file for a report about several runs, such as -o report.html", parameter="output")
    path = path_of(output) if output is not None else opened[0].model.path.parent / "report.html"
    check_page_path(path, "output")
    with progress_bar("reporting", unit="sections") as advance:
        content = make(opened, advance).encode("utf-8", "backslashreplace")
    try:
        with page_file(path, "output") as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", parameter="output") from None
    out(visible_word(f"{path}: {size(len(content))}. Open it in a web browser; it needs no network."))
