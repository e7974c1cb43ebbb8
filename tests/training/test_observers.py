"""Observers: all of a training leaves by its events, a failing observer stops nothing, and TensorBoard shows each step once."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import charlm
from charlm.checkpoint import describe
from charlm.errors import RunFolderError, UsageError
from charlm.training.events import Evaluated, Event, Finished, RunStarted, Sampled, Saved, StepDone
from charlm.training.observers import LOGGERS, make_loggers
from charlm.training.plan import Limits
from charlm.training.run import observed, run
from charlm.training.run_folder import RunFolder

KEYS = ("train.total_steps=12", "evaluate.every=5", "checkpoint.every=5", "sample.every=4", "sample.prompt=[the, '']")


class Failing:
    """Fails at its third event, and when it is closed."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, event: Event) -> None:
        self.calls.append(type(event).__name__)
        if len(self.calls) == 3:
            raise ValueError("no connection")

    def close(self) -> None:
        self.calls.append("close")
        raise ValueError("nothing to close")


def test_an_observer_that_fails_stops_nothing_and_is_reported_once(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, hours of training end because a logger has lost its connection, or nobody is told that it has."""
    failing, events, reports = Failing(), [], []
    with begin(english_file, tmp_path / "run", *KEYS) as begun:
        finished = run(begun.trainer, [failing, events.append], report=reports.append)
    assert reports == ["the observer Failing failed and is not called again: ValueError: no connection"]
    assert failing.calls == ["RunStarted", "StepDone", "StepDone", "close"]
    assert finished is events[-1] and finished.record["stopped_because"] == "finished"
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 13))


def test_a_failing_observer_of_a_program_is_a_warning(tmp_path: Path, english_file: Path) -> None:
    """If this fails, ``charlm.train`` hides a failure of the caller's own function, or ends because of it."""

    def observe(event: Event) -> None:
        raise KeyError("step")

    keys = {"model.hidden": 4, "train.total_steps": 2, "train.threads": 1}
    with pytest.warns(RuntimeWarning, match=r"observe failed and is not called again: KeyError: 'step'") as warned:
        record = charlm.train(str(english_file), keys, tmp_path / "run", device="cpu", observers=[observe])
    assert len(warned) == 1 and record["step"] == 2


def test_an_interruption_in_an_observer_ends_the_training(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, Ctrl-C while an observer works is taken for a failure of the observer. It must still be closed."""

    class Slow(Failing):
        def __call__(self, event: Event) -> None:
            self.calls.append(type(event).__name__)
            raise KeyboardInterrupt

    slow = Slow()
    with begin(english_file, tmp_path / "run", *KEYS) as begun, pytest.raises(KeyboardInterrupt):
        run(begun.trainer, [slow], report=lambda _: None)
    assert slow.calls == ["RunStarted", "close"]


def test_an_error_of_the_runs_own_log_ends_the_training(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a run on a full disk trains on without its logs."""

    def full(self: RunFolder, heading: str, text: str) -> None:
        raise RunFolderError("no space left")

    monkeypatch.setattr(RunFolder, "record_sample", full)
    with begin(english_file, tmp_path / "run", *KEYS) as begun, pytest.raises(RunFolderError, match="no space left"):
        run(begun.trainer)


def test_the_log_of_the_run_has_an_event_before_any_observer(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, a checkpoint stores log sizes that miss events of its step, and resuming loses these lines."""
    out, kinds = tmp_path / "run", []
    with begin(english_file, out, *KEYS) as begun:
        for event in observed(begun.trainer):
            size = begun.trainer.folder.log_sizes()["metrics.jsonl"]
            lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if size else []
            logged = [json.loads(line) for line in lines]
            match event:
                case StepDone():
                    assert (logged[-1]["kind"], logged[-1]["step"], logged[-1]["nats"]) == ("step", event.step, event.nats)
                case Evaluated():
                    assert (logged[-1]["kind"], logged[-1]["nats"]) == ("evaluation", event.nats)
                case Saved():
                    stored = describe(out / "last.safetensors")["progress"]
                    assert (stored["step"], stored["logs"]["metrics.jsonl"]) == (event.step, size)
                case Sampled():
                    texts = (out / "samples.txt").read_text(encoding="utf-8")
                    assert texts.endswith(f"━━━ {event.heading} ━━━\n{event.prompt}{event.text}\n\n")
                case Finished():
                    assert logged[-1] == {"kind": "finished", **json.loads(json.dumps(event.record))}
            kinds.append(type(event))
    assert kinds[0] is RunStarted and kinds[-1] is Finished and {Evaluated, Saved, Sampled} < {*kinds}


# -- --log -----------------------------------------------------------------------------------------------------------


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    """If this fails, a slip of the pen trains for hours without the log that was asked for."""
    with pytest.raises(UsageError, match="log wandb: expected tensorboard"):
        charlm.train("hello", out=tmp_path / "run", log=["wandb"])
    assert not (tmp_path / "run").exists()


def test_without_its_package_a_logger_is_refused_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, the missing package is noticed after the text was read, or the message does not say what to install."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"log tensorboard: .*not installed; pip install 'charlm\[tensorboard\]'") as caught:
        charlm.train("hello", out=tmp_path / "run", log="tensorboard")
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_overwriting_moves_the_event_files_and_leaves_others(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, the curves of two runs are drawn as one, or a user's own files are moved."""
    out, aside = tmp_path / "run", tmp_path / "run.old-1"
    tiny_run(english_file, out, *KEYS)
    (out / "tensorboard").mkdir()
    own, other = "tensorboard/events.out.tfevents.1.host.2.0.charlm", "tensorboard/events.out.tfevents.1.host.2.0"
    for name in (own, other):
        (out / name).write_text(name, encoding="utf-8")

    def full(self: RunFolder, recipe: object) -> None:
        raise RunFolderError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_config", full)
        with pytest.raises(RunFolderError, match="no space left"):
            tiny_run(english_file, out, *KEYS, overwrite=True)
    assert (out / own).exists() and (out / other).exists() and not aside.exists()

    tiny_run(english_file, out, *KEYS, overwrite=True)
    assert (aside / own).read_text(encoding="utf-8") == own
    assert [path.name for path in (out / "tensorboard").iterdir()] == [Path(other).name]
    (out / other).rename(out / own)
    tiny_run(english_file, out, *KEYS, overwrite=True)
    assert not (out / "tensorboard").exists(), "an empty folder is left"


# -- TensorBoard -----------------------------------------------------------------------------------------------------


def _shown(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard's pages show of a run: tag → (step, value), numbers and texts."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(entry.step, make_ndarray(entry.tensor_proto).flat[0]) for entry in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }


@pytest.mark.parametrize("stop", ["killed", "stopped", "stopped twice"])
def test_tensorboard_shows_every_step_of_a_resumed_run_once(
    tmp_path: Path, begin: Callable[..., Any], tiny_run: Callable[..., Any], english_file: Path, stop: str
) -> None:
    """If this fails, curves of a resumed run go back and forth, or have gaps."""
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"

    def attempt(**options: Any) -> None:
        with begin(english_file, out, *KEYS, **options) as begun:
            run(begun.trainer, make_loggers(["tensorboard"], out))

    if stop == "killed":
        with begin(english_file, out, *KEYS) as begun:
            for event in observed(begun.trainer, make_loggers(["tensorboard"], out)):
                if getattr(event, "step", 0) > 8:
                    break
        assert describe(out / "last.safetensors")["progress"]["step"] == 5
        assert max(step for step, _ in _shown(out)["training/nats_per_character"]) > 8
    else:
        for _ in range(1 + (stop == "stopped twice")):
            attempt(resume="auto", max_steps=8)
    attempt(resume="must")
    shown = _shown(out)
    whole = tiny_run(english_file, tmp_path / "whole", *KEYS)
    for tag, key in (
        ("nats_per_character", "nats"), ("learning_rate", "learning_rate"), ("gradient_norm", "gradient_norm")
    ):  # fmt: skip
        expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in whole.lines("step")]
        assert shown[f"training/{tag}"] == expected
    regular = [(line["step"], pytest.approx(line["nats"], rel=1e-6)) for line in whole.lines("evaluation")]
    at_stop = [] if stop == "killed" else [8]
    validation = shown["validation/nats_per_character"]
    assert [entry for entry in validation if entry[0] not in at_stop] == regular
    assert sorted(step for step, _ in validation) == sorted([5, 10, 12, *at_stop])
    samples = {tag: entries for tag, entries in shown.items() if tag.startswith("sample/")}
    assert [step for step, _ in samples["sample/prompt 'the'/text_summary"]] == [4, 8, 12]
    for tag, entries in shown.items():
        assert max(Counter(step for step, _ in entries).values()) == 1, tag
    assert {tag.partition("/")[0] for tag in shown} == {"training", "validation", "sample"}


def test_a_new_run_does_not_show_what_a_killed_start_left(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, steps of a run that never saved are drawn into the curve of the next one."""
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    with begin(english_file, out, *KEYS) as begun:
        for event in observed(begun.trainer, make_loggers(["tensorboard"], out)):
            if getattr(event, "step", 0) == 4:
                break
    assert not (out / "last.safetensors").exists()
    with begin(english_file, out, *KEYS, resume="auto", max_steps=3) as begun:
        run(begun.trainer, make_loggers(["tensorboard"], out))
    assert [step for step, _ in _shown(out)["training/perplexity"]] == [1, 2, 3]


def test_event_files_are_not_written_through_a_link(tmp_path: Path) -> None:
    """If this fails, a run's folder from a stranger makes charlm write elsewhere."""
    pytest.importorskip("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is not a folder"):
        LOGGERS["tensorboard"](tmp_path / "run")
    shutil.rmtree(tmp_path / "run")


def test_a_text_that_is_not_utf_8_is_logged(tmp_path: Path) -> None:
    """If this fails, a sample of a byte model ends the log."""
    pytest.importorskip("tensorboard")
    (logger,) = make_loggers(["tensorboard", "tensorboard"], tmp_path)
    logger(RunStarted(None, 1, Limits(0.0), 1))
    logger(Sampled(1, 0.1, "\udcff", "a\n\n# b\udc80"))
    logger.close()
    assert _shown(tmp_path) == {r"sample/prompt '\udcff'/text_summary": [(1, b"    \\udcffa\n    \n    # b\\udc80")]}
