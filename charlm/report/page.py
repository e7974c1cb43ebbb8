"""The page: its sections in order, each a function of one run that returns HTML.

A section that cannot be made says why in its place; the rest of the page is made all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from charlm import __version__
from charlm.data.dataset import Text
from charlm.errors import CharlmError
from charlm.evaluation.baselines import measure_baselines
from charlm.evaluation.context import context as measure_context
from charlm.evaluation.gates import gates as measure_gates
from charlm.evaluation.gradients import gradients as measure_gradients
from charlm.evaluation.samples import draw
from charlm.evaluation.samples import novelty as measure_novelty
from charlm.evaluation.surprisal import surprisal as measure_surprisal
from charlm.evaluation.texts import training_corpus
from charlm.evaluation.units import trace
from charlm.evaluation.units import units as measure_units
from charlm.export.html import live_script, live_section, live_style
from charlm.html.page import escape, page_head, page_tail
from charlm.progress import Progress
from charlm.report.charts import Series, line_chart, number, table
from charlm.report.run import Run
from charlm.sampling import SamplingParams
from charlm.yaml_text import dump_yaml

PASSAGE = 1_500
"""Symbols of the validation text whose surprisal is shown."""

READ = 50_000
"""Symbols of the validation text that gates are measured on, at most."""

_SAMPLES = 5  # the first, the last, and some between


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        name: its address within the page, ``#name``.
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


def learning(run: Run) -> str:
    """Loss, gradient norm and learning rate."""
    curves = run.curves()
    if not curves:
        return _paragraph("There is no log beside this checkpoint.")
    settled = [nats for series in curves for step, nats in series.points if step >= curves[0].points[-1][0] / 50]
    span = (min(settled) - 0.05, max(settled) + 0.05)
    norms, rates = run.logged("gradient_norm"), run.logged("learning_rate")
    clip = run.model.recipe.train.clip
    lines = [Series("before clipping", norms)]
    if clip is not None and norms:
        lines.append(Series(f"clipped above {clip:g}", [(norms[0][0], clip), (norms[-1][0], clip)]))
    return (
        line_chart(curves, title="Loss during training", x="optimizer step", y="nats per character", y_range=span)
        + line_chart(lines, title="Gradient norm", x="optimizer step", y="norm", y_log=True)
        + line_chart([Series("learning rate", rates)], title="Learning rate", x="optimizer step", y="rate")
    )


def baselines(run: Run) -> str:
    """The result beside what an n-gram and compressors need."""
    text = run.validation
    corpus = text.corpus or training_corpus(run.model.checkpoint, run.model.path)
    found = measure_baselines(corpus, text, lambda done, total: None)
    final = run.final
    rows = [("this model", number(final["bits_per_character"]))] if final and final["measured_on"] == "validation" else []
    rows += [(f"n-gram of order {found['ngram_order']}", number(found["ngram"]))]
    rows += [(name, number(found[name])) for name in ("xz", "bz2", "gzip")]
    rows += [("a guess among all symbols", number(math.log2(len(run.model.vocabulary))))]
    return table(["method", "bits per character"], rows, "on the validation text, after the same training text")


def samples(run: Run) -> str:
    """Texts that were written during training."""
    found = run.samples()
    if not found:
        return _paragraph("No samples were recorded.")
    places = sorted({round(index * (len(found) - 1) / max(1, _SAMPLES - 1)) for index in range(_SAMPLES)})
    parts = []
    for step, heading, text in (found[place] for place in places):
        parts.append(f"<h3>step {step:,}</h3>\n<p class='faint'>{escape(heading)}</p>\n<pre>{escape(text)}</pre>\n")
    return "".join(parts)


def surprisal(run: Run) -> str:
    """A passage coloured by surprisal."""
    text, vocabulary = run.validation.text, run.model.vocabulary
    found = measure_surprisal(run.model.network, _first(text, PASSAGE), alternatives=3)
    ids = text.ids(0, len(found.nats) + 1).tolist()
    pieces = [escape(_plain(vocabulary.shown(ids[0])))]
    rows = zip(ids[1:], found.nats.tolist(), found.alternatives.tolist(), found.probabilities.tolist(), strict=True)
    for index, nats, others, shares in rows:
        bits = nats / math.log(2)
        instead = ", ".join(f"{_plain(vocabulary.shown(i))} {p:.0%}" for i, p in zip(others, shares, strict=True))
        symbol = _plain(vocabulary.shown(index))
        about = escape(f"{symbol}: {bits:.2f} bits, {2**-bits:.1%}; instead: {instead}")
        pieces.append(f'<span class="b{min(8, int(bits))}" title="{about}">{escape(symbol)}</span>' + "\n" * (symbol == "↵"))
    return (
        _paragraph("The stronger the colour, the more bits the character took. Point at one to see what was likelier.")
        + f'<div class="text passage">{"".join(pieces)}</div>\n'
    )


def gradients(run: Run) -> str:
    """How far back a loss reaches."""
    found = measure_gradients(run.model.network, run.validation.text)
    charts = []
    for name in dict.fromkeys(flow.state for flow in found.flows):
        series = []
        for flow in (flow for flow in found.flows if flow.state == name):
            distances = found.distances.tolist()
            kept = [k for k in distances if k <= 100 or k % 10 == 0]
            series.append(
                Series(
                    f"layer {flow.layer}",
                    [(float(k), float(flow.median[k])) for k in kept],
                    band=[(float(k), float(flow.lower_quartile[k]), float(flow.upper_quartile[k])) for k in kept],
                )
            )
        title = f"Gradient of a loss with respect to the state {name}, k characters before: median and quartiles"
        charts.append(line_chart(series, title=title, x="k characters back", y="norm", y_log=True, y_range=_norms(series)))
    rows = [[f"{flow.layer}", flow.state, "never" if flow.half_life is None else f"{flow.half_life}"] for flow in found.flows]
    theory = [[f"{rate.layer}", rate.name, number(rate.factor)] for rate in found.rates]
    return (
        "".join(charts)
        + table(["layer", "state", "half-life in characters"], rows)
        + table(["layer", "factor per step in theory", "mean"], theory)
    )


def _norms(series: Sequence[Series]) -> tuple[float, float] | None:
    """The range of norms that a chart shows: whatever is 1e-18 of the largest is nothing in fp32 arithmetic."""
    largest = max((value for one in series for _, value in one.points if math.isfinite(value)), default=0.0)
    smallest = min((value for one in series for _, value in one.points if value > 0), default=0.0)
    return (max(smallest, largest * 1e-18), largest * 1.5) if largest > 0 else None


def gates(run: Run) -> str:
    """What the gates do."""
    found = measure_gates(run.model.network, _first(run.validation.text, READ))
    parts = []
    for layer in dict.fromkeys(gate.layer for gate in found.gates):
        own = [gate for gate in found.gates if gate.layer == layer]
        bins = len(own[0].histogram)
        series = [Series(gate.name, [((i + 0.5) / bins, float(v)) for i, v in enumerate(gate.histogram)]) for gate in own]
        parts.append(line_chart(series, title=f"Values of the gates in layer {layer}", x="value", y="share of all values"))
        kept = [(gate, memory) for gate in own if (memory := gate.memory) is not None]
        for gate, memory in kept:
            longest = [f"{unit}: {number(float(memory[unit]))}" for unit in gate.longest(5)]
            parts.append(
                _paragraph(f"Memory in steps, the longest (layer {layer}, gate {gate.name}, unit): {'; '.join(longest)}")
            )
    rows = [[f"{gate.layer}", gate.name, number(gate.mean), f"{gate.below:.1%}", f"{gate.above:.1%}"] for gate in found.gates]
    if rows:
        parts.append(table(["layer", "gate", "mean", "below 0.1", "above 0.9"], rows))
    changes = [[f"{change.layer}", change.state, f"{change.mean:.1%}"] for change in found.changes]
    return "".join(parts) + table(["layer", "state", "change per step"], changes)


def context(run: Run) -> str:
    """How much history the predictions use."""
    found = measure_context(run.model.network, run.validation.text)
    series = [
        Series(name, [(float(max(k, 0.5)), float(nats)) for k, nats in zip(found.distances, values, strict=True)], dots=True)
        for name, values in (("cut", found.cut), ("shuffled", found.shuffled), ("replaced", found.replaced))
    ]
    ends = (float(max(found.distances[0], 0.5)), float(found.distances[-1]))
    series.append(Series("full history", [(end, found.full) for end in ends]))
    length = (
        "not measured: the text is too short" if found.effective_context is None else f"{found.effective_context} characters"
    )
    return (
        _paragraph(f"Effective context, the shortest history within 1 % of the full loss: {length}.")
        + _paragraph("Only the last k characters are as they were: before them the history is cut, shuffled or replaced.")
        + line_chart(
            series, title="Loss with the last k characters", x="k (0 at the left end)", y="nats per character", x_log=True
        )
    )


def units(run: Run) -> str:
    """What single units track, and the text in the colours of the best one."""
    evaluated, model = run.validation, run.model
    found = measure_units(model.network, evaluated.text, evaluated.symbols)
    rows = [
        [score.feature, f"{score.layer}:{score.unit}", score.state, score.measure, f"{score.score:.3f}", f"{score.chance:.3f}",
         f"{score.untrained:.3f}"]
        for score in found.scores
    ]  # fmt: skip
    best = found.scores[0]
    values = trace(model.network, evaluated.text, best.state, best.layer, best.unit, *best.passage)
    ids = evaluated.text.ids(*best.passage).tolist()
    largest = max(float(abs(values).max()), 1e-12)
    pieces = []
    for index, value in zip(ids, values.tolist(), strict=True):
        symbol = _plain(model.vocabulary.shown(index))
        kind = "b" if value >= 0 else "c"
        pieces.append(f'<span class="{kind}{round(8 * abs(value) / largest)}" title="{value:.3f}">{escape(symbol)}</span>')
        pieces.append("\n" * (symbol == "↵"))
    return (
        table(["feature", "unit", "state", "measure", "score", "chance", "untrained network"], rows)
        + _paragraph(f"{best.feature}: unit {best.layer}:{best.unit}, state {best.state}. Orange above 0, blue below.")
        + f'<div class="text passage">{"".join(pieces)}</div>\n'
    )


def novelty(run: Run) -> str:
    """Whether samples are copied, and well formed."""
    model = run.model
    corpus = training_corpus(model.checkpoint, model.path)
    training = corpus.encoded.symbols(*corpus.splits["train"])
    held_out = run.validation
    drawn = draw(model.network, model.vocabulary, SamplingParams(0.8), 1, 10, 1000)
    found = measure_novelty(drawn, training, held_out.symbols, model.vocabulary.unit)
    both = [quality for quality in (found.samples, found.heldout) if quality is not None]

    def row(name: str, values: Sequence[float | None]) -> list[str]:
        return [name, *("–" if value is None else f"{value:.1%}" for value in values)]

    rows = [["longest match, characters", *(str(max((m.length for m in q.matches), default=0)) for q in both)]]
    rows += [row(f"new {n}-grams", [quality.new[n] for quality in both]) for n in found.samples.new]
    for name, title in (("brackets", "brackets closed"), ("environments", "LaTeX environments closed"),
                        ("python", "Python functions that parse"), ("words", "words of the training text")):  # fmt: skip
        values = [getattr(quality, name) for quality in both]
        if any(value is not None for value in values):
            rows.append(row(title, values))
    heads = ["", "samples", "held-out text"][: 1 + len(both)]
    return _paragraph("Ten samples of 1,000 characters, temperature 0.8, seed 1.") + table(heads, rows)


def recipe(run: Run) -> str:
    """The recipe, with every value."""
    text = dump_yaml(run.model.recipe.model_dump(mode="json"))
    return f"<details><summary>every value</summary><pre>{escape(text)}</pre></details>\n"


def live(run: Run) -> str:
    """The model itself."""
    return live_section(run.model)


SECTIONS: tuple[Section, ...] = (
    Section("result", "Result", result),
    Section("learning", "Learning curves", learning),
    Section("baselines", "Compared with simple methods", baselines),
    Section("samples", "Samples during training", samples),
    Section("surprisal", "What surprises the model", surprisal),
    Section("gradients", "Gradient flow", gradients),
    Section("gates", "Gates", gates),
    Section("context", "Context", context),
    Section("units", "What single units track", units),
    Section("novelty", "Are samples copied?", novelty),
    Section("recipe", "Recipe", recipe),
    Section("live", "Try the model", live),
)
"""The sections of a page about one run, in order. To add one, write its function and a row here."""


def report(runs: Sequence[Run], progress: Progress | None = None) -> str:
    """A page about one run, or about several side by side.

    Args:
        progress: is told how many sections are done.
    """
    told = progress or (lambda done, total: None)
    chosen = SECTIONS if len(runs) == 1 else [section for section in SECTIONS if section.name in _SIDE_BY_SIDE]
    total, done = len(chosen) * len(runs), 0
    body = [_side_by_side(runs)] if len(runs) > 1 else []
    for place, run in enumerate(runs):
        if len(runs) > 1:
            body.append(f"<h1>{escape(run.name)}</h1>\n")
        for section in chosen:
            told(done, total)
            try:
                content = section.make(run)
            except CharlmError as error:
                content = _paragraph(str(error))
            address = section.name if len(runs) == 1 else f"{section.name}-{place}"
            body.append(f'<section id="{address}">\n<h2>{escape(section.title)}</h2>\n{content}</section>\n')
            done += 1
    told(total, total)
    title = "Report: " + ", ".join(run.name for run in runs)
    has_live = len(runs) == 1
    style = _asset("report.css") + (live_style() if has_live else "")
    script = _asset("report.js") + (live_script() if has_live else "")
    about = f'<p class="faint">Written by charlm {__version__}. This page makes no request.</p>\n'
    return page_head(title, style=style, script=script) + about + _contents(runs, chosen) + "".join(body) + page_tail(script)


_SIDE_BY_SIDE = ("learning", "gradients", "gates", "context", "recipe")
"""Sections that each run of several gets after the comparison."""


def _contents(runs: Sequence[Run], chosen: Sequence[Section]) -> str:
    if len(runs) > 1:
        return ""
    entries = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in chosen)
    return f"<nav aria-label='Contents'><ul>{entries}</ul></nav>\n"


def _side_by_side(runs: Sequence[Run]) -> str:
    keys = ["nats_per_character", "bits_per_character", "perplexity", "parameters", "step", "seconds"]
    rows = [[run.name, *(number(float(run.final[key])) if key in run.final else "–" for key in keys)] for run in runs]
    wanted = [(run, series) for run in runs for series in run.curves()]
    dotted = [Series(run.name, series.points, series.dots) for run, series in wanted if series.dots]
    chart = line_chart(dotted, title="Validation loss", x="optimizer step", y="nats per character")
    return f"<h2>Side by side</h2>\n{table(['run', *(key.replace('_', ' ') for key in keys)], rows)}{chart}"


def _first(text: Text, count: int) -> Text:
    return text[slice(0, min(count, len(text)))]


def _plain(symbol: str) -> str:
    """A symbol as it is shown: line ends and control characters visible."""
    return {"\n": "↵", "\t": "⇥"}.get(symbol, symbol if symbol.isprintable() else f"\\u{ord(symbol[0]):04x}")


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def _asset(name: str) -> str:
    return (Path(__file__).resolve().parent / name).read_text(encoding="utf-8")
