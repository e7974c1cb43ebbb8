"""The page: its sections in order, each a function of one run that returns HTML.

A section that cannot be made says why in its place, and the rest of the page is made all the same.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from charlm.errors import CharlmError
from charlm.evaluation.baselines import measure_baselines
from charlm.evaluation.texts import training_corpus
from charlm.report.charts import Series, line_chart, number, table
from charlm.report.run import Run
from charlm.yaml_text import dump_yaml

_SAMPLES = 5
"""Samples of the training that are shown: the first, the last, and some between."""


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        name: the address within the page (#name).
        title: its heading.
        make: run → HTML.
    """

    name: str
    title: str
    make: Callable[[Run], str]


def result(run: Run) -> str:
    """What the run reached."""
    final, model = run.final, run.model
    rows = [
        ("model", f"{model.network.layers[0].entry.title}, {model.recipe.model.hidden} units × {model.recipe.model.layers}"),
        ("parameters", f"{model.network.parameter_count():,}"),
        ("corpus", f"{model.checkpoint.corpus['name']}, {model.checkpoint.corpus['characters']:,} characters"),
        ("these weights", f"step {model.step:,}, epoch {model.checkpoint.progress['epoch']:.2f}"),
    ]
    if final:
        rows += [
            (f"{final['measured_on']} nats per character", f"{final['nats_per_character']:.4f}"),
            ("bits per character", f"{final['bits_per_character']:.4f}"),
            ("perplexity", f"{final['perplexity']:.3f}"),
            ("training nats per character", f"{final['train_nats']:.4f}"),
            ("ended", f"{final['stopped_because']}, step {final['step']:,}, after {final['seconds']:,.0f} s"),
            ("computed on", f"{final['device']}, engine {final['engine']}, {final['precision']}"),
        ]
    return table(["", ""], rows)


def recipe(run: Run) -> str:
    """The recipe, with every value."""
    text = dump_yaml(run.model.recipe.model_dump(mode="json"))
    return f"<details><summary>every value</summary><pre>{html.escape(text)}</pre></details>"


def learning(run: Run) -> str:
    """Loss, gradient norm and learning rate."""
    curves = run.curves()
    if not curves:
        return "<p>There is no log beside this checkpoint.</p>"
    settled = [nats for series in curves for step, nats in series.points if step >= curves[0].points[-1][0] / 50]
    span = (min(settled) - 0.05, max(settled) + 0.05)
    parts = [line_chart(curves, title="Loss during training", x="optimizer step", y="nats per character", y_range=span)]
    norms, rates = run.logged("gradient_norm"), run.logged("learning_rate")
    clip = run.model.recipe.train.clip
    lines = [Series("gradient norm before clipping", norms)]
    if clip is not None and norms:
        lines.append(Series(f"clipped above {clip:g}", [(norms[0][0], clip), (norms[-1][0], clip)]))
    parts.append(line_chart(lines, title="Gradient norm", x="optimizer step", y="norm", y_log=True))
    parts.append(line_chart([Series("learning rate", rates)], title="Learning rate", x="optimizer step", y="rate"))
    return "".join(parts)


def samples(run: Run) -> str:
    """Texts that were written during training."""
    found = run.samples()
    if not found:
        return "<p>No samples were recorded.</p>"
    places = sorted({round(index * (len(found) - 1) / max(1, _SAMPLES - 1)) for index in range(_SAMPLES)})
    return "".join(
        f"<h3>step {found[place][0]:,}</h3><p>{html.escape(found[place][1])}</p><pre>{html.escape(found[place][2])}</pre>"
        for place in places
    )


def baselines(run: Run) -> str:
    """The result beside what an n-gram and compressors need."""
    if run.text is None:
        return f"<p>{html.escape(run.why_no_text)}</p>"
    corpus = run.text.corpus or training_corpus(run.model.checkpoint, run.model.path, "the comparison with baselines")
    found = measure_baselines(corpus, run.text, lambda done, total: None)
    score = run.final.get("bits_per_character")
    rows = [("this model", number(score))] if score is not None and run.final["measured_on"] == "validation" else []
    rows += [(f"n-gram of order {found['ngram_order']}", number(found["ngram"]))]
    rows += [(name, number(found[name])) for name in ("xz", "bz2", "gzip")]
    rows += [("guessing among all symbols", number(math.log2(len(run.model.vocabulary))))]
    return table(["method", "bits per character"], rows, "on the validation text, after the same training text")


SECTIONS: tuple[Section, ...] = (
    Section("result", "Result", result),
    Section("learning", "Learning curves", learning),
    Section("baselines", "Against simple methods", baselines),
    Section("samples", "Samples during training", samples),
    Section("recipe", "Recipe", recipe),
)
"""The sections of a page about one run, in order. A new one is a function and a row here."""


def sections(run: Run, progress: Callable[[int, int], None]) -> list[tuple[Section, str]]:
    """Make all sections of one run."""
    made = []
    for done, section in enumerate(SECTIONS):
        progress(done, len(SECTIONS))
        try:
            content = section.make(run)
        except CharlmError as error:
            content = f"<p>{html.escape(str(error))}</p>"
        made.append((section, content))
    progress(len(SECTIONS), len(SECTIONS))
    return made


def _asset(name: str) -> str:
    return (Path(__file__).resolve().parent / name).read_text(encoding="utf-8")


def compared(runs: Sequence[Run]) -> str:
    """Several runs side by side: results, then curves in one picture."""
    keys = ["nats_per_character", "bits_per_character", "perplexity", "parameters", "step", "seconds"]
    rows = [[run.name, *(number(float(run.final[key])) if key in run.final else "–" for key in keys)] for run in runs]
    curves = [Series(run.name, series.points, series.dots) for run in runs for series in run.curves() if series.dots]
    curves = curves or [Series(run.name, series.points) for run in runs for series in run.curves()]
    chart = line_chart(curves, title="Validation loss", x="optimizer step", y="nats per character")
    return table(["run", *(key.replace("_", " ") for key in keys)], rows) + chart
