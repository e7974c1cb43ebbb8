"""Going on with a run. The signature test: 2k steps are k steps, a checkpoint, a new process, and k steps, bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm import sampling
from charlm.checkpoint import describe, load, save
from charlm.errors import CheckpointError, RecipeError, RunFolderError, UsageError
from charlm.evaluation import perplexity
from charlm.training.run import observed
from charlm.yaml_text import dump_yaml

K = 8
"""Steps of each half. An epoch has 12 batches here: the first half ends inside one, the second crosses into the next."""

COMMON = ("model.layers=2", "model.dropout=0.3", "train.batch=16", "train.seq_length=25", f"train.total_steps={2 * K}",
          "train.random_offset=true", "evaluate.every=3", "checkpoint.every=5", "sample.every=4")  # fmt: skip

CASES: dict[str, tuple[str, ...]] = {
    "rnn": ("model.cell=rnn", "model.input=one-hot", "train.optimizer=rmsprop", "train.momentum=0.5"),
    "rnn-relu-sgd": ("model.cell=rnn", "model.nonlinearity=relu", "train.optimizer=sgd", "train.momentum=0.9"),
    "gru": ("model.cell=gru", "train.optimizer=adam"),
    "gru-reset-before": ("model.cell=gru", "model.reset_after=false"),
    "lstm": ("model.cell=lstm",),
    "lstm-reference": ("model.cell=lstm", "model.engine=reference"),
    "lstm-peephole": ("model.variant=peephole", "model.weight_drop=0.2"),
    "lstm-coupled": ("model.variant=coupled", "model.init=orthogonal"),
    "lstm-bf16": ("model.cell=lstm", "train.precision=bf16", "model.hidden=32"),
    # Few and short steps: where other work keeps a core busy, two threads that wait for each other take very long.
    "lstm-two-threads": ("model.hidden=64", "train.threads=2", "model.layers=1", "train.seq_length=4", "evaluate.every=16",
                         "checkpoint.every=16", "sample.every=16", "sample.length=1"),
    "input-dropout-drop-last": ("model.input_dropout=0.3", "train.drop_last=true", "train.schedule=exponential"),
    "tied-bytes": ("model.tied=true", "data.unit=byte", "train.warmup=12"),
    "regularised": ("model.locked_dropout=true", "model.weight_drop=0.2", "model.residual=true", "train.average=0.9"),
    "attention": ("model.attention=30", "model.cell=gru"),
    "nadam-wsd": ("train.optimizer=nadam", "train.schedule=wsd", "train.decay_ratio=0.7", "train.warmup=2"),
    "records": ("data.records=line", "train.random_offset=false", "evaluate.characters=200"),
    "windows": ("train.batching=windows", "train.random_offset=false", "train.schedule=step"),
}  # fmt: skip


def _tensors(folder: Path) -> dict[str, bytes]:
    """Weights, moments and carried state of `last`, as bytes."""
    stored = load(folder / "last.safetensors")
    tensors = {f"weight {name}": tensor for name, tensor in stored.weights.items()}
    tensors |= {f"moment {name}": tensor for name, tensor in stored.optimizer.items()}
    tensors |= {f"state {number}": tensor for number, tensor in enumerate(stored.state)}
    return {name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what depends on the clock or on the folder."""
    clock = {"seconds", "wall", "characters_per_second", "training_seconds", "resumed_from", "checkpoint"}
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


