"""``charlm eval``: questions asked of a trained model, a module each."""

from __future__ import annotations

from charlm.cli.evaluate.attention import attention
from charlm.cli.evaluate.context import context
from charlm.cli.evaluate.gates import gates
from charlm.cli.evaluate.gradients import gradients
from charlm.cli.evaluate.influence import influence
from charlm.cli.evaluate.perplexity import perplexity
from charlm.cli.evaluate.probes import probes
from charlm.cli.evaluate.samples import samples
from charlm.cli.evaluate.surprisal import surprisal
from charlm.cli.evaluate.units import units
from charlm.cli.help import App

evaluate_app = App(help="Test a trained model: predictions, memory, gates, units, samples.")


for question in (perplexity, surprisal, context, influence, gradients, gates, units, probes, samples, attention):
    evaluate_app.command()(question)
