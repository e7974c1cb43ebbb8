"""``charlm compare``: the table, the JSON, and that a stopped one can be resumed."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charlm.config import load_recipe
from charlm.training.trainer import Trainer

KEYS = {
    "name", "recipe", "cell", "hidden", "parameters", "characters_per_second", "training_characters", "validation_nats",
    "validation_nats_by_seed", "perplexity", "bits_per_character", "seconds_to", "seconds", "runs",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here; one test draws."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("charlm.cli.curve.write_comparison_png", lambda curves, measured_on, path: False)


def test_json_has_every_key_and_a_second_call_trains_nothing(
    charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that scripts cannot read a comparison, or that looking at it again costs the training again."""
    command = ("compare", "recipe.yaml", "--cells", "gru,lstm", "--seeds", "2", "--json")
    first = charlm(*command)
    assert first.code == 0 and len(first.text.splitlines()) == 1
    gru, lstm = first.record["candidates"]
    assert gru.keys() >= KEYS and first.record.keys() >= {"candidates", "to_perplexity", "equal", "picture"}
    assert (gru["name"], gru["recipe"], gru["cell"], gru["hidden"]) == ("recipe-gru", "recipe", "gru", 8)
    assert gru["parameters"] < lstm["parameters"] and gru["training_characters"] == lstm["training_characters"]
    assert len(gru["validation_nats_by_seed"]) == 2 and gru["seconds_to"] > 0
    assert sum(gru["validation_nats_by_seed"]) / 2 == pytest.approx(gru["validation_nats"])
    assert first.record["equal"] == "characters"
    runs = {path.name for path in (desk / "checkpoints" / "compare-recipe").iterdir() if path.is_dir()}
    assert runs == {f"recipe-{cell}-seed{seed}" for cell in ("gru", "lstm") for seed in (1, 2)}
    assert charlm("info", "checkpoints/compare-recipe/recipe-gru-seed2").code == 0

    def never(self: Trainer) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(Trainer, "_train_step", never)
    again = charlm(*command)
    assert again.record == first.record and "trained already" in again.err
    one = charlm("compare", "recipe.yaml", "--cells", "lstm", "--to", "2")
    assert one.code == 0 and "s to 2" in one.text and "–" in one.text


