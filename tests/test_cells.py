"""The entries of the cells."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from charlm import cells
from charlm.cells import CELLS, CellEntry, entry_of
from charlm.config import ModelSection, json_schema
from charlm.model.engines import ENGINES
from charlm.model.native.interface import KINDS


def _section(entry: CellEntry, **more: Any) -> ModelSection:
    return ModelSection.model_validate({"cell": entry.cell, **entry.options, **more})


@pytest.mark.parametrize("entry", CELLS, ids=lambda entry: entry.name)
def test_a_recipe_chooses_each_form(entry: CellEntry) -> None:
    """If this fails, a form exists that no recipe can choose, or the recipe's keys choose another one."""
    assert entry_of(_section(entry)) is entry
    assert len({other.name for other in CELLS}) == len(CELLS)
    assert set(entry.options) == set(next(other for other in CELLS if other.cell == entry.cell).options)


def test_the_schema_lists_all_cells_and_options() -> None:
    """If this fails, editors and the help offer values that do not exist."""
    properties = json_schema()["$defs"]["ModelSection"]["properties"]
    assert tuple(properties["cell"]["enum"]) == cells.cell_names()
    for key in cells.option_keys():
        values = cells.option_values(key)
        assert properties[key]["default"] == ModelSection.model_fields[key].default == values[0]
        assert properties[key]["type"] == ("boolean" if isinstance(values[0], bool) else "string")
        if properties[key]["type"] == "string":
            assert tuple(properties[key].get("enum", [properties[key].get("const")])) == values
    for entry in CELLS:
        if "variant" in entry.options:
            assert f"`{entry.options['variant']}` ({entry.summary})" in properties["variant"]["description"]


def test_a_form_that_does_not_exist_is_refused() -> None:
    """If this fails, a wrong combination of options trains some other cell."""
    with pytest.raises(ValueError, match="there is no cell: qrnn"):
        entry_of(SimpleNamespace(cell="qrnn"))
    with pytest.raises(ValueError, match="there is no cell: gru with reset_after: maybe"):
        entry_of(SimpleNamespace(cell="gru", reset_after="maybe"))


@pytest.mark.parametrize("entry", CELLS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_without_a_kernel_are_refused_in_the_recipe(entry: CellEntry, engine: str) -> None:
    """If this fails, the schema accepts a recipe that its engine cannot run, and a later module fails."""
    if engine == "reference" or engine in entry.kernels:
        assert _section(entry, engine=engine).engine == engine
    else:
        with pytest.raises(ValueError, match=rf"engine: {engine} has no {entry.title}; use engine: auto or reference"):
            _section(entry, engine=engine)


def test_the_native_kernels_are_those_of_the_library() -> None:
    """If this fails, an entry names a kernel that the C++ does not have, or leaves one unused."""
    assert {entry.kernels["native"] for entry in CELLS if "native" in entry.kernels} == set(KINDS)


def test_a_form_is_named_by_what_differs_from_the_default() -> None:
    """If this fails, two forms of a cell look the same in plans, tables and errors."""
    gru = [entry for entry in CELLS if entry.cell == "gru"]
    assert [entry.label for entry in gru] == ["gru", "gru (reset_after: false)"]
    assert [entry.title for entry in gru] == ["GRU", "GRU with reset_after: false"]
    assert len({entry.label for entry in CELLS}) == len(CELLS)


def test_shapes_are_those_of_pytorch() -> None:
    """If this fails, checkpoints no longer fit, or G, H and D are confused."""
    (lstm,) = (entry for entry in CELLS if entry.name == "lstm")
    assert lstm.shapes(5, 3) == {"weight_ih": (20, 3), "weight_hh": (20, 5), "bias_ih": (20,), "bias_hh": (20,)}
    assert lstm.rows("f", 5) == slice(5, 10)
    assert lstm.step_parameters == ("weight_hh", "bias_hh")


def test_weights_that_a_cell_does_not_have_are_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, weight_drop is silently ignored for a cell without a recurrent matrix."""
    entry = CellEntry("bare", "lstm", {}, "for tests", ("h",), parameters={"matrix": ("H", "D")})
    monkeypatch.setattr(cells, "CELLS", (entry,))
    with pytest.raises(ValueError, match="weight_drop drops weights of weight_hh, which the LSTM does not have"):
        ModelSection(weight_drop=0.1)


def test_entries_need_no_torch() -> None:
    """If this fails, the help and the schema take seconds."""
    script = "import sys, charlm.cells; print(*sorted({'torch', 'numpy', 'pydantic'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
