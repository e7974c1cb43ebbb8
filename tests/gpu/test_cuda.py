"""What must hold on a CUDA device. Run where there is one: ``pytest -m gpu``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from charlm.cli.app import run
from charlm.config import ModelSection
from charlm.model.language_model import LanguageModel
from charlm.runtime import prepare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    text = "".join(f"{n} and {n * n} make {n + n * n}.\n" for n in range(2000))
    (tmp_path / "sums.txt").write_text(text, encoding="utf-8")
    path = tmp_path / "sums.yaml"
    path.write_text(
        "corpus: sums.txt\nmodel: {hidden: 128, dropout: 0.2, layers: 2}\ntrain: {batch: 16, steps: 32, updates: 60}\n",
        encoding="utf-8",
    )
    return path


def record_of(capfd: pytest.CaptureFixture[str]) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(capfd.readouterr().out.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_engines_agree_on_cuda(cell: str) -> None:
    """cuDNN and the reference equations give the same outputs and gradients."""
    prepare(None)
    section = ModelSection(cell=cell, hidden=64, layers=2)  # type: ignore[arg-type]
    results = []
    for engine in ("reference", "torch"):
        model = LanguageModel(section, 40, engine)
        model.initialise(1)
        model.to("cuda")
        model.flatten_for_cudnn()
        ids = (torch.arange(20 * 8, device="cuda") * 7 % 40).view(20, 8)
        logits, _ = model(ids, model.zero_state(8))
        logits.square().sum().backward()
        results.append([logits.detach(), *(weight.grad for weight in model.parameters())])
    for reference, fused in zip(*results, strict=True):
        assert torch.allclose(reference, fused, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


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
    """A run begun on a CPU goes on on CUDA and back, and both devices score a checkpoint alike."""
    out = str(tmp_path / "run")
    for device, steps, resume in (("cpu", 20, "never"), ("cuda", 40, "must"), ("cpu", 60, "must")):
        assert (
            run(["train", str(recipe), "--out", out, "--device", device, "--max-steps", str(steps), "--resume", resume, "-q"])
            == 0
        )
    capfd.readouterr()
    figures = []
    for device in ("cpu", "cuda"):
        assert run(["eval", "perplexity", out, "--device", device, "--json"]) == 0
        figures.append(float(str(record_of(capfd)["nats_per_character"])))
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


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
