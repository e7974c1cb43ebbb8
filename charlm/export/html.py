"""A trained model as one web page that runs it: no network, no other files.

The weights are in the page as base64. ``model.js`` has the cells' equations, ``live.js`` the view. The page's probabilities
are those of ``charlm sample --probabilities``: to 1e-5 with fp32 weights, to 1e-3 with fp16 weights (half the size).
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from charlm import __version__
from charlm.errors import UsageError
from charlm.files import whole_file
from charlm.loaded import Model
from charlm.sampling import start_ids

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "lstm_peephole", "lstm_coupled", "gru", "gru_reset_before")
"""The cells whose equations are in ``model.js``."""

_HERE = Path(__file__).resolve().parent
_MARK = '<meta name="generator" content="charlm '


def write_page(model: Model, path: Path, *, fp32: bool = False) -> int:
    """Write the page; replaces only a page that charlm wrote.

    Args:
        fp32: store weights in full precision, which doubles the size.

    Returns:
        The page's size in bytes.

    Raises:
        UsageError: another file is at ``path``; the model has a cell that the page cannot run, or weights beyond fp16.
    """
    if path.exists() and not is_page(path):
        raise UsageError(f"{path} exists, and is not a page that charlm wrote; choose another file", parameter="output")
    content = page(model, fp32=fp32).encode("utf-8")
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", parameter="output") from None
    return len(content)


def is_page(path: Path) -> bool:
    """Whether charlm wrote this web page."""
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(1000)
    except OSError:
        return False


def page(model: Model, *, fp32: bool = False) -> str:
    """The whole page; see :func:`write_page`."""
    section, title = model.recipe.model, _title(model)
    layers = f"{section.layers} layer{'s' * (section.layers > 1)}"
    facts = (
        f"{model.network.layers[0].entry.title}, {section.hidden} units, {layers}, "
        f"{model.network.parameter_count():,} parameters, {len(model.vocabulary)} symbols; trained on "
        f"{model.checkpoint.corpus['name']} for {model.step:,} steps; written by charlm {__version__}"
    )
    values = {
        "version": __version__,
        "title": html.escape(title),
        "facts": html.escape(facts),
        "style": _asset("live.css"),
        "body": live_section(model, fp32=fp32),
    }
    template = _asset("page.html")
    parts = template.split("{{")
    return parts[0] + "".join(values[name] + rest for name, _, rest in (part.partition("}}") for part in parts[1:]))


def live_section(model: Model, *, fp32: bool = False) -> str:
    """The part of the page that runs the model: markup, weights and scripts. A page holds one at most."""
    precision = "fp32" if fp32 else "fp16"
    weights = base64.b64encode(_weights(model, precision)).decode("ascii")
    description = json.dumps(describe(model, precision), ensure_ascii=True).replace("<", "\\u003c")
    return (
        f"{_asset('live.html')}"
        f'<script type="application/json" id="model">{description}</script>\n'
        f'<script type="text/plain" id="weights">{weights}</script>\n'
        f"<script>\n{_asset('model.js')}{_asset('live.js')}</script>\n"
    )


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
        "start": start_ids(vocabulary)[0],
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


def _title(model: Model) -> str:
    folder = model.path.resolve().parent.name
    return f"{folder}: a character-level language model"


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
