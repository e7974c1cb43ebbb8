"""``charlm train`` from start to end: what it writes, where, and how a run is resumed."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from charlm.cli.options import unknown_note
from charlm.cli.train import LogChoice

KEYS = [
    "perplexity",
    "nats_per_character",
    "bits_per_character",
    "characters",
    "unknown_characters",
    "characters_per_second",
    "step",
    "epoch",
    "train_nats",
    "validation_nats",
    "best_validation_nats",
    "seconds",
    "resumed_from",
    "device",
    "engine",
    "precision",
    "parameters",
    "checkpoint",
    "stopped_because",
]


def test_a_recipe_that_names_only_a_text_is_complete(charlm, desk):
    """Failing would mean that the smallest recipe asks for more than a text."""
    (desk / "mine.yaml").write_text("corpus: text.txt\n", encoding="utf-8")
    done = charlm("train", "mine.yaml", "--set", "model.hidden=4", "--max-steps", 2)
    assert done.code == 0
    files = {path.name for path in (desk / "checkpoints" / "mine").iterdir()}
    assert files >= {"last.safetensors", "best.safetensors", "config.yaml", "metrics.jsonl", "samples.txt"}


def test_json_is_the_last_line_and_has_every_key_of_the_contract(charlm, desk):
    """Failing would mean that scripts cannot read how a training ended."""
    done = charlm("train", "recipe.yaml", "--out", "run", "--json")
    assert done.code == 0
    assert set(KEYS) <= done.record.keys()
    assert len(done.text.splitlines()) == 1
    assert (done.record["step"], done.record["stopped_because"], done.record["resumed_from"]) == (20, "finished", None)
    assert Path(done.record["checkpoint"]).is_file()


def test_json_of_a_run_without_a_step_is_still_json(charlm, desk):
    """Failing would mean that NaN, which is not JSON, gets into the record."""
    done = charlm("train", "recipe.yaml", "--out", "run", "--max-steps", 0, "--json", "--set", "data.split=[1, 0, 0]")
    assert done.code == 0
    assert done.record["train_nats"] is None


def test_results_go_to_stdout_and_all_else_to_stderr(charlm, desk):
    """Failing would mean that a pipe gets progress, or that a terminal shows no result."""
    done = charlm("train", "recipe.yaml", "--out", "run")
    assert done.text.splitlines()[-1].startswith("validation perplexity ")
    for word in ("vocabulary", "perplexity     char/s", "evaluate"):
        assert word in done.err
        assert word not in done.text


def test_quiet_leaves_only_the_result(charlm, desk):
    """Failing would mean that --quiet is not."""
    done = charlm("train", "recipe.yaml", "--out", "run", "--quiet")
    assert done.err == ""
    assert "perplexity" in done.text


def test_without_a_terminal_there_are_no_escape_codes(charlm, desk, monkeypatch):
    """Failing would mean that logs fill with colours and redrawn lines."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    done = charlm("train", "recipe.yaml", "--out", "run")
    assert b"\x1b" not in done.out + done.err.encode()
    assert "\r" not in done.err


def test_a_folder_with_a_run_is_refused_with_the_ways_out(charlm, desk):
    """Failing would mean that a second start destroys a run, or leaves its user without advice."""
    charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 2)
    before = (desk / "run" / "last.safetensors").read_bytes()
    done = charlm("train", "recipe.yaml", "--out", "run")
    assert done.code == 2
    assert "--resume auto" in done.err and "--overwrite" in done.err
    assert (desk / "run" / "last.safetensors").read_bytes() == before


def test_overwrite_moves_the_old_run_aside(charlm, desk):
    """Failing would mean that --overwrite destroys what it replaces."""
    charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 2)
    before = (desk / "run" / "last.safetensors").read_bytes()
    done = charlm("train", "recipe.yaml", "--out", "run", "--overwrite", "--max-steps", 3)
    assert done.code == 0
    assert "run.old-1" in done.err
    assert (desk / "run.old-1" / "last.safetensors").read_bytes() == before