def test_the_table_has_a_row_per_candidate_and_one_picture(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that the result is not to be read, or that its curves are missing."""
    pytest.importorskip("matplotlib")
    done = charlm("compare", "recipe.yaml", "--vary", "model.hidden=4,8", "--out", "both", "--set", "train.total_steps=10")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.text.splitlines() if line.strip()]
    assert lines[0] == ["recipe"] and lines[1][:4] == ["candidate", "parameters", "validation", "nats"]
    assert [line[0] for line in lines[3:5]] == ["hidden=4", "hidden=8"] and all(len(line) == 9 for line in lines[3:5])
    assert "equal characters" in done.text and "without evaluations" in done.text
    assert "run 2 of 2: recipe-hidden=8-seed1" in done.err and "\x1b" not in done.text
    assert (desk / "both" / "compare.png").stat().st_size > 10_000


def test_a_narrow_terminal_gets_the_table_in_two_halves(
    charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that numbers are broken over several lines in a common terminal."""
    monkeypatch.setattr("charlm.cli.compare.columns", lambda: 80)
    done = charlm("compare", "recipe.yaml", "--cells", "gru,rnn", "--seeds", "2", "--set", "train.total_steps=2")
    lines = [line.rstrip() for line in done.text.splitlines()]
    table, below = (
        lines[: (end := next(n for n, line in enumerate(lines) if line.startswith("equal characters;")))],
        lines[end:],
    )
    assert max(map(len, table)) <= 80 and "means of 2 seeds (lowest–highest)" in below[0]
    assert [line.split()[0] for line in table if line.split()[:1] in (["gru"], ["rnn"])] == ["gru", "rnn", "gru", "rnn"]


def test_characters_that_are_not_equal_are_not_called_so(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a longer training is taken for a better cell."""
    done = charlm("compare", "recipe.yaml", "--vary", "train.total_steps=2,4")
    assert "each recipe as it is; nats" in done.text and "equal characters" not in done.text


def test_equal_parameters_changes_widths_and_says_so(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that cells are compared at different sizes, unseen."""
    done = charlm("compare", "recipe.yaml", "--cells", "lstm,rnn", "--equal", "parameters", "--set", "model.hidden=128",
                  "--set", "train.total_steps=2", "--json")  # fmt: skip
    lstm, rnn = done.record["candidates"]
    assert lstm["hidden"] == 128 and abs(rnn["parameters"] / lstm["parameters"] - 1) < 0.01
    assert f"recipe-rnn: hidden 128 becomes {rnn['hidden']}" in done.err
    both = charlm("compare", "recipe.yaml", "--vary", "model.hidden=4,8", "--equal", "parameters")
    assert both.code == 2 and "--equal parameters chooses model.hidden" in both.err


def test_equal_time_plans_the_others_from_the_first(
    charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that a slow cell gets more time than a quick one, or that a plan changes from call to call."""
    asked: list[tuple[str, float]] = []

    def measure(candidate: Any, device: str, seconds: float) -> float:
        asked.append((candidate.name, seconds))
        return seconds / 12

    monkeypatch.setattr("charlm.comparison.equal.seconds_per_step", measure)
    command = ("compare", "recipe.yaml", "--cells", "lstm,gru", "--seeds", "2", "--equal", "time", "--json")
    done = charlm(*command)
    assert done.code == 0, done.err
    lstm, gru = done.record["candidates"]
    assert [run["step"] for run in lstm["runs"] + gru["runs"]] == [20, 20, 12, 12]
    assert asked == [("recipe-gru", lstm["runs"][0]["training_seconds"])], "the first run's own time, for all"
    assert {run["stopped_because"] for run in gru["runs"]} == {"finished"}, "the schedule ends with the time"
    assert charlm(*command).record == done.record and len(asked) == 1
    given = charlm(
        "compare", "recipe.yaml", "--cells", "lstm,gru", "--equal", "time", "--max-time", "2s", "--out", "given", "-q"
    )
    assert given.code == 0 and asked[1:] == [("recipe-lstm", 2.0), ("recipe-gru", 2.0)]
    other = charlm("compare", "recipe.yaml", "--cells", "lstm,gru", "--equal", "time", "--max-time", "3s", "--out", "given")
    assert other.code == 2 and "planned for 2.0 s" in other.err and "overwrite" in other.err


def test_a_text_can_be_compared_on(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that `compare` and `train` disagree about what a recipe is."""
    done = charlm(
        "compare", "text.txt", "--cells", "gru,rnn", "--set", "model.hidden=4", "--set", "train.total_steps=2", "--json"
    )
    assert done.code == 0, done.err
    assert [row["name"] for row in done.record["candidates"]] == ["text-gru", "text-rnn"]
    assert (desk / "checkpoints" / "compare-text" / "text-gru-seed1" / "best.safetensors").exists()


def test_an_interrupted_comparison_goes_on(charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that Ctrl-C costs the runs before it, or that the printed command does something else."""
    evaluate, calls = Trainer._evaluate, []

    def interrupted(self: Trainer, regular: bool) -> Any:
        calls.append(self.step)
        if len(calls) == 6:  # of the second run, at its tenth step
            signal.raise_signal(signal.SIGINT)
        return evaluate(self, regular)

    monkeypatch.setattr(Trainer, "_evaluate", interrupted)
    done = charlm("compare", "recipe.yaml", "--cells", "gru,lstm", "--out", "a b", "--to", "4.5")
    assert done.code == 130 and done.text == ""
    words = shlex.split(
        next(line for line in done.err.splitlines() if line.startswith("resume with")).removeprefix("resume with: ")
    )
    assert words == ["charlm", "compare", "recipe.yaml", "--cells", "gru,lstm", "--to", "4.5", "--out", "a b"]
    gone_on = charlm(*words[1:], "--json")
    assert "recipe-gru-seed1: trained already" in gone_on.err
    gru, lstm = gone_on.record["candidates"]
    assert (gru["runs"][0]["resumed_from"], lstm["runs"][0]["resumed_from"]) == (None, 10)
    undisturbed = charlm("compare", "recipe.yaml", "--cells", "gru,lstm", "--out", "other", "--json").record["candidates"]
    assert lstm["validation_nats"] == undisturbed[1]["validation_nats"]


def test_another_recipe_is_refused_and_overwrite_starts_anew(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that an old result is shown under new settings, or lost."""
    quick = ("compare", "recipe.yaml", "--out", "here", "-q")
    assert charlm(*quick, "--set", "train.total_steps=4").code == 0
    changed = charlm(*quick, "--set", "train.total_steps=6")
    assert changed.code == 2 and "train.total_steps: was 4, continues with 6" in changed.err and "overwrite" in changed.err
    anew = charlm(*quick, "--set", "train.total_steps=6", "--overwrite", "--json")
    assert anew.record["candidates"][0]["runs"][0]["step"] == 6
    assert (desk / "here" / "recipe-seed1.old-1" / "best.safetensors").exists()
    assert charlm(*quick, "--set", "train.total_steps=6", "--resume", "never").code == 2


def test_without_validation_training_is_compared(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that recipes that memorise, such as d2l's, cannot be compared."""
    command = ("compare", "recipe.yaml", "--cells", "rnn,gru", "--set", "data.split=[1, 0, 0]", "--set", "train.total_steps=8")
    done = charlm(*command)
    assert done.code == 0 and "training nats" in done.text and "measured on the training text" in done.text
    record = charlm(*command, "--json").record
    assert record["measured_on"] == "training" and record["candidates"][0]["validation_nats"] is None
    assert record["candidates"][0]["perplexity"] > 1 and record["candidates"][0]["seconds_to"] > 0


def test_a_run_that_diverges_does_not_end_the_others(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that one bad learning rate costs a night of comparisons."""
    done = charlm("compare", "recipe.yaml", "--vary", "train.lr=1e6,0.01", "--set", "train.clip=null", "--set",
                  "train.optimizer=sgd", "--cells", "rnn", "--set", "model.nonlinearity=relu", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert [row["name"] for row in done.record["candidates"]] == ["recipe-rnn-lr=0.01"]
    assert any("recipe-rnn-lr=1000000.0-seed1 is left out" in text for text in done.record["notices"])
    nothing = charlm("compare", "recipe.yaml", "--set", "train.time=0.01s", "--json")
    assert nothing.code == 2 and "recipe-seed1 is left out: no training steps" in nothing.err
    first = charlm("compare", "recipe.yaml", "--set", "train.time=0.01s", "--equal", "time", "--cells", "rnn,gru")
    assert first.code == 1 and "no training steps" in first.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cells", "gru,transformer"], ["model.cell", "transformer"]),
        (["--vary", "model.hiden=1,2"], ["did you mean model.hidden?"]),
        (["--equal", "luck"], ["characters", "parameters", "time"]),
        (["--max-time", "90s"], ["--max-time 90s: only for equal time", "train.time=90s"]),
        (["--equal", "time", "--max-time", "soon"], ["expected a duration"]),
        (["--set", "model.hiden=1"], ["did you mean model.hidden?"]),
    ],
)
def test_slips_are_refused_before_anything_is_trained(
    charlm: Callable[..., Any], desk: Path, arguments: list[str], words: list[str]
) -> None:
    """Failing would mean that a slip trains something else."""
    done = charlm("compare", "recipe.yaml", *arguments)
    assert done.code == 2 and done.text == "" and "Traceback" not in done.err
    assert all(word in done.err for word in words), done.err
    assert not (desk / "checkpoints").exists()


def test_a_recipes_threads_do_not_leak_into_the_next(
    charlm: Callable[..., Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that one recipe's `threads: 1` makes the ones after it slow."""
    import charlm.threads as threads

    monkeypatch.setitem(threads._state, "most", 2)
    text = (desk / "recipe.yaml").read_text(encoding="utf-8")
    (desk / "free.yaml").write_text(text.replace("threads: 1, ", ""), encoding="utf-8")
    done = charlm("compare", "recipe.yaml", "free.yaml", "--set", "train.total_steps=2", "--json")
    assert [row["runs"][0]["threads"] for row in done.record["candidates"]] == [1, 2]
    assert any("seconds not comparable" in text for text in done.record["notices"])
    assert json.dumps(done.record)


def test_what_recipes_leave_open_is_the_same_for_all_where_it_is_not_compared(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that widths are called equal that are not, or that dropout differs where nobody varied it."""
    (desk / "open.yaml").write_text("corpus: ./text.txt\nsample: {length: 4}\ntrain: {threads: 1}\n", encoding="utf-8")
    done = charlm("compare", "open.yaml", "--cells", "rnn,lstm", "--equal", "parameters", "--json")
    assert done.code == 0, done.err
    rnn, lstm = done.record["candidates"]
    assert rnn["parameters"] == pytest.approx(lstm["parameters"], rel=0.02)
    done = charlm("compare", "open.yaml", "--vary", "train.clip=1,0.5", "--equal", "time", "--set", "model.hidden=16", "--json")
    assert done.code == 0, done.err
    first, second = (
        load_recipe(f"{run['folder']}/config.yaml").recipe for row in done.record["candidates"] for run in row["runs"]
    )
    assert (first.model, first.train.lr, first.train.batch) == (second.model, second.train.lr, second.train.batch)
    again = charlm("compare", "open.yaml", "--vary", "train.clip=1,0.5", "--equal", "time", "--set", "model.hidden=8")
    assert again.code == 2 and "model.hidden: was 16, is now 8" in again.err
    forgotten = charlm("compare", "open.yaml", "--vary", "train.clip=1,0.5", "--equal", "time")
    assert forgotten.code == 2 and "model.hidden: was 16, is now 256" in forgotten.err


def test_the_width_that_the_rule_chose_is_the_one_in_the_table(charlm: Callable[..., Any], desk: Path) -> None:
    """Failing would mean that a row's width is not that of its parameters."""
    (desk / "short.txt").write_text("to be or not to be\n" * 8, encoding="utf-8")
    (desk / "open.yaml").write_text("corpus: ./short.txt\n", encoding="utf-8")
    row = charlm("compare", "open.yaml", "--json").record["candidates"][0]
    assert row["hidden"] == 256
