"""charlm: train character-level recurrent language models, measure their perplexity exactly, sample from them.

    run = charlm.train("shakespeare", {"train.time": "60s"})
    model = charlm.load(run["checkpoint"])
    model.sample("ROMEO:\\n", length=200)

Text flows one way: data → model → training → checkpoint → evaluation and sampling. The command line (``charlm.cli``) uses the
same functions. ``import charlm`` is quick: PyTorch is imported when the first of them is used. See docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlm.errors import CharlmError
    from charlm.loaded import Model, info, load
    from charlm.training.run import train
    from charlm.tuning import tune

__version__ = "0.1.0"

__all__ = ["CharlmError", "Model", "__version__", "info", "load", "train", "tune"]

_HOMES = {
    "CharlmError": "charlm.errors",
    "Model": "charlm.loaded",
    "info": "charlm.loaded",
    "load": "charlm.loaded",
    "train": "charlm.training.run",
    "tune": "charlm.tuning",
}
"""Public name → the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'charlm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