def test_auto_goes_on_and_max_steps_counts_earlier_attempts(charlm, desk):
    """Failing would mean that --resume auto starts anew, or that --max-steps means steps of this attempt."""
    charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 7)
    done = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto", "--max-steps", 9, "--json", "-q")
    assert (done.record["resumed_from"], done.record["step"]) == (7, 9)
    steps = [json.loads(line) for line in (desk / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "step"] == list(range(1, 10))


def test_auto_starts_where_nothing_is_and_must_does_not(charlm, desk):
    """Failing would mean that a script cannot tell "resume" from "resume or start"."""
    refused = charlm("train", "recipe.yaml", "--out", "new", "--resume", "must")
    assert refused.code == 2 and "no run in new" in refused.err
    assert not (desk / "new").exists()
    assert charlm("train", "recipe.yaml", "--out", "new", "--resume", "auto", "-q", "--max-steps", 1).code == 0


def test_a_finished_run_resumed_is_finished_still(charlm, desk):
    """Failing would mean that resuming a finished run trains further or fails."""
    first = charlm("train", "recipe.yaml", "--out", "run", "--json", "-q").record
    again = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto", "--json", "-q").record
    assert (again["step"], again["perplexity"]) == (first["step"], first["perplexity"])


def test_the_printed_command_goes_on_even_with_odd_names(charlm, desk):
    """Failing would mean that the resume command breaks when it is pasted."""
    done = charlm("train", "recipe.yaml", "--out", "mein Lauf ü", "--set", "sample.prompt=a b", "--max-steps", 2)
    line = next(line for line in done.err.splitlines() if line.startswith("resume with"))
    command = shlex.split(line.removeprefix("resume with"))
    assert command[0] == "charlm"
    gone_on = charlm(*command[1:], "--max-steps", 3, "--json", "-q")
    assert gone_on.record["resumed_from"] == 2


def test_a_damaged_last_falls_back_to_previous_and_says_so(charlm, desk):
    """Failing would mean that one bad file loses a run, or that the loss of steps is kept from its user."""
    charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 7)
    last = desk / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    done = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto", "--max-steps", 8, "--json")
    assert done.code == 0
    assert done.record["resumed_from"] == 5
    assert "truncated or damaged" in done.err and "previous" in done.err


def test_a_fixed_key_cannot_change_while_a_run_goes_on(charlm, desk):
    """Failing would mean that a resumed run silently becomes another model."""
    charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 1)
    done = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto", "--set", "model.hidden=9")
    assert done.code == 2
    assert "model.hidden: was 8, is now 9" in done.err


def test_a_changed_text_is_not_gone_on_with(charlm, desk):
    """Failing would mean that a run is resumed with another text without a message."""
    charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 1)
    (desk / "text.txt").write_text("another text altogether\n" * 100, encoding="utf-8")
    done = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto")
    assert done.code == 2 and "sha256" in done.err


def test_max_time_includes_the_last_evaluation(charlm, desk):
    """Failing would mean that a job with a time limit is killed before it has saved."""
    done = charlm(
        "train", "recipe.yaml", "--out", "run", "--set", "train.total_steps=1000000", "--max-time", "3s", "--json", "-q"
    )
    assert done.record["stopped_because"] == "max time"
    assert done.record["seconds"] < 3


