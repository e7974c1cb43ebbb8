"""Every instruction set that this processor has computes the same, and so does Intel's matrix unit, emulated."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch

from charlm.model.native import library
from charlm.model.native.build import LEVELS, compile_one, flags_of

CELLS = ["rnn_tanh", "rnn_relu", "gru", "gru_reset_before", "lstm", "lstm_peephole", "lstm_coupled"]
EMULATED = "amx, emulated"
SHAPES: list[dict[str, Any]] = [
    {"T": 1, "B": 1, "H": 1, "V": 2},
    {"T": 4, "B": 2, "H": 130, "V": 31, "inputs": "tied"},
    {"T": 3, "B": 13, "H": 64, "V": 65, "inputs": 20, "layers": 2},
    {"T": 9, "B": 17, "H": 31, "V": 33, "wanted": "loss"},
    {"T": 6, "B": 33, "H": 96, "V": 100, "layers": 2, "wanted": "state"},
    {"T": 2, "B": 64, "H": 33, "V": 200, "inputs": "tied"},
]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library for the matrix unit, whose instructions are ordinary C++ in it."""
    if why_not := library.available()["avx512_bf16"]:
        pytest.skip(why_not)
    file = tmp_path_factory.mktemp("native") / "emulated.so"
    problem = compile_one(library.SOURCE, file, (*flags_of("avx512_bf16"), "-DCHARLM_EMULATE_AMX"))
    if problem.startswith("no C++ compiler"):
        pytest.skip(problem)
    assert not problem
    return ctypes.CDLL(str(file))


@pytest.fixture(params=[*(level.name for level in LEVELS), EMULATED])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set in turn, in use."""
    if request.param == EMULATED:
        lib = request.getfixturevalue("emulated")
        monkeypatch.setattr(library, "current", lambda: lib)
    elif why_not := library.available()[request.param]:
        pytest.skip(why_not)
    else:
        monkeypatch.setenv("CHARLM_ISA", request.param)
        lib = library.current()
        lib.charlm_instruction_set.restype = ctypes.c_char_p
        assert lib.charlm_instruction_set() == request.param.encode()
    return str(request.param)


@pytest.mark.parametrize("cell", CELLS)
def test_an_instruction_set_computes_what_the_reference_computes(
    case: Callable[..., Any], differences: Callable[..., dict[str, float]], level: str, cell: str
) -> None:
    """If this fails, results are wrong on the processors that use this instruction set (fp32 1e-5, bf16 2e-2, by norms)."""
    for shape in SHAPES:
        one = case(cell, **shape)
        model = one.model("reference")
        truth = one.outcome(model)
        for precision, limit in [("fp32", 1e-5), ("bf16", 2e-2)]:
            if cell == "rnn_relu" and precision == "bf16":
                limit = 0.3  # a unit near the kink of max(0, ·) changes sides by rounding alone, and its whole gradient with it
            for name, distance in differences(one.outcome(model.with_engine("native"), precision), truth).items():
                assert distance < limit, f"{shape}, {precision}, {name}: {distance:.1e}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_number_of_streams_gives_what_each_alone_gives(case: Callable[..., Any], level: str, precision: str) -> None:
    """If this fails, some number of rows is divided wrongly between the machine's registers or tiles (the same bits)."""
    model = case("lstm", H=64, V=7).model("native")
    ids = torch.randint(7, (3, 70), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        whole, _ = model.features(ids, model.zero_state(70))
        for B in [*range(1, 36), 48, 63, 64, 65, 69]:
            some, _ = model.features(ids[:, :B].contiguous(), model.zero_state(B))
            assert torch.equal(some, whole[:, :B]), B


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_bf16_operands_make_sums_in_fp32(case: Callable[..., Any], level: str, cell: str) -> None:
    """If this fails, a product in bf16 also adds in bf16: its sums must be those of rounded operands (1e-5)."""
    one = case(cell, T=1, B=9, H=256, V=3, wanted="state")
    model = one.model("native")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
        state = tuple(
            torch.randn(part.shape, generator=torch.Generator().manual_seed(6)).bfloat16().float()
            for part in model.zero_state(9)
        )
        ids, _ = one.batch()
        with torch.autocast("cpu", torch.bfloat16):
            _, found = model.features(ids, state)
        _, expected = model.with_engine("reference").features(ids, state)
    for mine, theirs in zip(found[1:] or found, expected[1:] or expected, strict=True):  # the LSTM's h is rounded, its c is not
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 if cell == "lstm" else 2**-8)
