"""A batch in parts, whose gradients are summed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import loaded_recipe

from charlm.config import TrainSection
from charlm.data.streams import BatchShape
from charlm.distributed import shares
from charlm.training.memory import training_bytes

DROPOUTS = ("model.dropout=0.3", "model.input_dropout=0.2", "model.weight_drop=0.1", "model.layers=2")


@pytest.mark.parametrize("engine", ["native", "torch", "reference"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_batch_in_parts_gives_the_losses_of_the_whole(
    tiny_run: Callable[..., Any], english_file: Path, tmp_path: Path, engine: str, cell: str
) -> None:
    """If this fails, parts are weighted wrongly, see other zeros of dropout, or mix up the states of their streams."""
    dropouts = [one for one in DROPOUTS if engine != "torch" or "weight_drop" not in one]
    losses = []
    for parts in (1, 3):  # parts of one, one and two streams
        run = tiny_run(
            english_file, tmp_path / str(parts), f"model.engine={engine}", f"model.cell={cell}", f"train.accumulate={parts}",
            *dropouts,
        )  # fmt: skip
        losses.append([line["nats"] for line in run.lines("step")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_shares_differ_by_at_most_one_and_cover_everything() -> None:
    """If this fails, a stream is trained twice or not at all."""
    for count in range(1, 20):
        for parts in range(1, count + 1):
            found = shares(count, parts)
            assert [number for part in found for number in part] == list(range(count))
            assert {len(part) for part in found} <= {count // parts, count // parts + 1}


def test_parts_need_their_share_of_the_memory(english_file: Path) -> None:
    """If this fails, a model that fits with `accumulate` is refused."""
    shape = BatchShape(64, 100, shrunk=False)
    whole, quarter = (
        training_bytes(loaded_recipe(english_file, f"train.accumulate={parts}").recipe, 60, shape, "fp32", "native")
        for parts in (1, 4)
    )
    fixed = training_bytes(loaded_recipe(english_file).recipe, 60, BatchShape(0, 100, shrunk=False), "fp32", "native")
    assert quarter - fixed == pytest.approx((whole - fixed) / 4)
    assert TrainSection().accumulate == 1, "memory is saved at the cost of speed only where the user asks for it"