def test_dropping_validation_reports_training_and_keeps_a_best(charlm, desk):
    """Failing would mean that a text without validation cannot be trained or sampled."""
    done = charlm("train", "recipe.yaml", "--out", "run", "--set", "data.split=[1, 0, 0]", "--json", "-q")
    assert done.record["measured_on"] == "training"
    assert (desk / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("argument", ["1e-3", "0.001", "1.0E-3"])
def test_numbers_as_yaml_1_2_writes_them(charlm, desk, argument):
    """Failing would mean that 1e-3 is taken for text."""
    done = charlm("train", "recipe.yaml", "--out", "run", "--set", f"train.lr={argument}", "--max-steps", 1)
    assert done.code == 0 and "rate 0.001," in done.err


@pytest.mark.parametrize("terminal_columns", [80, 120])
def test_lines_of_the_live_display_fit_the_terminal(terminal_columns):
    """Failing would mean that rows wrap and that the progress line is cut off in a common terminal."""
    from charlm.cli.watch import TABLE, status_line, table_row
    from charlm.training.events import Evaluated, RunStarted, StepDone
    from charlm.training.plan import Limits

    wide = terminal_columns >= 110
    started = RunStarted(None, 100_000, Limits(started_at=0.0, max_seconds=1e9), 32 * 64)
    step = StepDone(12_345, 17.25, 1.2345, 2e-3, 0.5, 25_282_560, 205.0, 1_123_456.0)
    bar = 24
    assert bar + len(f" {status_line(step, started, wide)} 59 min 59 s left (limit)") <= terminal_columns
    ends = [sum(width + 2 for _, width in TABLE[: index + 1]) - 2 for index in range(len(TABLE))]
    for best in (True, False):
        event = Evaluated(1_012_345, 117.25, 1.2345, None, None, 1.2345, best, True, 50_000, 499_579, 20_500.0)
        row = table_row(event, step)
        assert len(row) <= 79
        assert [row[: end].split()[-1].strip("*") for end in ends] == [
            "1,012,345", "117.25", "1.2345", "1.2345", "1.781", "3.437", "1,123,456", "5:41:40",
        ]  # fmt: skip
        assert ("1.2345*" in row) is best


def test_the_time_left_is_that_to_the_earlier_end():
    """Failing would mean that a run with a limit promises minutes that it does not have."""
    from charlm.cli.watch import End, Pauses, time_left
    from charlm.training.events import RunStarted, StepDone
    from charlm.training.plan import Limits

    def left(seconds: float | None, steps: int | None, max_steps: int | None = None) -> End | None:
        started = RunStarted(None, steps, Limits(time.monotonic(), max_steps, seconds), characters_per_step=10)
        end = time_left(StepDone(10, 1.0, 1.0, 1.0, 1.0, 100, 10.0, 10.0), started, Pauses())
        return end and End(round(end.seconds), end.is_limit)

    assert left(None, 110) == End(100, False)
    assert left(1000, 110) == End(100, False)
    assert left(60, 110) == End(60, True)
    assert left(60, None) == End(60, True)
    assert left(None, 110, max_steps=30) == End(20, False)
    assert left(None, None) is None


def test_the_time_left_includes_validations_and_the_end():
    """Failing would mean that the time left ignores minutes of validation and stays at zero while the end is measured."""
    from charlm.cli.watch import Pauses, time_left
    from charlm.training.events import Evaluated, RunStarted, Sampled, Saved, StepDone
    from charlm.training.plan import Limits

    pauses, started = Pauses(), RunStarted(None, 30, Limits(0.0), characters_per_step=10)
    pauses.note(started, 100.0)
    for step in range(1, 11):
        pauses.note(StepDone(step, 1.0, 1.0, 1.0, 1.0, 10 * step, 1.0 * step, 10.0), 100.0 + step)
    pauses.note(Sampled(10, 1.0, "", "text"), 112.0)
    pauses.note(Evaluated(10, 1.0, 1.0, None, None, 1.0, True, True, 50, 201, 16.0), 116.0)
    pauses.note(Saved(10), 117.0)
    assert pauses.per_step == (2 + 4 + 1) / 10
    assert pauses.end == 3 * 4 * 201 / 50
    end = time_left(StepDone(10, 1.0, 1.0, 1.0, 1.0, 100, 10.0, 10.0), started, pauses)
    assert end is not None and abs(end.seconds - (20 * 1.7 + pauses.end)) < 1e-9


def test_the_header_comes_again_when_it_has_left_the_screen(monkeypatch):
    """Failing would mean that after an hour nobody can tell the columns apart, or that each row has a header."""
    from charlm.cli.watch import Watch
    from charlm.training.events import Evaluated

    class Screen:
        is_wide, is_drawn, height = False, True, 24

        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str, style: str = "") -> int:
            self.lines.append(text)
            return 1

    screen = Screen()
    watch = Watch(screen)
    for step in range(50):
        watch(Evaluated(step, 1.0, 1.0, None, None, 1.0, False, True, 10, 20, 1.0))
    headers = [number for number, line in enumerate(screen.lines) if "perplexity" in line]
    assert len(headers) == 3 and headers[0] == 1
    assert max(second - first for first, second in pairwise(headers)) <= 23


def test_the_summary_says_which_weights_and_which_characters(charlm, desk):
    """Failing would mean that a quick result is taken for the exact one, or one step's weights for another's."""
    keys = ["--set", "evaluate.characters=50", "--set", "evaluate.warm=10"]
    done = charlm("train", "recipe.yaml", "--out", "run", "--max-steps", 7, *keys)
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert "validation on 50 of 149 characters, in nats per character; * best so far" in lines
    header = next(number for number, line in enumerate(lines) if line.split()[:2] == ["step", "epoch"])
    assert lines[header + 1].split()[0] == "5" and "*" in lines[header + 1]
    assert "stopped       max steps at step 7, epoch" in done.err and "; 20 planned" in done.err
    assert "best weights  step 7; the schedule's best, step 5, is kept" in done.err
    assert "exact: fp32, state carried, all 149 characters" in done.err
    assert "nats on 50 of 149 characters, evenly spread" in done.err
    assert "exact on the same 50 characters" in done.err
    finished = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto", *keys)
    assert "best weights  step 20\n" in finished.err
    again = charlm("train", "recipe.yaml", "--out", "run", "--resume", "auto", *keys)
    assert "this run is finished" in again.err and "resume it with train.total_steps=40" in again.err


