"""What must hold on a CUDA device. Run where there is one: ``pytest -m gpu``."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from charlm.bench import Configuration, Shape, Sweep, bench, peak_on_gpu, precisions_on
from charlm.cli.app import run
from charlm.runtime import prepare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def _benchmark(name: str) -> ModuleType:
    """A module of ``benchmarks/``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


parity = _benchmark("parity")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    text = "".join(f"{n} and {n * n} make {n + n * n}.\n" for n in range(2000))
    (tmp_path / "sums.txt").write_text(text, encoding="utf-8")
    path = tmp_path / "sums.yaml"
    path.write_text(
        "corpus: sums.txt\nmodel: {hidden: 128, dropout: 0.2, layers: 2}\ntrain: {batch: 16, seq_length: 32, "
        "total_steps: 60}\n",
        encoding="utf-8",
    )
    return path


def record_of(capfd: pytest.CaptureFixture[str]) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(capfd.readouterr().out.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("check", list(parity.checks(torch.device("cuda", 0))), ids=lambda check: check.name)
def test_parity(check: Any) -> None:
    """CUDA computes what the CPU computes: each check of ``benchmarks/cuda.py``."""
    prepare(None)
    finding = check.run()
    assert finding.passed, f"found {finding.found:.2g}, allowed {finding.allowed:g} ({finding.note})"


def test_a_gpu_is_measured() -> None:
    """Training on CUDA is timed, with fp16, and held against a ceiling and a memory formula."""
    device = torch.device("cuda", 0)
    shape = Shape(hidden=128, seq_length=16, batch=8)
    sweep = Sweep(shape, cells=["lstm"], engines=["torch"], precisions=precisions_on(device), repetitions=1, seconds=0.0)
    report = bench(sweep, device)
    assert {row.precision for row in report.rows if row.kind == "train"} == {"fp32", "bf16", "fp16"}
    assert all(report.gemm_gflops.values())
    assert peak_on_gpu(Configuration("train", "lstm", "torch", "fp32"), shape, device) > 4 * 128 * 128 * 4


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_every_precision_learns(recipe: Path, tmp_path: Path, precision: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Training on CUDA lowers the loss, whatever the arithmetic."""
    code = run(["train", str(recipe), "--out", str(tmp_path / "run"), "--device", "cuda", "--json",
                "--set", f"train.precision={precision}"])  # fmt: skip
    record = record_of(capfd)
    assert code == 0
    assert str(record["device"]).startswith("cuda")
    assert float(str(record["nats_per_character"])) < 2.0


def test_checkpoint_moves_cpu_cuda_cpu(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run resumes on another device and back again, and both devices score a checkpoint alike."""
    out = str(tmp_path / "run")
    for device, steps, resume in (("cpu", 20, "never"), ("cuda", 40, "must"), ("cpu", 60, "must")):
        assert (
            run(["train", str(recipe), "--out", out, "--device", device, "--max-steps", str(steps), "--resume", resume, "-q"])
            == 0
        )
    capfd.readouterr()
    results = []
    for device in ("cpu", "cuda"):
        assert run(["eval", "perplexity", out, "--device", device, "--json"]) == 0
        results.append(float(str(record_of(capfd)["nats_per_character"])))
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_sampling_on_cuda(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Greedy text does not depend on the device."""
    out = str(tmp_path / "run")
    assert run(["train", str(recipe), "--out", out, "--device", "cuda", "-q"]) == 0
    capfd.readouterr()
    texts = []
    for device in ("cpu", "cuda"):
        assert run(["sample", out, "--device", device, "--temperature", "0", "--length", "100", "--prompt", "7 and "]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1]


def test_steps_run_as_a_graph_and_a_fallback_is_explained(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The step can be recorded on this GPU; an optimizer without a graph trains all the same, and a notice says why."""
    assert run(["train", str(recipe), "--out", str(tmp_path / "graph"), "--device", "cuda"]) == 0
    assert "without a CUDA graph" not in capfd.readouterr().err
    assert run(["train", str(recipe), "--out", str(tmp_path / "launched"), "--device", "cuda", "--set",
                "train.optimizer=rmsprop"]) == 0  # fmt: skip
    assert "without a CUDA graph" in " ".join(capfd.readouterr().err.split())
