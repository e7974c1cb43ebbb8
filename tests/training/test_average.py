"""The average of the weights: its formula, its validation beside the weights, and the choice of the better of the two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm.checkpoint import load
from charlm.evaluation.perplexity import carried
from charlm.training.weight_average import WeightAverage


def test_the_average_has_the_documented_formula(network: Callable[..., Any]) -> None:
    """If this fails, the average remembers for longer or shorter than `decay` says, or starts from the initial weights."""
    model = network(9, hidden=4)
    average = WeightAverage(model, decay=0.9)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    rng = torch.Generator().manual_seed(1)
    for step in range(1, 201):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=rng))
        average.update(step)
        if step % 10 == 0:
            taken = step // 10
            keep = min(0.9**10, taken / (9 + taken))
            for name, weight in model.named_parameters():
                expected[name] = keep * expected[name] + (1 - keep) * weight.detach()
    for name, weight in average.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-5)
        assert not weight.requires_grad and weight.data_ptr() != dict(model.named_parameters())[name].data_ptr()


@pytest.mark.parametrize(("rate", "averaged"), [(4.0, True), (0.001, False)])
def test_the_better_of_the_two_is_the_runs_best(
    tmp_path: Path,
    tiny_run: Callable[..., Any],
    recipe_for: Callable[..., Any],
    english_file: Path,
    rate: float,
    averaged: bool,
) -> None:
    """If this fails, `best` is the worse of weights and average, or the result at the end is another model's.

    With a high constant rate the weights oscillate, and their average is better. With a low one the average only lags behind.
    """
    keys = ("train.optimizer=sgd", f"train.lr={rate}", "train.schedule=constant", "train.average=0.98", "train.total_steps=400",
            "evaluate.every=100", "train.batch=2", "train.clip=null")  # fmt: skip
    run = tiny_run(english_file, tmp_path, *keys)
    lines = run.lines("evaluation")
    assert all(line["nats"] == min(line["weights_nats"], line["average_nats"]) for line in lines)
    assert (lines[-1]["average_nats"] < lines[-1]["weights_nats"]) is averaged
    best = load(tmp_path / "best.safetensors")
    assert best.progress["best"]["averaged"] is averaged
    last = load(tmp_path / "last.safetensors")
    same = all(torch.equal(best.weights[name], last.weights[name]) for name in last.weights)
    assert same is (not averaged and best.progress["step"] == last.progress["step"])
    from charlm.data.dataset import open_dataset

    text = open_dataset(recipe_for(english_file, *keys)).text("validation")
    assert run.record["nats_per_character"] == pytest.approx(carried(best.model(torch.device("cpu")), text).nats_per_character)


def test_runs_without_an_average_have_none(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, runs without `train.average` store or report one."""
    run = tiny_run(english_file, tmp_path)
    assert all("average_nats" not in line for line in run.lines("evaluation"))
    assert not load(tmp_path / "last.safetensors").average
