"""Every engine gives what the reference engine gives: outputs, states and gradients, to stated tolerances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from charlm import cells
from charlm.config import ModelSection
from charlm.errors import UsageError
from charlm.loaded import load
from charlm.model.engines import ENGINES, for_cudnn, for_persistent_kernel, one_block, resolve_engine
from charlm.model.native import library
from charlm.runtime import arithmetic, resolve_precision

CPU = torch.device("cpu")
V, H, T, B = 7, 8, 12, 3

CELLS: dict[str, dict[str, Any]] = {
    "rnn_tanh": {"cell": "rnn"},
    "rnn_relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
}
INPUTS: dict[str, dict[str, Any]] = {
    "one-hot": {"input": "one-hot"},
    "embedding": {"input": "embedding", "embedding": 5},
    "embedding wider than V": {"input": "embedding", "embedding": 9},
    "tied": {"tied": True},
}
GRU_BEFORE = ModelSection(cell="gru", reset_after=False)
NATIVE_ONLY = [GRU_BEFORE, ModelSection(variant="peephole"), ModelSection(variant="coupled")]
OTHERS = [name for name in ENGINES if name != "reference"]


def _ids() -> torch.Tensor:
    return torch.randint(V, (T, B), generator=torch.Generator().manual_seed(1))


def _results(model: Any, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """Logits, final state, and the gradients of a loss that depends on both, from a state that is not zero."""
    rng = torch.Generator().manual_seed(2)
    state = tuple(torch.randn(part.shape, generator=rng).requires_grad_() for part in model.zero_state(B))
    with arithmetic(precision, CPU):
        logits, last = model(_ids(), state)
    logits = logits.float()
    weights = torch.randn(logits.shape, generator=rng)
    loss = (logits * weights).sum() + sum(((part * (1 + n)) ** 2).sum() for n, part in enumerate(last))
    loss.backward()
    found = {"logits": logits.detach()}
    found |= {f"state {n}": part.detach() for n, part in enumerate(last)}
    found |= {f"gradient of state {n}": part.grad for n, part in enumerate(state)}
    return found | {f"gradient of {name}": weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_an_engine_gives_what_the_reference_gives(
    network: Callable[..., Any], cell: str, layers: int, inputs: str, engine: str
) -> None:
    """If this fails, a model means something else under another engine (1e-5 of the largest value, fp32)."""
    section = {"hidden": H, "layers": layers, **CELLS[cell], **INPUTS[inputs]}
    if why_not := ENGINES[engine].why_not(ModelSection(**section), CPU):
        pytest.skip(why_not)
    mine = _results(network(V, engine, **section))
    truth = _results(network(V, "reference", **section))
    assert mine.keys() == truth.keys()
    for name, expected in truth.items():
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(mine[name], expected, rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_move_to_torch_nn_unchanged(network: Callable[..., Any], cell: str, engine: str) -> None:
    """If this fails, names, shapes or gate order are not PyTorch's, and checkpoints cannot be used there."""
    section: dict[str, Any] = {"hidden": H, "layers": 2, "input": "embedding", "embedding": 5, **CELLS[cell]}
    if why_not := ENGINES[engine].why_not(ModelSection(**section), CPU):
        pytest.skip(why_not)
    model = network(V, engine, **section)
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}.get(section["cell"], nn.RNN)
    options = {"nonlinearity": section.get("nonlinearity", "tanh")} if kind is nn.RNN else {}
    theirs = kind(5, H, num_layers=2, **options)
    for number, layer in enumerate(model.layers):
        for name, weight in layer.named_parameters():
            own = getattr(theirs, f"{name}_l{number}")
            assert own.shape == weight.shape
            own.data.copy_(weight.data)
    with torch.no_grad():
        features, state = model.features(_ids(), model.zero_state(B))
        expected, last = theirs(model.embedding[_ids()])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    for mine, other in zip(state, last if isinstance(last, tuple) else (last,), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", [*CELLS, "gru_reset_before"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_is_close_to_fp32(network: Callable[..., Any], cell: str, engine: str) -> None:
    """If this fails, training in bf16 follows other gradients, or the carried state is not kept in fp32."""
    section: dict[str, Any] = {"hidden": 32, **CELLS.get(cell, {"cell": "gru", "reset_after": False})}
    if why_not := ENGINES[engine].why_not(ModelSection(**section), CPU):
        pytest.skip(why_not)
    exact = _results(network(V, engine, **section))
    rough = _results(network(V, engine, **section), "bf16")
    for name, expected in exact.items():
        assert rough[name].dtype == torch.float32, name
        error = (rough[name] - expected).norm() / expected.norm()
        # A unit of the ReLU near its kink changes sides by rounding alone, and its whole gradient with it.
        assert error < (0.08 if cell == "rnn_relu" else 0.03), f"{name}: relative error {error:.3f}"
    assert not torch.equal(rough["logits"], exact["logits"]), "bf16 was not used at all"


@pytest.mark.parametrize("engine", ENGINES)
def test_double_precision_stays_double(network: Callable[..., Any], engine: str) -> None:
    """If this fails, an engine silently rounds to fp32, and numeric gradients cannot be checked through it."""
    model = network(V, engine, hidden=H, layers=2).double()
    if engine == "native":  # it has kernels for fp32 only, and says so
        with pytest.raises(TypeError, match=r"weights are fp32, not torch\.float64; use the reference engine"):
            model(_ids(), model.zero_state(B))
        return
    logits, state = model(_ids(), model.zero_state(B))
    assert {logits.dtype, *(part.dtype for part in state)} == {torch.float64}


# -- choosing --------------------------------------------------------------------------------------------------------


def test_a_named_engine_that_cannot_run_is_an_error() -> None:
    """If this fails, a run silently uses another engine than its recipe says."""
    impossible = GRU_BEFORE.model_copy(update={"engine": "torch"})  # a recipe would already refuse this
    with pytest.raises(UsageError, match=r"engine: torch cannot run .* reset_after: false; use engine: auto"):
        resolve_engine(impossible, CPU)


NOT_BUILT = "the native engine has not been built on this computer"


def test_auto_takes_an_engine_that_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, `engine: auto` picks one that cannot run, or does not explain itself."""
    sections = [*(ModelSection(**cell) for cell in CELLS.values()), *NATIVE_ONLY]
    for section in sections:
        monkeypatch.setattr(library, "reason", lambda: None)
        assert resolve_engine(section, CPU) == ("native", "the fastest that runs this model here")
        monkeypatch.setattr(library, "reason", lambda: NOT_BUILT)
        name, why = resolve_engine(section, CPU)
        assert ENGINES[name].why_not(section, CPU) is None
        assert NOT_BUILT in why, "nobody learns why a slower engine was taken"
        assert name == ("reference" if section in NATIVE_ONLY else "torch")
        assert (f"PyTorch has no {cells.entry_of(section).title}" in why) == (section in NATIVE_ONLY)
    assert resolve_engine(ModelSection(engine="reference"), CPU) == ("reference", "as the recipe says")


@pytest.mark.parametrize("entry", [cells.entry_of(section) for section in NATIVE_ONLY], ids=lambda entry: entry.name)
def test_a_cell_without_kernels_runs_with_the_reference_engine(
    entry: cells.CellEntry, network: Callable[..., Any], numpy_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a cell without a kernel crashes in a fast engine, or nobody learns why it is slow."""
    monkeypatch.setattr(library, "reason", lambda: None)
    monkeypatch.setattr(cells, "CELLS", tuple(replace(each, kernels={}) for each in cells.CELLS))
    keys = {"cell": entry.cell, **entry.options}
    section = ModelSection.model_validate(keys)
    no_native, no_torch = f"the native engine has no kernel for the {entry.title}", f"PyTorch has no {entry.title}"
    assert resolve_engine(section, CPU) == ("reference", f"{no_native}; {no_torch}")
    assert resolve_engine(section, torch.device("cuda", 0))[0] == "reference"
    for engine, reason in (("native", no_native), ("torch", no_torch)):
        with pytest.raises(UsageError, match=f"engine: {engine} cannot run this recipe: {reason}; use engine: auto"):
            resolve_engine(section.model_copy(update={"engine": engine}), CPU)
    model = network(V, hidden=H, layers=2, **keys)
    model.flatten_for_cudnn()
    logits, _ = model(_ids(), model.zero_state(B))
    torch.testing.assert_close(logits.double(), torch.from_numpy(numpy_model(model, _ids().numpy())), rtol=0, atol=1e-5)
    for name, gradient in _results(network(V, hidden=32, **keys), "bf16").items():
        exact = _results(network(V, hidden=32, **keys))[name]
        assert gradient.dtype == torch.float32 and (gradient - exact).norm() < 0.03 * exact.norm(), name


def test_the_native_engine_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a run that asks for the native engine silently takes another one, or does not learn why it cannot."""
    named = ModelSection(engine="native")
    monkeypatch.setattr(library, "reason", lambda: None)
    assert resolve_engine(named, CPU) == ("native", "as the recipe says")
    gpu = torch.device("cuda", 0)
    with pytest.raises(UsageError, match=r"engine: native cannot run .* is for CPUs; use engine: auto"):
        resolve_engine(named, gpu)
    assert resolve_engine(ModelSection(), gpu)[0] == "torch"
    monkeypatch.setattr(library, "reason", lambda: NOT_BUILT)
    with pytest.raises(UsageError, match=rf"model\.engine: native cannot run this recipe: {NOT_BUILT}; use engine: auto"):
        resolve_engine(named, CPU)


def test_precision_is_chosen_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, auto uses bf16 where it is slow, or fp32 where bf16 is fast; fp16 on a CPU is refused."""
    monkeypatch.setattr("charlm.runtime.cpu_bf16_instructions", lambda: "amx_bf16")
    name, why = resolve_precision("auto", CPU)
    assert (name, "amx_bf16" in why) == ("bf16", True)
    assert resolve_precision("auto", CPU, ENGINES["reference"].fp32_reason)[0] == "fp32"
    assert resolve_precision("fp32", CPU) == ("fp32", "as the recipe says")
    monkeypatch.setattr("charlm.runtime.cpu_bf16_instructions", lambda: "")
    assert resolve_precision("auto", CPU)[0] == "fp32"
    with pytest.raises(UsageError, match="fp16 needs a CUDA device"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cudnn_gets_a_state_that_it_accepts(dtype: torch.dtype) -> None:
    """Failing would mean that on a GPU several samples of one prompt, or a precision other than fp32, are refused."""
    state = tuple(torch.randn(1, 1, H).expand(1, B, -1) for _ in "hc")
    assert not state[0].is_contiguous()
    for found, given in zip(for_cudnn(state, dtype), state, strict=True):
        assert found.is_contiguous() and found.dtype == dtype and torch.equal(found, given.to(dtype))


def test_one_block_holds_the_same_weights() -> None:
    """Failing would mean that cuDNN reads other weights in their place, or that a gradient is lost on the way."""
    weights = [torch.randn(shape, requires_grad=True) for shape in ((12, 5), (12, 4), (12,), (12,))]
    block = one_block(weights, torch.float64)
    start = block[0].data_ptr()
    for one, weight in zip(block, weights, strict=True):
        assert one.data_ptr() == start and torch.equal(one, weight.double())
        start += one.numel() * one.element_size()
    sum((one * n).sum() for n, one in enumerate(block, 1)).backward()  # type: ignore[union-attr]
    assert all(torch.equal(weight.grad, torch.full_like(weight, n)) for n, weight in enumerate(weights, 1))  # type: ignore[arg-type]


@pytest.fixture
def broken_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native library is there, and every use of it fails."""

    def fail(file: Path) -> None:
        raise OSError(f"{file} was loaded")

    monkeypatch.setattr(library, "_open", fail)
    monkeypatch.setattr(library, "_current", {})
    monkeypatch.setattr(library, "available", lambda: {"portable": ""})


@pytest.mark.usefixtures("broken_library")
@pytest.mark.parametrize("engine", ["reference", "torch"])
def test_only_the_native_engine_runs_native_code(
    tiny_run: Callable[..., Any], english_file: Path, tmp_path: Path, engine: str
) -> None:
    """If this fails, an engine that is the truth for the C++ code uses that code itself, in training or afterwards."""
    dropouts = ("model.dropout=0.2", "model.input_dropout=0.2", "model.weight_drop=0.2", "model.embedding=8")
    run = tiny_run(english_file, tmp_path / "run", f"model.engine={engine}", *dropouts, "train.average=0.9")
    assert run.record["engine"] == engine and run.record["step"] == 20
    model = load(run.folder, "cpu", engine=engine)
    assert len(model.sample("The", 50, seed=1)) == 50
    assert model.perplexity("The king").characters == 7
    assert model.hidden_states("The king").shape == (8, 1, 16)


@pytest.mark.skipif(library.reason() is not None, reason=str(library.reason()))
@pytest.mark.usefixtures("broken_library")
def test_the_native_engine_notices_a_broken_library(network: Callable[..., Any]) -> None:
    """If this fails, the test above proves nothing: native code runs although its library cannot be loaded."""
    model = network(V, "native", hidden=H)
    with pytest.raises(OSError, match="was loaded"):
        model(_ids(), model.zero_state(B))


def test_zeros_for_the_persistent_kernel_change_no_gate() -> None:
    """Failing would mean that fp16 on a GPU computes other gates or gradients, or misses cuDNN's fastest kernel."""
    inputs, weight = torch.randn(3, 8, 28), torch.randn(4 * 256, 28, requires_grad=True)
    wide, wide_weight = for_persistent_kernel(inputs, weight, 256)
    assert wide.shape[-1] == wide_weight.shape[-1] == 128
    expected = torch.nn.functional.linear(inputs, weight)
    found = torch.nn.functional.linear(wide, wide_weight)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, weight, upstream)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)
    for rows, hidden in ((8, 200), (8, 2048), (7, 256), (136, 256)):  # cuDNN would not use it
        assert for_persistent_kernel(torch.randn(3, rows, 28), weight, hidden)[0].shape[-1] == 28
