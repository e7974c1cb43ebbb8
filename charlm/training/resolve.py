"""Chooses engine, precision and number of threads where the recipe says ``auto``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from charlm.checkpoint import Checkpoint
from charlm.config import Recipe
from charlm.distributed import ALONE, World
from charlm.model.engines import ENGINES, resolve_engine
from charlm.runtime import prepare, resolve_precision, use_deterministic_algorithms


@dataclass(frozen=True)
class Resolved:
    """The values of ``auto``, and the reasons for them.

    Attributes:
        threads: the number of CPU threads at the start.
    """

    device: torch.device
    engine: str
    engine_reason: str
    precision: str
    precision_reason: str
    threads: int


def resolve(
    recipe: Recipe, device: torch.device, earlier: Checkpoint | None, world: World = ALONE
) -> tuple[Resolved, list[str]]:
    """Choose engine, precision and threads. A run that is resumed on the same kind of device keeps its earlier choices.

    Returns:
        The choices, and notices for the user.

    Raises:
        UsageError: the recipe names an engine or a precision that is not available here.
    """
    if recipe.train.deterministic:
        use_deterministic_algorithms()
    before: dict[str, Any] = earlier.resolved if earlier else {}
    same_device = before.get("device") == device.type
    notices = []
    if before and not same_device:
        notices.append(
            f"this run started on {before['device']} and resumes on {device.type}: the results agree up to rounding, but "
            "are not bit-identical"
        )
    section = recipe.model
    if same_device and section.engine == "auto" and ENGINES[before["engine"]].why_not(section, device) is None:
        section = section.model_copy(update={"engine": before["engine"]})
    engine, engine_reason = resolve_engine(section, device)
    if before and engine != before["engine"]:
        notices.append(
            f"this run started with engine {before['engine']} and resumes with {engine}: the results agree up to rounding, "
            "but are not bit-identical"
        )
    wanted = before["precision"] if same_device and recipe.train.precision == "auto" else recipe.train.precision
    precision, precision_reason = resolve_precision(wanted, device, ENGINES[engine].fp32_reason)
    if same_device and engine == before["engine"]:
        engine_reason = "as at the start of this run"
    if same_device and precision == before["precision"]:
        precision_reason = "as at the start of this run"
    threads = prepare(recipe.train.threads or world.threads)
    if same_device and recipe.train.threads is None and world.threads is None:
        threads = before.get("threads", threads)
    return Resolved(device, engine, engine_reason, precision, precision_reason, threads), notices
