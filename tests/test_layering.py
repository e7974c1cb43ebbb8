"""The picture in docs/architecture.md stays true: imports point one way, and help is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import charlm

PACKAGE = Path(charlm.__file__).parent

STAGES = [
    {"errors", "cells", "progress"},
    {"files", "optimizers", "resources", "run_files", "schedules", "yaml_text", "config", "distributed", "threads", "runtime"},
    {"data", "html"},
    {"model"},
    {"checkpoint"},
    {"evaluation", "sampling"},
    {"loaded", "training"},
    {"bench", "comparison", "export", "tuning", "writing"},
    {"report"},
    {"cli"},
]
"""From the first to the last: a module may import from its own stage and from those before it."""

RANK = {name: rank for rank, names in enumerate(STAGES) for name in names}
ENTRY = {"__init__", "__main__"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _place(path: Path) -> str:
    """The module or package directly under ``charlm`` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too."""
    package = ["charlm", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def _home(name: str) -> str:
    """The module behind one of the names that ``charlm`` itself offers, such as ``charlm.train``."""
    return charlm._HOMES.get(name.removeprefix("charlm."), name)


def test_every_module_has_a_stage() -> None:
    """If this fails, a new module is missing in the order of imports: give it a stage here and in docs/architecture.md."""
    assert {_place(path) for path in MODULES} - ENTRY <= RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    """If this fails, an earlier stage has come to depend on a later one, and neither can be understood alone."""
    here = _place(path)
    own = len(STAGES) if here in ENTRY else RANK.get(here, -1)
    used = {name.split(".")[1] for name in map(_home, _imported(path)) if name.startswith("charlm.")}
    later = {name for name in used & RANK.keys() if RANK[name] > own}
    assert not later, f"{path.relative_to(PACKAGE)} imports from a later stage: {sorted(later)}"


def test_imports_inside_the_configuration_point_one_way() -> None:
    """If this fails, modules of ``charlm.config`` import each other in a circle, or import the whole package."""
    modules = [path for path in (PACKAGE / "config").glob("*.py") if path.stem != "__init__"]
    graph = {}
    for path in modules:
        names = [name.split(".") for name in _imported(path)]
        graph[path.stem] = {parts[2] for parts in names if parts[:2] == ["charlm", "config"]}
        assert graph[path.stem] <= {other.stem for other in modules}, path.stem
    assert graph["loading"] >= {"overrides", "recipe"}, "imports are not found"
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", [p for p in MODULES if _place(p) != "cli"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_knows_the_terminal(path: Path) -> None:
    """If this fails, a library module prints or parses arguments, and cannot be used without a terminal."""
    roots = {name.split(".")[0] for name in _imported(path)}
    assert not roots & {"typer", "rich", "click"}


def test_the_checks_above_see_imports_in_functions() -> None:
    """If this fails, the layering tests look past the imports that are most easily hidden."""
    assert "charlm.training.start.start" in _imported(PACKAGE / "cli" / "train.py")
    assert "charlm.cli.app.run" in _imported(PACKAGE / "__main__.py")


def test_help_does_not_wait_for_torch() -> None:
    """If this fails, ``charlm --help`` and shell completion take seconds."""
    script = "import sys, charlm.cli.app; print(*sorted({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
