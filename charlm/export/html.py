"""A trained model as one web page that runs it: no network, no other files.

The weights are in the page as base64. ``model.js`` has the cells' equations, ``live.js`` the view. The page's probabilities
are those of ``charlm sample --probabilities``: to 1e-5 with fp32 weights, to 1e-3 with fp16 weights (half the size).
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from charlm import __version__
from charlm.errors import UsageError
from charlm.html.page import escape, json_data, page_file, page_head, page_tail
from charlm.loaded import Model
from charlm.sampling import opening

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "lstm_peephole", "lstm_coupled", "gru", "gru_reset_before")
"""The cells whose equations are in ``model.js``."""

_HERE = Path(__file__).resolve().parent


def write_page(model: Model, path: Path, *, fp32: bool = False) -> int:
    """Write the page; replaces only a page that charlm wrote.

    Args:
        fp32: store weights in full precision, which doubles the size.

    Returns:
        The page's size in bytes.

    Raises:
        UsageError: another file is at ``path``; the model has a cell that the page cannot run, or weights beyond fp16.
        OSError: it cannot be written.
    """
    content = page(model, fp32=fp32).encode("utf-8")
    with page_file(path, parameter="output") as file:
        file.write(content)
    return len(content)


def page(model: Model, *, fp32: bool = False) -> str:
    """The whole page; see :func:`write_page`."""
    section = model.recipe.model
    layers = f"{section.layers} layer{'s' * (section.layers > 1)}"
    facts = (
        f"{model.network.layers[0].entry.title}, {section.hidden} units, {layers}, "
        f"{model.network.parameter_count():,} parameters, {len(model.vocabulary)} symbols; trained on "
        f"{model.checkpoint.corpus['name']} for {model.step:,} steps; written by charlm {__version__}"
    )
    title = f"{model.path.resolve().parent.name}: a character-level language model"
    head = page_head(title, style=live_style(), script=live_script())
    return f'{head}<p class="faint">{escape(facts)}</p>\n{live_section(model, fp32=fp32)}{page_tail(live_script())}'


def live_section(model: Model, *, fp32: bool = False) -> str:
    """The part of a page that runs the model: markup and weights. A page holds one at most.

    The page also needs :func:`live_style`, and :func:`live_script` at its end.
    """
    precision = "fp32" if fp32 else "fp16"
    weights = base64.b64encode(_weights(model, precision)).decode("ascii")
    description = json_data("model", describe(model, precision))
    return f'{_asset("live.html")}{description}<script type="text/plain" id="weights">{weights}</script>\n'


def live_style() -> str:
    """CSS of :func:`live_section`."""
    return _asset("live.css")


def live_script() -> str:
    """The script that runs a page's :func:`live_section`."""
    return _asset("model.js") + _asset("live.js")


def describe(model: Model, precision: str) -> dict[str, Any]:
    """What ``model.js`` must know beside the weights.

    Raises:
        UsageError: it has no equations for the model's cell.
    """
    entry, section, vocabulary = model.network.layers[0].entry, model.recipe.model, model.vocabulary
    if entry.name not in CELLS:
        raise UsageError(f"a page cannot run the cell {entry.title} yet; it runs {', '.join(CELLS)}")
    symbols = [vocabulary.symbol_of(index) for index in range(len(vocabulary))]
    return {
        "cell": entry.name,
        "gates": list(entry.gates),
        "state": list(entry.state),
        "hidden": section.hidden,
        "layers": section.layers,
        "size": len(vocabulary),
        "residual": bool(section.residual),
        "attention": section.attention or 0,
        "unit": vocabulary.unit,
        "symbols": symbols,
        "unknown": vocabulary.unknown_id,
        "start": opening(vocabulary, [])[0],
        "separator": vocabulary.separator_id,
        "precision": precision,
        "tensors": [[name, list(weight.shape)] for name, weight in model.network.named_parameters()],
        "initial": next((prompt for prompt in model.recipe.sample.prompts if prompt), ""),
    }


def _weights(model: Model, precision: str) -> bytes:
    parts = [weight.detach().float().cpu().numpy().ravel() for weight in model.network.parameters()]
    values = np.concatenate(parts)
    if not np.isfinite(values).all():
        raise UsageError("the model's weights are NaN or infinite; choose another checkpoint")
    if precision == "fp32":
        return values.astype("<f4").tobytes()
    if np.abs(values).max() > np.finfo(np.float16).max:
        raise UsageError("the model has weights that are too large for fp16; store them in fp32", parameter="fp32")
    return values.astype("<f2").tobytes()


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