def test_a_text_is_a_recipe(charlm, desk):
    """Failing would mean that the first thing a user tries, training on a text, answers with errors about YAML."""
    folder = desk / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes((desk / "text.txt").read_bytes())
    (desk / "My Text (1).txt").write_bytes((desk / "text.txt").read_bytes())
    few = ["--set", "model.hidden=4", "--max-steps"]
    for given, name in (("text.txt", "text"), ("./texts", "texts"), ("texts/*.txt", "texts"), ("My Text (1).txt", "My-Text-1")):
        done = charlm("train", given, *few, 1, "--overwrite")
        assert done.code == 0, done.err
        config = f"checkpoints/{name}/config.yaml"
        assert f"{config}, written for {given}" in done.err.splitlines()[0]
        line = next(line for line in done.err.splitlines() if line.startswith("resume with"))
        resumed = charlm(*shlex.split(line.removeprefix("resume with"))[1:], "--max-steps", 2, "--json", "-q")
        assert (resumed.code, resumed.record["resumed_from"]) == (0, 1)
        assert charlm("sample", name, "--length", 1).code == 0
    assert charlm("train", config, *few, 1, "--out", "again", "-q").code == 0
    (desk / "bare").write_bytes((desk / "text.txt").read_bytes())
    refused = charlm("train", "bare")
    assert refused.code == 2 and "write ./bare" in refused.err
    a_run = charlm("train", "checkpoints/texts")
    assert a_run.code == 2 and "is a run's folder" in a_run.err and "--resume auto" in a_run.err
    missing = charlm("train", "nothing.txt")
    assert missing.code == 2 and "nothing.txt does not exist" in missing.err


@pytest.mark.parametrize(
    ("changed", "arguments", "compares"),
    [
        ({}, [], True),
        ({}, ["--seed", "4", "--set", "sample.length=3"], True),
        ({}, ["--set", "model.dropout=0.1"], False),
        ({}, ["--max-steps", "19"], False),
        ({"corpus": "other.txt"}, [], False),
        ({"reported": 3.0, "corpus": "other.txt"}, [], True),
    ],
)
def test_only_the_authors_own_recipe_is_compared_with_its_result(charlm, desk, monkeypatch, changed, arguments, compares):
    """Failing would mean that another text, or an overridden recipe, is measured against the author's result."""
    text = (desk / "recipe.yaml").read_text(encoding="utf-8")
    text += "reported: {metric: validation_nats, value: 2.0}\n"
    (desk / "shipped.yaml").write_text(text, encoding="utf-8")
    (desk / "other.txt").write_bytes((desk / "text.txt").read_bytes())
    text = text.replace("./text.txt", changed.get("corpus", "./text.txt"))
    text = text.replace("value: 2.0", f"value: {changed.get('reported', 2.0)}")
    (desk / "mine.yaml").write_text(text, encoding="utf-8")
    shipped = {"shipped": desk / "shipped.yaml"}
    monkeypatch.setattr("charlm.config.loading.shipped_files", lambda kind: shipped)
    monkeypatch.setattr("charlm.resources.shipped_files", lambda kind: shipped)
    done = charlm("train", "mine.yaml", "--out", "run", *arguments)
    assert done.code == 0, done.err
    assert ("this recipe states" in done.err) is compares


def test_going_on_needs_neither_the_unit_nor_the_split_again(charlm, desk):
    """Failing would mean that a run can be resumed only with every override that it was started with."""
    given = ["--set", "data.unit=byte", "--set", "data.split=[0.8, 0.1, 0.1]", "--set", "train.seed=3"]
    assert charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 1, *given).code == 0
    done = charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 2, "--resume", "auto", "--json")
    assert done.code == 0 and done.record["step"] == 2
    stored = charlm("info", "run", "--json").record["recipe"]
    assert (stored["data"]["unit"], stored["data"]["split"], stored["train"]["seed"]) == ("byte", [0.8, 0.1, 0.1], 3)


def test_the_command_that_goes_on_names_the_device(charlm, desk):
    """Failing would mean that a run that was kept on the CPU is resumed on a GPU, which is not bit-identical."""
    done = charlm("train", "recipe.yaml", "--out", "run", "--device", "cpu", "--max-steps", 1)
    assert "--device cpu --resume auto" in done.err


def test_a_text_of_digits_on_the_command_line_is_a_text(charlm, desk):
    """Failing would mean that a sonnet cannot begin with its number."""
    done = charlm("train", "recipe.yaml", "--out", "run", "-q", "--max-steps", 1, "--set", "sample.prompt=1603", "--json")
    assert done.code == 0
    assert charlm("info", "run", "--json").record["recipe"]["sample"]["prompt"] == "1603"


