"""A run's folder: charlm writes, moves, cuts and removes only files of its own, and writes them whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.errors import CheckpointError, RunFolderError, UsageError
from charlm.files import whole_path
from charlm.training.events import RunStarted, StepDone
from charlm.training.own_files import Origin, origin
from charlm.training.run import observed
from charlm.training.run_folder import RunFolder
from charlm.yaml_text import dump_yaml, parse_yaml

STEPS = ("train.total_steps=6", "evaluate.every=2", "checkpoint.every=2", "sample.every=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_run: Callable[..., Any], english_file: Path) -> Path:
    """A finished run; only to be read."""
    return tiny_run(english_file, tmp_path_factory.mktemp("finished") / "run", *STEPS, "checkpoint.keep_every=4").folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def resume(tiny_run: Callable[..., Any], english_file: Path) -> Callable[..., Any]:
    """``resume(folder, "train.total_steps=9", …)``: two steps more, unless said otherwise."""

    def go(folder: Path, *keys: str, **options: Any) -> Any:
        return tiny_run(english_file, folder, *STEPS, "train.total_steps=8", *keys, **({"resume": "auto"} | options))

    return go


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


# -- whose file it is ------------------------------------------------------------------------------------------------


def test_every_file_of_a_run_is_recognised(run: Path) -> None:
    """If this fails, a run is refused as somebody else's, or a foreign file is taken for charlm's."""
    names = [path.name for path in run.iterdir() if path.name != ".lock"]
    assert {"best.safetensors", "config.yaml", "last.safetensors", "metrics.jsonl", "samples.txt", "step-4.safetensors"} <= {
        *names
    }
    assert {name: origin(run / name) for name in names} == dict.fromkeys(names, Origin.CHARLM)


FOREIGN = {
    "config.yaml": b"# mine\ncorpus: ./text.txt\n",
    "samples.txt": b"blood, 3 ml\n",
    "metrics.jsonl": b'{"loss": 1}\n',
    "learning-curve.png": b"\x89PNG\r\n\x1a\n of a lecture",
    "best.safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    "last.safetensors": b"PK\x03\x04",
    "step-7.safetensors": b"\x80\x04",
    "previous.safetensors": b"",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("options", [{}, {"resume": "auto"}, {"overwrite": True}], ids=str)
def test_a_folder_with_a_foreign_file_is_refused(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, name: str, options: dict[str, Any]
) -> None:
    """If this fails, a user's own file is replaced, cut to nothing or moved away."""
    out = tmp_path / "own"
    out.mkdir()
    (out / name).write_bytes(FOREIGN[name])
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"holds {name}: charlm did not write it .*out='DIR'"):
        tiny_run(english_file, out, *STEPS, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
    assert sorted(path.name for path in out.iterdir()) == sorted([name, "notes.txt"]), "not even a lock stays"
    assert (out / name).read_bytes() == FOREIGN[name]


@pytest.mark.parametrize("name", ["samples.txt", "metrics.jsonl", "learning-curve.png", "best.safetensors"])
def test_a_foreign_file_in_a_run_is_refused(run: Path, resume: Callable[..., Any], name: str) -> None:
    """If this fails, resuming cuts or replaces a file that a user put into a run's folder."""
    (run / name).write_bytes(FOREIGN[name])
    before = _contents(run)
    for options in ({"resume": "auto"}, {"resume": "never", "overwrite": True}):
        with pytest.raises(UsageError, match=f"holds {name}: charlm did not write it"):
            resume(run, **options)
    assert _contents(run) == before


def test_other_files_stay(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, --overwrite moves a user's corpus and recipe away, or a folder is refused that could be used."""
    before = _contents(run)
    others = {"text.txt": b"a text", "my.yaml": b"corpus: ./text.txt\n", ".new-mine": b"", "step-x.safetensors": b"?"}
    for name, content in others.items():
        (run / name).write_bytes(content)
    resume(run, resume="never", overwrite=True)
    assert {name: content for name, content in _contents(run).items() if name in others} == others
    assert _contents(run.with_name("run.old-1")) == before


def test_a_start_that_fails_leaves_the_earlier_run(
    run: Path, resume: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, --overwrite on a full disk moves a run to a folder that is not named, and --resume starts anew."""
    before = _contents(run)

    def full(self: RunFolder, recipe: object) -> None:
        raise RunFolderError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_config", full)
        with pytest.raises(RunFolderError, match="no space left"):
            resume(run, resume="never", overwrite=True)
    assert _contents(run) == before and not run.with_name("run.old-1").exists()
    assert resume(run).record["resumed_from"] == 6


def test_overwriting_the_current_folder(run: Path, resume: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, `--out . --overwrite` ends in a traceback, since `.` has no name to put `.old-1` after."""
    monkeypatch.chdir(run)
    resume(Path(), resume="never", overwrite=True)
    assert (run.parent / "run.old-1" / "last.safetensors").exists()


def test_kept_checkpoints_alone_are_a_run(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, `step-N` files that were kept on purpose are overwritten by a new run, or cannot be resumed."""
    for name in ("last", "previous", "best"):
        (run / f"{name}.safetensors").unlink()
    with pytest.raises(UsageError, match="holds a run already"):
        resume(run, resume="never")
    assert resume(run).record["resumed_from"] == 4


# -- config.yaml -----------------------------------------------------------------------------------------------------


def _without_mark(config: Path) -> None:
    """As charlm 0.1 wrote it."""
    config.write_text(dump_yaml(parse_yaml(config.read_text(encoding="utf-8"), "")), encoding="utf-8")


def test_an_edited_config_stays(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, comments and values that a user wrote into a run's config.yaml are lost without a word."""
    config = run / "config.yaml"
    edited = config.read_text(encoding="utf-8").replace("\ntrain:", "\n# slower now\ntrain:").encode()
    config.write_bytes(edited)
    for options in ({"resume": "auto"}, {"resume": "never", "overwrite": True}):
        notices = resume(run, **options).notices
        assert any("config.yaml was edited" in notice for notice in notices)
        assert config.read_bytes() == edited


def test_an_unedited_config_follows_the_run(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, config.yaml does not say what was trained last, or a recipe without an edit is taken for edited."""
    for steps in (8, 9):
        assert not any("config.yaml" in notice for notice in resume(run, f"train.total_steps={steps}").notices)
        config = parse_yaml((run / "config.yaml").read_text(encoding="utf-8"), "")
        assert config["train"]["total_steps"] == steps


def test_a_run_of_an_earlier_version_goes_on(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, runs from before config.yaml had a mark can be neither resumed nor moved aside."""
    _without_mark(run / "config.yaml")
    assert resume(run).record["resumed_from"] == 6
    _without_mark(run / "config.yaml")
    resume(run, resume="never", overwrite=True)
    assert (run.with_name("run.old-1") / "config.yaml").exists()


@pytest.mark.parametrize("change", ["# mine\n", "hidden: 17"])
def test_a_config_without_a_mark_that_is_not_the_runs_stays(run: Path, resume: Callable[..., Any], change: str) -> None:
    """If this fails, the recipe that a user keeps beside a run of an earlier version is replaced."""
    config = run / "config.yaml"
    _without_mark(config)
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("hidden: 16", change) if ":" in change else change + text, encoding="utf-8")
    before = config.read_bytes()
    assert any("config.yaml was edited" in notice for notice in resume(run).notices)
    assert config.read_bytes() == before


def test_what_a_killed_start_left_is_replaced(
    tmp_path: Path, begin: Callable[..., Any], tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, a run that was killed before its first checkpoint blocks its folder, with or without a mark."""
    for marked in (True, False):
        out = tmp_path / str(marked)
        begin(english_file, out, *STEPS).trainer.folder.close()
        (out / "metrics.jsonl").touch()
        assert not (out / "last.safetensors").exists()
        if not marked:
            _without_mark(out / "config.yaml")
        assert tiny_run(english_file, out, *STEPS).record["step"] == 6


# -- links -----------------------------------------------------------------------------------------------------------

NAMES = ("metrics.jsonl", "samples.txt", "config.yaml", "learning-curve.png", "last.safetensors", "step-4.safetensors", ".lock")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", ["link", "dangling", "pipe", "folder"])
def test_what_is_not_a_file_is_refused(run: Path, resume: Callable[..., Any], name: str, make: str) -> None:
    """If this fails, a run's folder from a stranger makes charlm overwrite any file of its user, or wait for ever."""
    target = run.parent / "precious"
    (run / name).unlink(missing_ok=True)
    match make:
        case "link":
            target.write_text("precious", encoding="utf-8")
            (run / name).symlink_to(target)
        case "dangling":
            (run / name).symlink_to(target)
        case "pipe":
            os.mkfifo(run / name)
        case _:
            (run / name).mkdir()
    for options in ({"resume": "auto"}, {"resume": "never", "overwrite": True}, {"resume": "never"}):
        with pytest.raises(UsageError, match=rf"{name} is a (symbolic link|device, pipe|folder).*out='DIR'"):
            resume(run, **options)
    assert not target.exists() or target.read_text(encoding="utf-8") == "precious"


def test_a_log_with_a_second_name_is_copied(run: Path, resume: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, a hard link lets a run write to a file outside its folder, such as a backup's."""
    for name in ("metrics.jsonl", "samples.txt"):
        os.link(run / name, tmp_path / name)
    before = _contents(tmp_path)
    resume(run)
    assert _contents(tmp_path) == before
    assert (run / "metrics.jsonl").stat().st_size > len(before["metrics.jsonl"])
    assert (run / "metrics.jsonl").stat().st_nlink == 1


def test_a_log_that_becomes_a_link_is_not_written(run: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a link that is made after the start is followed."""
    folder = begin(english_file, run, *STEPS, resume="auto").trainer.folder
    target = run.parent / "precious"
    target.write_text("precious", encoding="utf-8")
    (run / "samples.txt").unlink()
    (run / "samples.txt").symlink_to(target)
    with pytest.raises(RunFolderError, match=r"cannot write .*samples\.txt"):
        folder.record_sample("step 1", "text")
    (run / "samples.txt").unlink()
    os.link(target, run / "samples.txt")
    with pytest.raises(RunFolderError, match="replaced by a link"):
        folder.record_sample("step 1", "text")
    folder.close()
    assert target.read_text(encoding="utf-8") == "precious"


def test_a_folder_may_be_a_link(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, runs cannot be kept on another disk."""
    link = run.with_name("link")
    link.symlink_to(run)
    assert resume(link).record["resumed_from"] == 6


# -- the lock --------------------------------------------------------------------------------------------------------


def test_a_removed_lock_is_locked_anew(run: Path, begin: Callable[..., Any], english_file: Path, resume: Any) -> None:
    """If this fails, removing `.lock` by hand lets a second process write to a run, or ends the first without need."""
    trainer = begin(english_file, run, *STEPS, "train.total_steps=8", resume="auto").trainer
    events = observed(trainer)
    (run / ".lock").unlink()
    assert [type(next(events)) for _ in range(2)] == [RunStarted, StepDone]
    with pytest.raises(RunFolderError, match="another process is training"):
        resume(run)
    assert list(events)[-1].record["step"] == 8
    trainer.folder.close()


def test_a_process_that_lost_its_lock_writes_nothing(run: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, two processes mix their logs and checkpoints after `.lock` was removed."""
    first = begin(english_file, run, *STEPS, "train.total_steps=8", resume="auto").trainer
    events = observed(first)
    assert [type(next(events)) for _ in range(2)] == [RunStarted, StepDone]
    (run / ".lock").unlink()
    second = begin(english_file, run, *STEPS, "train.total_steps=8", resume="auto").trainer
    before = _contents(run)
    with pytest.raises(RunFolderError, match="another process has locked the folder"):
        list(events)
    first.folder.close()
    assert _contents(run) == before
    assert list(observed(second))[-1].record["step"] == 8
    second.folder.close()


def test_a_folder_that_was_removed_is_said(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a run whose folder is gone trains on for hours, or ends in a traceback."""
    trainer = begin(english_file, tmp_path / "run", *STEPS).trainer
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunFolderError, match="was removed"):
        list(observed(trainer))
    trainer.folder.close()


def test_a_lock_file_of_another_program_is_left(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, another program's `.lock` is emptied."""
    (run / ".lock").write_text("pid 7", encoding="utf-8")
    with pytest.raises(UsageError, match=r"\.lock is not charlm's"):
        resume(run)
    assert (run / ".lock").read_text(encoding="utf-8") == "pid 7"


# -- writing ---------------------------------------------------------------------------------------------------------


def test_what_killed_writers_left_is_removed(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, every kill while saving costs the size of a checkpoint for ever, or a foreign file is removed."""
    remains = [".last.safetensors.123.tmp", ".previous.safetensors.tmp", f".new-{'0' * 32}"]
    others = [".last.safetensors.tmp.bak", f".new-{'0' * 31}", ".other.safetensors.1.tmp"]
    for name in remains + others:
        (run / name).touch()
    hidden = run / f".new-{'f' * 32}"
    hidden.mkdir()
    (hidden / "last.safetensors").touch()
    links = [run / ".best.safetensors.9.tmp", run / f".new-{'a' * 32}"]
    for link in links:
        link.symlink_to("last.safetensors")
    resume(run)
    names = {path.name for path in run.iterdir()}
    assert names.isdisjoint([*remains, hidden.name])
    assert names >= {*others, *(link.name for link in links)}


def test_a_writer_killed_in_the_middle_leaves_the_old_file(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, kill -9 while saving destroys a checkpoint, or leaves a file that no start removes."""
    script = (
        "import os, pathlib, sys\nfrom charlm.files import whole_path\n"
        "with whole_path(pathlib.Path(sys.argv[1])) as new:\n    new.write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
    )
    before = _contents(run)
    done = subprocess.run([sys.executable, "-c", script, str(run / "last.safetensors")], check=False)
    assert done.returncode == -9
    assert _contents(run) == before
    assert any(path.name.startswith(".new-") for path in run.iterdir())
    resume(run)
    assert not any(path.name.startswith(".new-") for path in run.iterdir())


def test_a_failed_save_leaves_both_checkpoints(tmp_path: Path) -> None:
    """If this fails, a full disk costs `previous`: it is replaced before the new file is complete."""
    last, previous = tmp_path / "last", tmp_path / "previous"
    last.write_text("2", encoding="utf-8")
    previous.write_text("1", encoding="utf-8")

    def save(fails: bool) -> None:
        with whole_path(last, keep=previous) as new:
            new.write_text("3", encoding="utf-8")
            if fails:
                raise OSError

    with pytest.raises(OSError):
        save(fails=True)
    assert (previous.read_text(encoding="utf-8"), last.read_text(encoding="utf-8")) == ("1", "2")
    save(fails=False)
    assert (previous.read_text(encoding="utf-8"), last.read_text(encoding="utf-8")) == ("2", "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "previous"]


_LIMITED = """
import json, pathlib, resource, runpy, sys
from charlm.training.run import run
shared = runpy.run_path(sys.argv[1])
begun = shared["started"](sys.argv[2], pathlib.Path(sys.argv[3]), *sys.argv[5:], resume="auto")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    run(begun.trainer)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("fails", ["log", "checkpoint"])
def test_a_file_size_limit_leaves_whole_files(run: Path, english_file: Path, fails: str) -> None:
    """If this fails, a full disk or a quota leaves half a line, half a checkpoint or a temporary file."""
    before = _contents(run)
    room = 30  # bytes for a line that is longer
    limit, problem = {
        "log": (len(before["metrics.jsonl"].rpartition(b'{"kind": "finished"')[0]) + room, "RunFolderError cannot write"),
        "checkpoint": (10_000, "CheckpointError cannot write"),
    }[fails]
    conftest = Path(__file__).parents[1] / "conftest.py"
    command = [sys.executable, "-c", _LIMITED, conftest, english_file, run, str(limit), *STEPS, "train.total_steps=8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(problem), done.stdout + done.stderr
    assert "File too large" in done.stdout
    after = _contents(run)
    assert all(after[name] == before[name] for name in before if name.endswith(".safetensors"))
    assert after.keys() == before.keys()
    assert after["metrics.jsonl"].endswith(b"}\n") and after["samples.txt"].endswith(b"\n\n")


def test_a_config_that_cannot_be_written_leaves_the_old_one(run: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a full disk leaves half a config.yaml."""
    before = (run / "config.yaml").read_bytes()

    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(RunFolderError, match=r"cannot write .*config\.yaml: File too large"):
            begin(english_file, run, *STEPS, "train.total_steps=8", resume="auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "config.yaml").read_bytes() == before


# -- where it is -----------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a wrong --out is answered with `File exists`, or leaves folders behind."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for out, cause in (
        ("file", "file is not a folder"),
        ("file/run", "file is not a folder"),
        ("dangling", "dangling is a link to nothing"),
        ("dangling/run", "dangling is a link to nothing"),
    ):
        with pytest.raises(RunFolderError, match=rf"cannot write in the run's folder .*{cause}; use another folder"):
            tiny_run(english_file, tmp_path / out, *STEPS)
    with pytest.raises(UsageError):
        tiny_run(english_file, tmp_path / "new" / "deep" / "run", *STEPS, resume="must")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_only_best_is_not_a_run_to_resume(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, a user who kept only `best` is told that there is no run."""
    for path in run.iterdir():
        if path.name != "best.safetensors":
            path.unlink()
    for how in ("auto", "must"):
        with pytest.raises(UsageError, match=r"holds only best\.safetensors.*cannot be resumed; .*overwrite=True init='.*best"):
            resume(run, resume=how)
    assert resume(run, resume="never", overwrite=True, init=str(run / "best.safetensors")).record["step"] == 8


def test_a_damaged_checkpoint_of_a_run_is_still_a_runs(run: Path, resume: Callable[..., Any]) -> None:
    """If this fails, a checkpoint that was cut off is called foreign, and the run cannot be resumed from `previous`."""
    for content in (b"", b"x" * 50, (run / "last.safetensors").read_bytes()[:60]):
        (run / "last.safetensors").write_bytes(content)
        assert resume(run, max_steps=5).record["resumed_from"] is not None
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        for name in ("last", "previous", "step-4"):
            (run / f"{name}.safetensors").write_bytes(b"")
        resume(run)
