"""``charlm bench``: every engine in the table, everything in the JSON, wrong names refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from charlm.model.engines import ENGINES

QUICK = (
    "bench", "--hidden", "4", "--symbols", "5", "--seq-length", "3", "--batch", "2", "--repetitions", "2", "--seconds", "0",
    "--threads", "1", "--precisions", "fp32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.bench.sweep.product_sizes", lambda device: [(8, 8, 8)])


def test_json_holds_everything(charlm: Callable[..., Any]) -> None:
    """Failing would mean that a script cannot compare machines."""
    ended = charlm(*QUICK, "--json")
    assert ended.code == 0 and ended.err == "" and len(ended.text.splitlines()) == 1
    record = ended.record
    assert {
        "machine",
        "device",
        "threads",
        "torch",
        "native",
        "gemm_gflops",
        "shape",
        "rows",
        "not_run",
        "other_cores",
        "warnings",
    } == record.keys()
    assert record["threads"] == 1 and record["gemm_gflops"]["fp32"] > 0 and record["gemm_gflops"]["bf16"] is None
    assert record["shape"] == {"hidden": 4, "symbols": 5, "seq_length": 3, "batch": 2, "layers": 1}
    for row in record["rows"]:
        assert {
            "kind", "cell", "engine", "precision", "characters_per_second", "low", "high", "repetitions", "share_of_ceiling",
            "ratio_to_torch_nn",
        } == row.keys()  # fmt: skip
        assert row["repetitions"] == 2 and row["low"] <= row["characters_per_second"] <= row["high"]
    absent = {(entry["cell"], entry["engine"]) for entry in record["not_run"]}
    for kind in ("train", "evaluate", "sample"):
        for cell in ("rnn", "gru", "lstm"):
            shown = {row["engine"] for row in record["rows"] if (row["kind"], row["cell"]) == (kind, cell)}
            assert shown == {"torch.nn", *(engine for engine in ENGINES if (cell, engine) not in absent)}


def test_the_table_says_what_did_not_run(charlm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that an engine is missing from the table without a reason."""
    monkeypatch.setattr(ENGINES["torch"], "why_not", lambda model, device: "not today")
    ended = charlm(*QUICK, "--cells", "gru,lstm", "--only", "train,sample", "--engines", "torch", "--engines", "reference")
    assert ended.code == 0
    lines = ended.text.splitlines()
    assert "1 thread," in lines[0] and "H = 4, V = 5" in lines[3]
    assert lines[1].startswith("native engine: ") and lines[2].startswith("matrix products: fp32 ")
    assert [line.split(":")[0] for line in lines if line.startswith(("train", "evaluate", "sample"))] == ["train", "sample"]
    rows = [tuple(line.split()[:3]) for line in lines if line.split()[:1] in (["gru"], ["lstm"])]
    assert rows == [(cell, engine, "fp32") for cell in ("gru", "lstm") for engine in ("reference", "torch.nn")] * 2
    assert lines[-1] == "not run: torch, gru fp32, lstm fp32: not today"


def test_memory_is_a_column_of_its_own(charlm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that ``--memory`` measures and does not tell."""
    monkeypatch.setattr("charlm.bench.sweep.peak_memory", lambda about, shape, device, threads: 12_300_000)
    one = (*QUICK, "--memory", "--cells", "rnn", "--only", "evaluate", "--engines", "reference")
    assert "12.3 MB" in charlm(*one).text
    assert {row["peak_memory_bytes"] for row in charlm(*one, "--json").record["rows"]} == {12_300_000}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--cells", "transformer"), ("--engines", "torch,warp"), ("--precisions", "fp16"), ("--only", "dance"), ("--cells", "")],
)
def test_unknown_names_are_refused(charlm: Callable[..., Any], option: str, value: str) -> None:
    """Failing would mean that a misspelt choice measures something else, or nothing."""
    ended = charlm("bench", option, value)
    assert ended.code == 2 and ended.text == ""
    assert option in ended.err and "expected" in ended.err and "Traceback" not in ended.err
