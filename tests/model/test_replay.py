"""Recording a function as a CUDA graph, with a stand-in for ``torch.cuda``: no GPU is needed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from charlm.model.replay import Replay, Table

GPU = torch.device("cuda", 0)


class _Stream:
    def wait_stream(self, other: Any) -> None:
        """Nothing to wait for."""


class _Graph:
    replays = 0

    def replay(self) -> None:
        _Graph.replays += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.cuda`` as far as a recording uses it; graphs only count their replays."""
    stand_ins = {
        "device": nullcontext, "Stream": _Stream, "current_stream": _Stream, "stream": nullcontext, "CUDAGraph": _Graph,
        "graph": nullcontext,
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    _Graph.replays = 0


def test_a_recorded_function_is_replayed(cuda: None) -> None:
    """Failing would mean that the CPU still launches every kernel."""
    calls: list[None] = []
    replay = Replay(lambda: calls.append(None), GPU)
    recorded = len(calls)
    replay()
    replay()
    assert replay.why_not is None
    assert (len(calls), _Graph.replays) == (recorded, 2)


def test_a_function_that_cannot_be_recorded_runs_as_it_is(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a run stops, or silently does nothing, where a graph is impossible."""
    recording: list[bool] = []

    class Recording:
        def __init__(self, graph: Any) -> None:
            """The graph is not used."""

        def __enter__(self) -> None:
            recording.append(True)

        def __exit__(self, *_: object) -> None:
            recording.clear()

    monkeypatch.setattr(torch.cuda, "graph", Recording)
    calls: list[None] = []

    def function() -> None:
        if recording:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        calls.append(None)

    replay = Replay(function, GPU)
    before = len(calls)
    replay()
    assert replay.why_not == "PyTorch could not record it: operation not permitted when stream is capturing"
    assert (len(calls), _Graph.replays) == (before + 1, 0)


def test_a_cpu_runs_the_function() -> None:
    """Failing would mean that tests of graphs test nothing on a CPU."""
    calls: list[None] = []
    replay = Replay(lambda: calls.append(None), torch.device("cpu"))
    assert replay.why_not is not None and not calls
    replay()
    assert len(calls) == 1


def test_rows_arrive_when_they_are_sent() -> None:
    """Failing would mean that a step reads the numbers of another step."""
    table = Table((4, 2), torch.int64, torch.device("cpu"))
    table.host[3] = torch.tensor([5, 6])
    assert table.row(torch.tensor([3])).tolist() == [0, 0]
    table.send()
    assert table.row(torch.tensor([3])).tolist() == [5, 6]