def _assert_same_run(one: Path, other: Path) -> None:
    mine, theirs = _tensors(one), _tensors(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert _metrics(one) == _metrics(other)
    assert (one / "samples.txt").read_bytes() == (other / "samples.txt").read_bytes()
    sums = [describe(folder / "best.safetensors")["sha256"] for folder in (one, other)]  # of metadata and tensors
    assert sums[0] == sums[1]
    assert {path.name for path in one.glob("best*")} == {path.name for path in other.glob("best*")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_run: Callable[..., Any], english_file: Path) -> Callable[[str], Path]:
    """``whole("gru")``: the folder of that case, run without a stop."""
    done: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in done:
            done[case] = tmp_path_factory.mktemp("whole") / case
            tiny_run(english_file, done[case], *COMMON, *CASES[case])
        return done[case]

    return run


@pytest.fixture(scope="module")
def halves(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_run: Callable[..., Any],
    in_new_process: Callable[..., Any],
    english_file: Path,
) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """Each case stopped after K steps (first folder), and resumed in a new process (second folder)."""
    folder = tmp_path_factory.mktemp("halves")
    for case, keys in CASES.items():
        tiny_run(english_file, folder / "first" / case, *COMMON, *keys, max_steps=K)
        shutil.copytree(folder / "first" / case, folder / "second" / case)
    jobs = [
        {"corpus": str(english_file), "out": str(folder / "second" / case), "overrides": [*COMMON, *keys],
         "options": {"resume": "must"}}
        for case, keys in CASES.items()
    ]  # fmt: skip
    records = in_new_process(jobs)
    return {
        case: (folder / "first" / case, folder / "second" / case, record) for case, record in zip(CASES, records, strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_2k_steps_are_k_steps_a_new_process_and_k_steps(
    case: str, whole: Callable[[str], Path], halves: dict[str, tuple[Path, Path, dict[str, Any]]]
) -> None:
    """If this fails, a run that was interrupted is another run: weights, moments, state, logs and samples are compared."""
    first, second, record = halves[case]
    assert load(first / "last.safetensors").progress["position"] == [0, K], "not inside an epoch"
    assert (record["step"], record["resumed_from"], record["stopped_because"]) == (2 * K, K, "finished")
    _assert_same_run(whole(case), second)


def test_some_stops_beat_the_schedules_best(halves: dict[str, tuple[Path, Path, dict[str, Any]]]) -> None:
    """If this fails, the test above never restores a best that a stop's weights had replaced."""
    aside = [case for case, (first, _, _) in halves.items() if (first / "best-of-schedule.safetensors").exists()]
    assert len(aside) > len(CASES) / 2
    for case in aside:
        assert describe(halves[case][0] / "best.safetensors")["progress"]["step"] == K
    assert not any((second / "best-of-schedule.safetensors").exists() for _, second, _ in halves.values())


BEST_KEYS = ("evaluate.every=4", "checkpoint.every=2", "train.total_steps=10")
"""A run whose loss falls: stopped at step 7, its weights beat those of step 4."""


@pytest.mark.parametrize(
    "killed_at", ["set aside", "best of the stop written", "restored before a step", "hard links of one file", "no hard links"]
)
def test_a_kill_around_a_stops_best_loses_neither(
    tmp_path: Path,
    tiny_run: Callable[..., Any],
    begin: Callable[..., Any],
    english_file: Path,
    killed_at: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If this fails, a kill while `best` is exchanged leaves a run with another best than an uninterrupted one, or none."""
    from charlm.training.run_folder import RunFolder

    class KilledError(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise KilledError

    if killed_at == "no hard links":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    tiny_run(english_file, tmp_path / "whole", *BEST_KEYS)
    out = tmp_path / "cut"
    best, aside = out / "best.safetensors", out / "best-of-schedule.safetensors"
    tiny_run(english_file, out, *BEST_KEYS, max_steps=4)
    with monkeypatch.context() as patch:
        trainer = begin(english_file, out, *BEST_KEYS, resume="must", max_steps=7).trainer
        if killed_at in ("set aside", "hard links of one file", "no hard links"):
            patch.setattr(RunFolder, "save_best", die)
        elif killed_at == "best of the stop written":
            patch.setattr(type(trainer), "_best_model", die)
        try:
            for _ in observed(trainer):
                pass
        except KilledError:
            pass
        trainer.folder.close()
    assert describe(aside)["progress"]["step"] == 4
    if killed_at == "hard links of one file":
        assert best.samefile(aside)
    if killed_at == "restored before a step":
        begin(english_file, out, *BEST_KEYS, resume="must").trainer.folder.close()
        assert describe(best)["progress"]["step"] == 4 and not aside.exists()
    tiny_run(english_file, out, *BEST_KEYS, resume="must")
    _assert_same_run(tmp_path / "whole", out)


def test_a_stopped_run_stopped_again_keeps_the_schedules_best(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, looking at a stopped run with --resume, or two stops in a row, make the run another one."""
    tiny_run(english_file, tmp_path / "whole", *BEST_KEYS)
    for step in (6, 6, 7):
        run = tiny_run(english_file, tmp_path / "cut", *BEST_KEYS, resume="auto", max_steps=step)
        assert (run.record["best_step"], run.record["schedule_best_step"]) == (step, 4)
        assert describe(tmp_path / "cut" / "best.safetensors")["progress"]["step"] == step
    (tmp_path / "cut" / "last.safetensors").write_bytes(b"damaged")  # `previous`: step 6
    tiny_run(english_file, tmp_path / "cut", *BEST_KEYS, resume="must")
    _assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_another_length_and_a_finished_run_are_said(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a schedule is replaced without a word, or a finished run seems to do nothing for no reason."""
    keys = ("evaluate.every=5",)
    tiny_run(english_file, tmp_path / "r", *keys, "train.total_steps=6")
    run = tiny_run(english_file, tmp_path / "r", *keys, "train.total_steps=6", resume="auto")
    (said,) = [notice for notice in run.notices if "finished" in notice]
    assert "6 steps" in said and "train.total_steps=12" in said
    longer = tiny_run(english_file, tmp_path / "r", *keys, "train.total_steps=12", resume="auto")
    (said,) = [notice for notice in longer.notices if "planned length" in notice]
    assert "12 steps, not 6 steps" in said and "from step 7 on" in said and "cosine" in said
    assert (longer.record["step"], longer.record["stopped_because"]) == (12, "finished")
    again = tiny_run(english_file, tmp_path / "r", *keys, "train.total_steps=12", resume="auto")
    assert not [notice for notice in again.notices if "planned length" in notice]


def test_a_run_that_stopped_early_says_so_when_resumed(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, resuming a run that early stopping ended does nothing, and does not say why."""
    keys = ("train.lr=1e-30", "evaluate.every=2", "evaluate.patience=2")
    assert tiny_run(english_file, tmp_path / "r", *keys).record["stopped_because"] == "early stopping"
    run = tiny_run(english_file, tmp_path / "r", *keys, resume="auto")
    assert any("2 evaluations in a row" in notice and "evaluate.patience=4" in notice for notice in run.notices)


def test_the_two_halves_differ(halves: dict[str, tuple[Path, Path, dict[str, Any]]]) -> None:
    """If this fails, the test above compares runs that do not move: every weight, moment and state must change."""
    for case, (first, second, _) in halves.items():
        before, after = _tensors(first), _tensors(second)
        assert [name for name in before if before[name] == after[name]] == [], case


def test_going_on_from_other_weights_ends_elsewhere(
    tmp_path: Path, whole: Callable[[str], Path], halves: Any, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, resuming ignores the stored weights, moments or state, and starts anew."""
    for part in ("weights", "optimizer", "state"):
        out = tmp_path / part
        shutil.copytree(halves["lstm"][0], out)
        stored = load(out / "last.safetensors")
        match part:
            case "weights":
                other = replace(stored, weights={name: tensor * 1.001 for name, tensor in stored.weights.items()})
            case "optimizer":
                other = replace(stored, optimizer={name: tensor * 1.5 for name, tensor in stored.optimizer.items()})
            case _:
                other = replace(stored, state=tuple(tensor + 0.01 for tensor in stored.state))
        save(out / "last.safetensors", other)
        tiny_run(english_file, out, *COMMON, *CASES["lstm"], resume="must")
        assert _tensors(out) != _tensors(whole("lstm")), part


@pytest.mark.parametrize("what", ["sampling.sample", "perplexity.segments"])
@pytest.mark.parametrize("case", ["lstm", "regularised"])
def test_a_stop_interrupts_samples_and_validation_which_a_resumed_run_repeats(
    case: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Path],
    begin: Callable[..., Any],
    tiny_run: Callable[..., Any],
    english_file: Path,
) -> None:
    """Failing would mean that SIGTERM waits for a sample or a validation of any length, or that the stop changes the run."""
    module, name = what.split(".")
    owner = {"sampling": sampling, "perplexity": perplexity}[module]
    original = getattr(owner, name)
    trainer = begin(english_file, tmp_path / "run", *COMMON, *CASES[case]).trainer
    interrupted = []

    def slow(*arguments: Any, **options: Any) -> Any:
        if trainer.step == 12 and not interrupted:
            trainer.request_stop("interrupted")
            interrupted.append(trainer.step)
            options["progress"](1, 1_000_000)
            raise AssertionError("it continues although a stop was requested")
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, slow)
        *_, finished = observed(trainer)
    trainer.folder.close()
    assert interrupted == [12] and finished.record["stopped_because"] == "interrupted" and finished.record["step"] == 12
    assert finished.record["validation_nats"] is not None, "every stop evaluates"
    tiny_run(english_file, tmp_path / "run", *COMMON, *CASES[case], resume="must")
    _assert_same_run(tmp_path / "run", whole(case))


def test_max_steps_does_not_change_the_schedule(
    tmp_path: Path, whole: Callable[[str], Path], tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, a run that was stopped early had cooled its learning rate down too soon."""
    run = tiny_run(english_file, tmp_path / "r", *COMMON, *CASES["lstm"], max_steps=5)
    assert (run.record["step"], run.record["stopped_because"]) == (5, "max steps")
    planned = [line["learning_rate"] for line in _metrics(whole("lstm")) if line["kind"] == "step"]
    assert [line["learning_rate"] for line in run.lines("step")] == planned[:5]
    assert len(set(planned)) == 2 * K, "a constant schedule would show nothing"


def test_a_finished_run_has_nothing_left_to_do(
    tmp_path: Path, whole: Callable[[str], Path], tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, resuming a finished run trains on, or writes its end twice."""
    out = tmp_path / "r"
    shutil.copytree(whole("gru"), out)
    run = tiny_run(english_file, out, *COMMON, *CASES["gru"], resume="auto")
    assert (run.record["step"], run.record["resumed_from"]) == (2 * K, 2 * K)
    _assert_same_run(whole("gru"), out)


# -- stopped from outside --------------------------------------------------------------------------------------------


def _killed(begin: Callable[..., Any], corpus: Path, out: Path, *keys: str, after: int) -> None:
    """Train this number of steps, then end without saving, as after kill -9."""
    trainer = begin(corpus, out, *keys).trainer
    for event in observed(trainer):
        if getattr(event, "step", 0) > after:
            break
    trainer.folder.close()


def test_logs_are_cut_back_to_the_checkpoint(
    tmp_path: Path, begin: Callable[..., Any], tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, a step that was repeated after a crash is twice in metrics.jsonl or samples.txt."""
    keys = (*COMMON[:-3], "evaluate.every=5", "checkpoint.every=5", "sample.every=1", "sample.length=3")
    out = tmp_path / "killed"
    _killed(begin, english_file, out, *keys, after=8)
    assert describe(out / "last.safetensors")["progress"]["step"] == 5
    steps = [line["step"] for line in _metrics(out) if line["kind"] == "step"]
    assert steps[-1] > 8, "the log does not reach beyond the checkpoint, so this shows nothing"
    run = tiny_run(english_file, out, *keys, resume="must")
    assert run.record["resumed_from"] == 5
    assert [line["step"] for line in run.lines("step")] == list(range(1, 2 * K + 1))
    tiny_run(english_file, tmp_path / "whole", *keys)
    _assert_same_run(tmp_path / "whole", out)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(
    tmp_path: Path, begin: Callable[..., Any], tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, the first steps stand twice in the log, or the folder is refused though it holds no run."""
    out = tmp_path / "killed"
    keys = (*COMMON[:-3], "evaluate.every=9", "sample.every=1", "sample.length=3")
    _killed(begin, english_file, out, *keys, after=4)
    assert not (out / "last.safetensors").exists()
    run = tiny_run(english_file, out, *keys, resume="auto")
    assert run.record["resumed_from"] is None
    assert [line["step"] for line in run.lines("step")] == list(range(1, 2 * K + 1))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, english_file: Path) -> tuple[Path, tuple[str, ...]]:
    """A recipe file for a real process, and the same as overrides of the tiny recipe."""
    keys = (*COMMON[:4], "train.random_offset=true", "train.total_steps=100000", "evaluate.every=5", "checkpoint.every=5",
            "sample.every=1", "sample.length=1")  # fmt: skip
    from charlm.config import apply_overrides

    raw = {"corpus": str(english_file), "data": {"split": [0.8, 0.1, 0.1]}, "model": {"cell": "lstm", "hidden": 16},
           "train": {"lr": 0.01, "threads": 1, "precision": "fp32"}, "evaluate": {"segments": 4, "warm": 50}}  # fmt: skip
    path = tmp_path_factory.mktemp("recipes") / "endless.yaml"
    path.write_text(dump_yaml(apply_overrides(raw, keys)), encoding="utf-8")
    return path, keys


def _wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        if (out / "last.safetensors").exists():
            try:
                if describe(out / "last.safetensors")["progress"]["step"] >= step:
                    return
            except CheckpointError:
                pass  # between the two renames
        time.sleep(0.01)
    raise AssertionError("no checkpoint within a minute")


@pytest.mark.slow
def test_a_real_process_interrupted_or_killed_goes_on_exactly(
    tmp_path: Path,
    endless: tuple[Path, tuple[str, ...]],
    charlm_process: Callable[..., subprocess.Popen[str]],
    tiny_run: Callable[..., Any],
    english_file: Path,
) -> None:
    """If this fails, Ctrl-C or kill -9 costs more than the steps since the last checkpoint, or changes the run."""
    recipe, keys = endless
    outs = {signal.SIGINT: tmp_path / "interrupted", signal.SIGKILL: tmp_path / "killed"}
    processes = {
        number: charlm_process("train", recipe, "--out", out, "--device", "cpu", "--json") for number, out in outs.items()
    }
    for number, process in processes.items():
        _wait_for_step(process, outs[number], 10)
        process.send_signal(number)
    stdout, stderr = processes[signal.SIGINT].communicate(timeout=60)
    assert processes[signal.SIGINT].returncode == 130, stderr
    record = json.loads(stdout.splitlines()[-1])
    assert record["stopped_because"] == "interrupted"
    assert record["step"] == describe(outs[signal.SIGINT] / "last.safetensors")["progress"]["step"], "not saved"
    assert "--resume auto" in stderr, "it does not say how to resume"
    assert "Traceback" not in stderr
    processes[signal.SIGKILL].communicate(timeout=60)
    assert processes[signal.SIGKILL].returncode == -signal.SIGKILL

    for out in outs.values():
        step = describe(out / "last.safetensors")["progress"]["step"]
        end = step + 7
        run = tiny_run(english_file, out, *keys, resume="must", max_steps=end)
        assert run.record["resumed_from"] == step
        tiny_run(english_file, tmp_path / f"{out.name}-whole", *keys, max_steps=end)
        _assert_same_run(tmp_path / f"{out.name}-whole", out)
        headings = re.findall(r"step (\d+), epoch", (out / "samples.txt").read_text(encoding="utf-8"))
        best = describe(out / "best.safetensors")["progress"]["step"]
        expected = [*range(1, end + 1)] + [end] * (best != end)
        assert [int(number) for number in headings] == expected, "each step once, and that of an earlier best at the end"


# -- what is there and what is not -----------------------------------------------------------------------------------


@pytest.fixture
def first_half(tmp_path: Path, halves: Any) -> Path:
    """A copy of an LSTM's first half."""
    shutil.copytree(halves["lstm"][0], tmp_path / "half")
    return tmp_path / "half"


@pytest.fixture
def go_on(first_half: Path, tiny_run: Callable[..., Any], english_file: Path) -> Callable[..., Any]:
    """``go_on("train.lr=0.1", …)``: resume that half to its end."""

    def run(*keys: str, **options: Any) -> Any:
        return tiny_run(english_file, first_half, *COMMON, *CASES["lstm"], *keys, **{"resume": "must", **options})

    return run


def test_an_unreadable_last_falls_back_on_previous(
    first_half: Path, go_on: Callable[..., Any], whole: Callable[[str], Path]
) -> None:
    """If this fails, one damaged file costs the whole run, or an older one is used without a word."""
    data = bytearray((first_half / "last.safetensors").read_bytes())
    data[-1] ^= 1
    (first_half / "last.safetensors").write_bytes(data)
    step = describe(first_half / "previous.safetensors")["progress"]["step"]
    run = go_on()
    assert run.record["resumed_from"] == step < K
    assert any("last.safetensors is damaged" in notice for notice in run.notices)
    assert any(f"resuming from previous.safetensors, step {step}" in notice for notice in run.notices)
    _assert_same_run(whole("lstm"), first_half)


def test_a_damaged_last_does_not_become_previous(first_half: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, resuming from `previous` destroys it: killed before the next save, nothing readable is left."""
    previous = (first_half / "previous.safetensors").read_bytes()
    step = describe(first_half / "previous.safetensors")["progress"]["step"]
    (first_half / "last.safetensors").write_bytes(b"damaged")
    tiny_run(english_file, first_half, *COMMON, *CASES["lstm"], resume="must", max_steps=step + 1)
    assert (first_half / "previous.safetensors").read_bytes() == previous
    assert describe(first_half / "last.safetensors")["progress"]["step"] == step + 1


def test_a_lost_or_outdated_best_is_made_anew(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a run killed between `last` and `best` hands over older weights than it reports, or ends in an error."""
    keys = ("evaluate.every=2", "train.total_steps=10")
    tiny_run(english_file, tmp_path / "whole", *keys)
    tiny_run(english_file, tmp_path / "cut", *keys, max_steps=4)
    best = tmp_path / "cut" / "best.safetensors"
    assert describe(best)["progress"]["step"] == 4, "this test needs a loss that falls"
    kept = best.read_bytes()
    for damage in (best.unlink, lambda: best.write_bytes(kept[:100])):
        damage()
        tiny_run(english_file, tmp_path / "cut", *keys, resume="must", max_steps=4)
        assert describe(best)["progress"]["step"] == 4
    best.unlink()
    run = tiny_run(english_file, tmp_path / "cut", *keys, resume="must")
    ends = [load(tmp_path / name / "best.safetensors").weights for name in ("whole", "cut")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert run.record["best_step"] == describe(best)["progress"]["step"]


def test_denormals_are_flushed_on_every_thread_of_a_resumed_process(tmp_path: Path) -> None:
    """If this fails, a process that first reads a checkpoint computes other bits than one that does not, and slower."""
    script = (
        "import torch, charlm.checkpoint\n"
        "torch.set_num_threads(2)\n"
        "big = torch.full((1 << 20,), 1.0).clone() * 2\n"  # makes the worker threads, as reading a checkpoint does
        "tiny = torch.full((1 << 20,), 1e-38) * 1e-3\n"
        "print(int((tiny.view(torch.int32) != 0).sum()))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "0"


def test_a_last_that_is_missing_falls_back_on_previous(
    first_half: Path, go_on: Callable[..., Any], whole: Callable[[str], Path]
) -> None:
    """If this fails, a run whose `last` was deleted is lost although `previous` is there."""
    (first_half / "last.safetensors").unlink()
    assert go_on(resume="auto").record["resumed_from"] < K
    _assert_same_run(whole("lstm"), first_half)


def test_a_run_with_no_readable_checkpoint_is_refused(first_half: Path, go_on: Callable[..., Any]) -> None:
    """If this fails, `--resume auto` starts anew over a damaged run."""
    for name in ("last", "previous"):
        (first_half / f"{name}.safetensors").write_bytes(b"")
    before = sorted(path.name for path in first_half.iterdir())
    with pytest.raises(CheckpointError, match=r"(?s)no readable checkpoint.*last\.safetensors.*previous\.safetensors"):
        go_on(resume="auto")
    assert sorted(path.name for path in first_half.iterdir()) == before


def test_a_changed_fixed_field_is_refused_with_both_values(first_half: Path, go_on: Callable[..., Any]) -> None:
    """If this fails, a run is resumed as another model; afterwards the folder must be unlocked and unchanged."""
    before = _tensors(first_half)
    with pytest.raises(RecipeError, match=r"(?s)model\.hidden: was 16, is now 17.*train\.seed: was 1, is now 2"):
        go_on("model.hidden=17", "train.seed=2")
    assert _tensors(first_half) == before
    assert go_on().record["step"] == 2 * K


def test_a_changed_learning_rate_is_taken_and_said(
    first_half: Path, go_on: Callable[..., Any], whole: Callable[[str], Path]
) -> None:
    """If this fails, the newest recipe does not win, or wins without a word."""
    run = go_on("train.lr=0.002", "train.schedule=constant")
    assert [notice for notice in run.notices if "changed since the run began" in notice] == [
        "changed since the run began: train.lr: was 0.01, continues with 0.002",
        'changed since the run began: train.schedule: was "cosine", continues with "constant"',
    ]
    assert {line["learning_rate"] for line in run.lines("step")[K:]} == {0.002}
    assert _tensors(first_half) != _tensors(whole("lstm"))


def test_another_text_is_refused(
    first_half: Path, tiny_run: Callable[..., Any], english: Callable[..., str], tmp_path: Path
) -> None:
    """If this fails, a run is resumed in another text, at a position that means nothing there."""
    other = tmp_path / "english.txt"
    other.write_text(english(6000, seed=8), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"is not the one this run was started with \(sha256 was"):
        tiny_run(other, first_half, *COMMON, *CASES["lstm"], resume="must")


def test_a_folder_with_a_run_is_not_overwritten_unasked(
    first_half: Path, go_on: Callable[..., Any], whole: Callable[[str], Path]
) -> None:
    """If this fails, starting twice destroys a run. --overwrite moves it aside, and says where."""
    before = _tensors(first_half)
    with pytest.raises(UsageError, match=r"holds a run already; .*resume='auto'.*overwrite=True"):
        go_on(resume="never")
    run = go_on(resume="never", overwrite=True)
    aside = first_half.with_name("half.old-1")
    assert any(str(aside) in notice for notice in run.notices)
    assert _tensors(aside) == before
    assert run.record["resumed_from"] is None
    _assert_same_run(whole("lstm"), first_half)


def test_one_process_at_a_time(first_half: Path, begin: Callable[..., Any], english_file: Path, go_on: Any) -> None:
    """If this fails, two processes write to one folder."""
    begun = begin(english_file, first_half, *COMMON, *CASES["lstm"], resume="must")
    with pytest.raises(RunFolderError, match="another process is training"):
        go_on()
    begun.trainer.folder.close()
    assert go_on().record["step"] == 2 * K


@pytest.fixture
def command(endless: tuple[Path, tuple[str, ...]], capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """``command("--out", folder, …)``: `charlm train` in this process; returns the exit code and stderr."""
    from charlm.cli.app import run

    def call(*arguments: str | Path) -> tuple[int, str]:
        code = run(["train", str(endless[0]), "--device", "cpu", *map(str, arguments)])
        return code, capsys.readouterr().err

    yield call


def test_resume_must_in_an_empty_folder_exits_2(tmp_path: Path, command: Callable[..., Any]) -> None:
    """If this fails, a mistyped --out starts a new run where one was to be resumed."""
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "nowhere", tmp_path / "empty"):
        code, stderr = command("--out", out, "--resume", "must")
        assert code == 2
        assert f"there is no run in {out}" in stderr
    assert not (tmp_path / "nowhere").exists(), "a folder was left behind"


def test_the_command_line_refuses_with_2(tmp_path: Path, command: Callable[..., Any]) -> None:
    """If this fails, scripts cannot tell a wrong command from a failed run."""
    out = tmp_path / "run"
    assert command("--out", out, "--max-steps", "2")[0] == 0
    code, stderr = command("--out", out)
    assert (code, "--resume auto" in stderr, "--overwrite" in stderr) == (2, True, True)
    code, stderr = command("--out", out, "--resume", "auto", "--set", "model.hidden=5")
    assert (code, "model.hidden: was 16, is now 5" in stderr) == (2, True)
    code, stderr = command("--out", out, "--resume", "auto", "--overwrite")
    assert (code, "cannot be resumed and started anew" in stderr) == (2, True)
    code, stderr = command("--out", out, "--resume", "must", "--max-steps", "3")
    assert (code, "resumed from" in stderr) == (0, True)
