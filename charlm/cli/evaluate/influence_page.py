"""The page of ``charlm eval influence``: point at a character to see what its prediction depended on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from charlm.cli.console import visible_word
from charlm.cli.evaluate.marked_text import LINE_END, percent, quoted, shown_symbols
from charlm.html.page import escape, json_data, page_file, page_head, page_tail

if TYPE_CHECKING:
    from charlm.evaluation.influence import Influence
    from charlm.evaluation.texts import EvaluationText

_STYLE = """
.text { cursor: pointer }
.text:focus-visible { outline: 2px solid var(--line) }
.text .before { color: var(--faint); cursor: default }
.text .chosen { outline: 2px solid var(--mark) }
label { margin-right: 1rem; display: inline-block }
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const text = document.getElementById("text"), panel = document.getElementById("panel");
const spans = text.querySelectorAll("span"), root = getComputedStyle(document.documentElement);
let chosen = data.before + data.told.length - 1;
function measure() { return document.querySelector("input[name=measure]:checked").value; }
function show(place) {
  if (!(place >= data.before && place < spans.length)) return;
  chosen = place;
  const values = data.measures[measure()][place - data.before];
  const most = Math.max(...values.map(Math.abs), 1e-9), hot = root.getPropertyValue("--hot");
  spans.forEach((span, at) => {
    const value = values[place - at - 1] || 0, share = Math.abs(value) / most;
    span.classList.toggle("chosen", at === place);
    span.style.backgroundColor = share < 0.02 ? "" :
      value < 0 ? `rgba(64, 140, 255, ${0.85 * share})` : `rgba(${hot}, ${0.85 * share})`;
  });
  const order = values.map((value, at) => [at, value]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 5);
  const listed = order.filter(([at, value]) => value).map(([at, value]) =>
    `‘${spans[place - at - 1].textContent}’ ${at + 1} back ${value}`);
  panel.textContent = data.told[place - data.before] + "\\n" + (listed.length ? listed.join(", ") : "depends on nothing here");
}
function at(event) { return [...spans].indexOf(event.target.closest("span")); }
text.addEventListener("pointerover", event => show(at(event)));
text.addEventListener("click", event => show(at(event)));
text.addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step) { event.preventDefault(); show(chosen + step); }
});
document.querySelectorAll("input").forEach(input => input.addEventListener("change", () => show(chosen)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(chosen));
show(chosen);
"""


def write_page(path: Path, found: Influence, evaluated: EvaluationText, unit: str) -> None:
    """A page with the explained characters and, before them, those that were tried for the first."""
    P, D = found.divergence.shape
    first = max(0, found.start - D)
    symbols = shown_symbols(evaluated, first, found.start + P, unit)
    before = found.start - first
    measures = {"replaced": found.divergence, "gradient": found.gradient}
    if found.attention is not None:
        measures["attention"] = found.attention
    told = [
        f"{quoted(symbol)}: {nats / math.log(2):.2f} bits, probability {percent(math.exp(-nats))}"
        for symbol, nats in zip(symbols[before:], found.nats.tolist(), strict=True)
    ]
    labels = {
        "replaced": f"replaced by {found.replacements} others: divergence in nats",
        "gradient": "gradient × input (blue: makes the character likelier)",
        "attention": "attention's weights",
    }
    choices = "".join(
        f'<label><input type="radio" name="measure" value="{name}"{" checked" * (name == "replaced")}> {labels[name]}</label>'
        for name in measures
    )
    text = "".join(
        f'<span class="{"before" if place < before else ""}">{escape(symbol)}</span>' + "\n" * (symbol == LINE_END)
        for place, symbol in enumerate(symbols)
    )
    rounded = {name: [[float(f"{value:.2e}") for value in row] for row in values.tolist()] for name, values in measures.items()}
    page = (
        page_head(f"Influence in {visible_word(evaluated.name)}", style=_STYLE, script=_SCRIPT),
        f'<p class="faint">Point at a character, or move with the arrow keys: the characters that its prediction depended on '
        f"are marked. At most {D} characters back.</p>\n<p>{choices}</p>\n",
        '<div class="panel" id="panel" aria-live="polite"></div>\n',
        f'<div class="text" id="text" tabindex="0">{text}</div>\n',
        json_data("data", {"before": before, "told": told, "measures": rounded}),
        page_tail(_SCRIPT),
    )
    with page_file(path) as file:
        file.write("".join(page).encode("utf-8", "backslashreplace"))
