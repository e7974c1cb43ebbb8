"""``charlm eval``: questions asked of a trained model, a module each."""

from __future__ import annotations

import typer

from charlm.cli.evaluate.attention import attention
from charlm.cli.evaluate.perplexity import perplexity
from charlm.cli.evaluate.probes import probes
from charlm.cli.evaluate.samples import samples
from charlm.cli.evaluate.units import units

evaluate_app = typer.Typer(help="Ask a trained model: how well does it predict a text?", no_args_is_help=True)


@evaluate_app.callback()
def _group() -> None:
    """Ask a trained model: how well does it predict a text?"""


for question in (perplexity, attention, units, probes, samples):
    evaluate_app.command()(question)
