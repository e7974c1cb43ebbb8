"""The search over recipes: halves, doubles, keeps what it is measured against, and repeats nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from charlm.errors import CheckpointError, DivergedError, UsageError

FILE = Path(__file__).parents[1] / "tools" / "search.py"
RECIPE = """
corpus: ./text.txt
model: {hidden: 4}
train: {batch: 2, seq_length: 8, total_steps: 8, threads: 1, precision: fp32}
"""


@pytest.fixture
def search() -> Any:
    spec = importlib.util.spec_from_file_location("search", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recipe(tmp_path: Path, english_file: Path) -> str:
    (tmp_path / "text.txt").write_bytes(english_file.read_bytes())
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return str(tmp_path / "tiny.yaml")


def test_the_better_half_is_trained_twice_as_long(
    search: Any, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this fails, a good setting is thrown away, or the recipe as it is drops out of sight."""
    asked: list[tuple[str, int]] = []

    def trained(candidate: Any, updates: int, seed: int, folder: Path) -> float:
        asked.append((candidate.name, updates))
        return float(candidate.load().recipe.train.lr)  # the lower, the better; the first is the worst

    monkeypatch.setattr(search, "trained", trained)
    search.main([recipe, "--vary", "train.lr=0.5,0.1,0.2,0.3,0.4", "--rungs", "3"])
    rungs = [sorted(name.partition("=")[2] for name, length in asked if length == updates) for updates in (2, 4, 8)]
    assert rungs == [["0.1", "0.2", "0.3", "0.4", "0.5"], ["0.1", "0.2", "0.5"], ["0.1", "0.5"]]
    assert "-0.4000  tiny-lr=0.1" in capsys.readouterr().out


def test_a_setting_is_trained_once(search: Any, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a search that was stopped begins anew, or ranks by something else than the run's best."""
    (candidate,) = search.candidates([recipe])
    nats = search.trained(candidate, 3, 1, tmp_path / "runs")
    assert 1 < nats < 5
    monkeypatch.setattr(search.charlm, "train", None, raising=False)
    assert search.trained(candidate, 3, 1, tmp_path / "runs") == nats


def test_other_settings_are_other_runs(search: Any, recipe: str, tmp_path: Path) -> None:
    """If this fails, a search answers with the results of an earlier one."""
    (wide,) = search.candidates([recipe], overrides=["model.hidden=12"])
    (narrow,) = search.candidates([recipe], overrides=["model.hidden=6"])
    search.trained(wide, 3, 1, tmp_path / "runs")
    with pytest.raises(UsageError, match=r"model\.hidden: was 12, is now 6"):
        search.trained(narrow, 3, 1, tmp_path / "runs")


def test_settings_without_a_result_are_an_error(search: Any, recipe: str, tmp_path: Path) -> None:
    """If this fails, a search without validation text ends with a traceback after its first training."""
    (candidate,) = search.candidates([recipe], overrides=["data.split=[1, 0, 0]"])
    with pytest.raises(UsageError, match="no validation result"):
        search.trained(candidate, 3, 1, tmp_path / "runs")


def test_only_divergence_counts_as_a_bad_setting(
    search: Any, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this fails, a setting that ran out of disk, or was interrupted by the user, is dropped as if it were bad."""
    (candidate,) = search.candidates([recipe])

    def ends_with(outcome: BaseException | dict[str, Any]) -> None:
        def train(*_: Any, **__: Any) -> dict[str, Any]:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(search.charlm, "train", train, raising=False)

    ends_with(DivergedError("the loss became nan"))
    assert search.trained(candidate, 3, 1, tmp_path / "runs") == float("inf")
    assert "the loss became nan" in capsys.readouterr().err
    for other in (CheckpointError("no space left"), MemoryError(), KeyboardInterrupt()):
        ends_with(other)
        with pytest.raises(type(other)):
            search.trained(candidate, 3, 1, tmp_path / "runs")
    ends_with({"stopped_because": "interrupted", "best_validation_nats": 1.0})
    with pytest.raises(KeyboardInterrupt):
        search.trained(candidate, 3, 1, tmp_path / "runs")