def test_a_share_of_unknown_characters_is_said_beside_the_result(charlm, desk):
    """Failing would mean that a low perplexity is shown without the reason: a part of the text is one symbol."""
    done = charlm("train", "recipe.yaml", "--out", "rare", "--set", "data.min_count=150", "--set", "train.total_steps=4")
    share = re.search(r"perplexity [\d.]+ \((\d+\.\d) % of the characters scored as <unk>\), [\d,.]+ characters/s", done.text)
    assert share and float(share[1]) > 1, done.text
    assert "of the characters scored as <unk>, so this result is not comparable" in done.err
    measured = charlm("eval", "perplexity", "rare")
    assert f"({share[1]} % of the characters scored as <unk>)" in measured.text.splitlines()[0]
    assert unknown_note(0.0009) == ""


def test_log_says_what_to_install(charlm, desk, monkeypatch):
    """Failing would mean that a missing package is a traceback, or is noticed only after the run."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = charlm("train", "recipe.yaml", "--out", "run", "--log", "tensorboard")
    assert done.code == 2 and not (desk / "run").exists()
    assert "--log tensorboard: the package is not installed; pip install 'charlm[tensorboard]'" in " ".join(done.err.split())


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_failing_log_is_one_notice(charlm, desk, monkeypatch, quiet):
    """Failing would mean that a failing logger ends the run, changes its exit code, or fails without a word."""
    from charlm.training import observers

    class Failing:
        def __call__(self, event):
            raise OSError("no space left")

    assert [choice.value for choice in LogChoice] == list(observers.LOGGERS)
    monkeypatch.setitem(observers.LOGGERS, "tensorboard", lambda folder: Failing())
    done = charlm("train", "recipe.yaml", "--out", "run", "--log", "tensorboard", "--max-steps", 3, *quiet)
    assert done.code == 0 and "perplexity" in done.text
    assert " ".join(done.err.split()).count("Failing failed and is not called again: OSError: no space left") == 1
    assert quiet or "--log tensorboard --resume auto" in " ".join(done.err.split())


def test_short_forms_are_overrides(charlm, desk):
    """Failing would mean that --cell and --hidden are stored in another way than --set, or that one silently wins."""
    few = ["text.txt", "--max-steps", 1, "--json", "--cell", "gru", "--hidden", 6]
    done = charlm("train", *few)
    assert done.code == 0, done.err
    assert "charlm train text.txt --cell gru --hidden 6 --resume auto" in done.err
    stored = charlm("info", "text", "--json").record["recipe"]["model"]
    assert (stored["cell"], stored["hidden"]) == ("gru", 6)
    for option, value, override in (("--cell", "gru", "model.cell=lstm"), ("--hidden", "6", "model.hidden=8")):
        refused = charlm("train", "text.txt", option, value, "--set", override, "--out", "other")
        assert refused.code == 2
        assert f"{option} {value} and --set {override} set the same key" in refused.err
    wrong = charlm("train", "text.txt", "--cell", "lstn", "--out", "other")
    assert wrong.code == 2 and "model.cell" in wrong.err
    assert not (desk / "other").exists()


def test_standard_input_is_kept_so_that_a_run_can_be_resumed(charlm, desk, monkeypatch):
    """Failing would mean that a run on a piped text cannot be resumed, or resumes with another text."""
    monkeypatch.setenv("CHARLM_DATA", str(desk / "data"))

    def train(text: str, *arguments):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return charlm("train", "-", "--hidden", 4, "--json", *arguments)

    text = (desk / "text.txt").read_text(encoding="utf-8")
    done = train(text, "--max-steps", 1)
    assert done.code == 0, done.err
    (stored,) = (desk / "data" / "texts").iterdir()
    assert stored.read_text(encoding="utf-8") == text
    assert f"the text from standard input is stored in {stored}" in done.err
    config = desk / Path(done.record["checkpoint"]).parent / "config.yaml"
    assert str(stored) in config.read_text(encoding="utf-8")
    line = next(line for line in done.err.splitlines() if line.startswith("resume with"))
    resumed = charlm(*shlex.split(line.removeprefix("resume with"))[1:], "--max-steps", 2, "--json")
    assert (resumed.code, resumed.record["resumed_from"]) == (0, 1), resumed.err
    piped_again = train(text, "--max-steps", 3, "--resume", "auto")
    assert (piped_again.code, piped_again.record["resumed_from"]) == (0, 2), piped_again.err
    other = train(text[::-1], "--max-steps", 1, "--resume", "auto")
    assert (other.code, other.record["resumed_from"]) == (0, None), other.err
    assert other.record["checkpoint"] != done.record["checkpoint"]
    empty = train("")
    assert empty.code == 2 and "stdin is empty" in empty.err
