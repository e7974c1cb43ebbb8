"""Which runs a comparison has, what is held equal in them, and their results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from charlm.comparison import compare
from charlm.comparison.candidates import Candidate, candidates, variations
from charlm.comparison.equal import EqualTime, closest_width, equal_parameters, seconds_per_step
from charlm.comparison.results import Point, Run, collect, final_record, learning_curve, records, seconds_to
from charlm.config import ModelSection
from charlm.errors import RecipeError, UsageError
from charlm.model.language_model import count_parameters
from charlm.training.events import RunStarted, StepDone, ThreadsChanged
from charlm.training.plan import Limits
from charlm.training.run import observed

RECIPE = """\
corpus: ./text.txt
model: {hidden: 8, dropout: 0}
train: {batch: 4, seq_length: 16, total_steps: 20, threads: 1, precision: fp32, lr: 0.01}
evaluate: {every: 5}
sample: {length: 12}
"""


@pytest.fixture
def recipe(tmp_path: Path, english: Callable[..., str]) -> str:
    """The path of a tiny recipe, with its text beside it."""
    (tmp_path / "text.txt").write_text(english(3000), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return str(tmp_path / "tiny.yaml")


# -- candidates --


def test_candidates_are_the_product_of_recipes_cells_and_values() -> None:
    """Failing would mean that a comparison leaves something out, or names a run's folder after something else."""
    found = candidates(["shakespeare", "quickstart"], ["gru", "lstm"], ["model.hidden=64,256", "train.lr=1e-3"])
    assert [candidate.name for candidate in found[:4]] == [
        "shakespeare-gru-hidden=64-lr=0.001",
        "shakespeare-gru-hidden=256-lr=0.001",
        "shakespeare-lstm-hidden=64-lr=0.001",
        "shakespeare-lstm-hidden=256-lr=0.001",
    ]
    assert len(found) == 8 and found[4].name.startswith("quickstart-gru")
    recipe = found[1].load("train.seed=3").recipe
    assert (recipe.model.cell, recipe.model.hidden, recipe.train.lr, recipe.train.seed) == ("gru", 256, 1e-3, 3)


def test_without_cells_each_recipe_keeps_its_own() -> None:
    """Failing would mean that d2l's three recipes are compared as one cell."""
    found = candidates(["time-machine-rnn", "time-machine-gru", "time-machine-lstm"], overrides=["train.epochs=1"])
    assert [candidate.name for candidate in found] == ["time-machine-rnn", "time-machine-gru", "time-machine-lstm"]
    assert [candidate.load().recipe.model.cell for candidate in found] == ["rnn", "gru", "lstm"]
    assert all(candidate.load().recipe.train.epochs == 1 for candidate in found)


@pytest.mark.parametrize("how", [{"cells": ["rnn", "gru", "lstm"]}, {"vary": ["model.cell=rnn,gru,lstm"]}])
def test_another_cell_leaves_the_options_of_the_first_behind(tmp_path: Path, how: dict[str, list[str]]) -> None:
    """Failing would mean that a recipe with `nonlinearity: relu` cannot be compared with an LSTM."""
    path = tmp_path / "relu.yaml"
    path.write_text(
        "corpus: t.txt\nmodel: {cell: rnn, nonlinearity: relu, reset_after: false, engine: torch}\n", encoding="utf-8"
    )
    with pytest.raises(RecipeError, match="reset_after"):
        candidates([str(path)], **how)  # its own option stays what the recipe says, and PyTorch has no such GRU
    found = candidates([str(path)], **how, overrides=["model.engine=auto"])
    models = [candidate.load().recipe.model for candidate in found]
    assert [(model.cell, model.nonlinearity, model.reset_after) for model in models] == [
        ("rnn", "relu", True),
        ("gru", "tanh", False),
        ("lstm", "tanh", True),
    ]


def test_a_variant_is_left_behind_too(tmp_path: Path) -> None:
    """Failing would mean that a recipe with `variant: peephole` cannot be compared with a GRU."""
    path = tmp_path / "peephole.yaml"
    path.write_text("corpus: t.txt\nmodel: {variant: peephole}\n", encoding="utf-8")
    models = [candidate.load().recipe.model for candidate in candidates([str(path)], cells=["lstm", "gru"])]
    assert [(model.cell, model.variant) for model in models] == [("lstm", "peephole"), ("gru", "vanilla")]
    names = [candidate.name for candidate in candidates(["shakespeare"], vary=["model.variant=vanilla,peephole"])]
    assert names == ["shakespeare-variant=vanilla", "shakespeare-variant=peephole"]


def test_varied_values_are_yaml() -> None:
    """Failing would mean that a split, null or a number cannot be varied."""
    assert variations("data.split=[0.9, 0.1, 0],[10,5,0]") == ["data.split=[0.9, 0.1, 0]", "data.split=[10, 5, 0]"]
    assert variations("train.clip = 1e-1, null") == ["train.clip=0.1", "train.clip=null"]
    assert variations("sample.prompt='a: b',c") == ['sample.prompt="a: b"', 'sample.prompt="c"']
    (found,) = candidates(["shakespeare"], vary=["sample.prompt='../a: b'"])
    assert found.name == "shakespeare-prompt=..-a-b" and found.load().recipe.sample.prompt == "../a: b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vary": ["model.hiden=1,2"]}, ["vary model.hiden=1,2", "did you mean model.hidden?"]),
        ({"vary": ["model=1,2"]}, ["model is a section"]),
        ({"vary": ["model.hidden"]}, ["expected KEY=VALUE,VALUE"]),
        ({"vary": ["model.hidden=64", "model.hidden=128"]}, ["model.hidden is varied twice"]),
        ({"vary": ["model.hidden=64,many"]}, ["model.hidden", "many"]),
        ({"cells": ["transformer"]}, ["model.cell", "transformer", "'gru'"]),
        ({"cells": ["gru", "gru"]}, ["two candidates have the name shakespeare-gru"]),
        ({"cells": ["gru"], "vary": ["model.cell=lstm"]}, ["model.cell is varied twice"]),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(arguments: dict[str, list[str]], words: list[str]) -> None:
    """Failing would mean that a slip is noticed after hours of training, or not at all."""
    with pytest.raises(UsageError) as refused:
        candidates(["shakespeare"], **arguments)
    for word in words:
        assert word in str(refused.value)


# -- what is held equal --


def test_a_gru_has_three_quarters_of_an_lstms_recurrent_parameters() -> None:
    """Failing would mean that the tutorials' claim does not hold here: 3 gates instead of 4, and 1 in the plain RNN."""
    counts = {
        cell: count_parameters(ModelSection(cell=cell, hidden=64, input="one-hot"), 28) - 28 * 64 - 28
        for cell in ("rnn", "gru", "lstm")
    }
    assert counts["gru"] * 4 == counts["lstm"] * 3 and counts["rnn"] * 4 == counts["lstm"]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(
    "more", [{}, {"tied": True, "embedding": 512}, {"input": "one-hot"}, {"layers": 3}, {"embedding": 100}]
)
def test_widths_that_give_equal_parameters(cell: str, more: dict[str, Any]) -> None:
    """Failing would mean that `--equal parameters` compares networks of different size."""
    wanted = count_parameters(ModelSection(cell="lstm", hidden=512), 66)
    model = ModelSection(cell=cell, hidden=512, **more)  # type: ignore[arg-type]

    def off(hidden: int) -> float:
        embedding = hidden if model.tied else model.embedding
        section = ModelSection.model_validate(model.model_dump() | {"hidden": hidden, "embedding": embedding})
        return abs(count_parameters(section, 66) / wanted - 1)

    width = closest_width(model, 66, wanted)
    assert off(width) <= 0.01
    down = width // 8 * 8
    assert width % 8 == 0 or min(off(down), off(down + 8)) > 0.01, "a multiple of 8 where it is close enough"


def test_an_odd_width_where_a_multiple_of_8_is_too_coarse() -> None:
    """Failing would mean that small networks are compared at sizes that differ by tens of percent."""
    wanted = count_parameters(ModelSection(cell="gru", hidden=13), 28)
    assert closest_width(ModelSection(cell="gru"), 28, wanted) == 13
    assert closest_width(ModelSection(cell="gru"), 28, 1) == 1, "no width is small enough"


def test_the_first_candidate_sets_the_number_of_parameters(recipe: str) -> None:
    """Failing would mean that the candidate one knows is changed, or that the widths are not told."""
    planned = candidates([recipe], ["lstm", "gru", "rnn"], overrides=["model.hidden=128"])
    adapted, sentences = equal_parameters(planned, [40, 40, 40])
    models = [candidate.load().recipe.model for candidate in adapted]
    counts = [count_parameters(model, 40) for model in models]
    assert models[0].hidden == 128 and all(abs(count / counts[0] - 1) < 0.01 for count in counts)
    assert [candidate.name for candidate in adapted] == [candidate.name for candidate in planned]
    assert sentences[1].startswith(f"tiny-gru: hidden 128 becomes {models[1].hidden}, {counts[1]:,} parameters (")


def test_lengths_for_equal_time_follow_from_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a schedule ends at another moment than the time does, or moves when a comparison is resumed."""
    monkeypatch.setattr("charlm.comparison.equal.seconds_per_step", lambda candidate, device, seconds: 0.25)
    plans = EqualTime(tmp_path / "new" / "plan.json", 10.0)
    candidate = Candidate("a", "shakespeare")
    recipe = candidate.load(*plans.overrides(candidate)).recipe
    assert (recipe.train.total_steps, recipe.train.epochs, recipe.train.time) == (40, None, None)
    monkeypatch.setattr("charlm.comparison.equal.seconds_per_step", lambda candidate, device, seconds: 0.5)
    again = EqualTime(tmp_path / "new" / "plan.json", 10.0)
    assert again.overrides(candidate)[0] == "train.total_steps=40", "a stored plan is kept"
    assert again.overrides(Candidate("b", "shakespeare"))[0] == "train.total_steps=20"
    with pytest.raises(UsageError, match="runs planned for"):
        EqualTime(tmp_path / "new" / "plan.json", 20.0)


def test_speed_is_measured_without_leaving_anything(recipe: str) -> None:
    """Failing would mean that measuring starts a run, or that its evaluations count as training."""
    before = set(Path(recipe).parent.iterdir())
    assert 0 < seconds_per_step(Candidate("tiny", recipe), "cpu", 0.0) < 1
    assert set(Path(recipe).parent.iterdir()) == before


def test_only_steps_are_timed(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that other events count as steps, so that a training seems faster than it is."""
    yielded: list[int] = []

    class Trainer:
        def run(self) -> Iterator[Any]:
            yield RunStarted(None, None, Limits(0.0), 1)
            for step in range(1, 100):
                yield ThreadsChanged(step, 1)
                yielded.append(step)
                yield StepDone(step, 0.0, 1.0, 0.1, 1.0, step, 0.0, 1.0)

    monkeypatch.setattr("charlm.comparison.equal._started", lambda loaded, device: nullcontext(Trainer()))
    seconds_per_step(Candidate("tiny", recipe), "cpu", 0.0)
    assert len(yielded) == 5 + 20, "5 steps of warm-up, 20 timed ones"


def test_equal_time_asks_the_rule_what_a_recipe_leaves_open(recipe: str, tmp_path: Path) -> None:
    """Failing would mean that a recipe without a length is compared with values that training it would not choose."""
    (tmp_path / "open.yaml").write_text("corpus: ./text.txt\nmodel: {hidden: 8}\n", encoding="utf-8")
    chosen = EqualTime(tmp_path / "plan.json", 4.0).overrides(Candidate("open", str(tmp_path / "open.yaml")))
    values = dict(override.split("=") for override in chosen)
    assert values["model.init"] == "orthogonal" and values["train.average"] == "0.998" and int(values["train.total_steps"]) >= 1
    assert "model.hidden" not in values and "train.epochs" not in values
    assert values["train.time"] == "null", "the length is the updates alone"


# -- results --


def test_seconds_to_a_perplexity_are_interpolated_in_nats() -> None:
    """Failing would mean that the time to a perplexity depends on how often was evaluated."""
    curve = [Point(1, 10, 1.0, 3.0), Point(2, 20, 2.0, 2.0), Point(3, 30, 4.0, 1.0), Point(4, 40, 5.0, 1.5)]
    assert seconds_to(curve, 2.0) == 2.0
    assert seconds_to(curve, 1.25) == 3.5
    assert seconds_to(curve, 3.5) == 1.0, "at the first evaluation already: no earlier moment is known"
    assert seconds_to(curve, 0.9) is None
    assert seconds_to([], 1.0) is None


def test_curves_have_characters_and_seconds_of_training(tmp_path: Path) -> None:
    """Failing would mean that a curve is drawn against the wrong axis, or breaks on an overflowed step."""
    lines: list[dict[str, Any]] = [
        {"kind": "evaluation", "step": 0, "nats": 9.0},
        *({"kind": "step", "step": n, "nats": float(n), "characters": 10 * n, "seconds": n / 10} for n in range(1, 401)),
        {"kind": "step", "step": 401, "nats": None, "characters": 4010, "seconds": 40.1},
        {"kind": "evaluation", "step": 400, "nats": 2.0},
        {"kind": "evaluation", "step": 401, "nats": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert learning_curve(records(tmp_path), "validation") == [Point(400, 4000, 40.0, 2.0)]
    training = learning_curve(records(tmp_path), "training")
    assert len(training) == 200 and training[0] == Point(2, 20, 0.2, 1.5)


def test_a_run_is_over_only_when_it_ended_by_itself(recipe: str, tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    """Failing would mean that an interrupted run counts as a result, or that another recipe's run does."""
    loaded = Candidate("tiny", recipe).load()
    folder = tmp_path / "run"
    assert final_record(folder, loaded) is None
    from charlm.training.plan import Limits
    from charlm.training.start import Options, start

    for limit, over in ((7, False), (None, True)):
        trainer = start(loaded, Options(folder, Limits(0.0, max_steps=limit), resume="auto", device="cpu")).trainer
        list(observed(trainer))
        trainer.folder.close()
        record = final_record(folder, loaded)
        assert (record is not None) == over
    assert record is not None and record["step"] == 20
    assert final_record(folder, Candidate("tiny", recipe, ("sample.length=3",)).load()) == record
    for override in ("model.hidden=9", "train.total_steps=30"):
        with pytest.raises(RecipeError, match=r"run.*\n.*was (8|20), .* (9|30)") as refused:
            final_record(folder, Candidate("tiny", recipe, (override,)).load())
        assert "overwrite" in str(refused.value)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write('{"kind": "st')
    assert final_record(folder, loaded) is None, "a process that was killed while it wrote"


def _finished(recipe: str, tmp_path: Path, name: str, *overrides: str) -> tuple[Candidate, list[Run]]:
    from charlm.training.plan import Limits
    from charlm.training.start import Options, start

    candidate = Candidate(name, recipe, overrides)
    loaded = candidate.load()
    trainer = start(loaded, Options(tmp_path / name, Limits(0.0), device="cpu")).trainer
    list(observed(trainer))
    trainer.folder.close()
    record = final_record(tmp_path / name, loaded)
    assert record is not None
    return candidate, [Run(tmp_path / name, record)]


def test_the_default_perplexity_is_one_that_all_reach(recipe: str, tmp_path: Path) -> None:
    """Failing would mean that by default a row has no time to show."""
    results = dict(
        [
            _finished(recipe, tmp_path, "good"),
            _finished(recipe, tmp_path, "bad", "train.lr=0.0001"),
        ]
    )
    found = collect(results, tmp_path)
    good, bad = found.rows
    assert found.measured_on == "validation" and found.notices == []
    assert good.seconds_to is not None and bad.seconds_to is not None
    assert good.validation_nats is not None and bad.validation_nats is not None and good.validation_nats < bad.validation_nats
    worst = min(point.nats for point in found.curves["bad"][0])
    assert math.isclose(found.to_perplexity, math.exp(worst))
    assert math.isclose(good.perplexity, math.exp(good.validation_nats))
    assert collect(results, tmp_path, to_perplexity=1.5).rows[0].seconds_to is None


def test_what_differs_beyond_comparison_is_said(recipe: str, tmp_path: Path, english: Callable[..., str]) -> None:
    """Failing would mean that nats over different texts or alphabets stand side by side without a word."""
    first = _finished(recipe, tmp_path, "plain")
    rare = _finished(recipe, tmp_path, "rare", "data.min_count=30")
    shorter = _finished(recipe, tmp_path, "shorter", "data.split=[0.8,0.1,0.1]")
    unmeasured = _finished(recipe, tmp_path, "unmeasured", "data.split=[1,0,0]")
    (vocabulary,) = collect(dict([first, rare]), tmp_path).notices
    assert "vocabularies differ: plain; rare" in vocabulary
    assert "different texts: plain; shorter" in " ".join(collect(dict([first, shorter]), tmp_path).notices)
    found = collect(dict([first, unmeasured]), tmp_path)
    assert found.measured_on == "training" and found.rows[0].validation_nats is None
    assert math.isclose(found.rows[1].perplexity, math.exp(found.rows[1].train_nats))
    assert "measured on the training text" in " ".join(found.notices)


# -- all of it, from Python --


def test_a_program_can_compare(recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If this fails, only the command line can compare, or the library prints, or trains finished runs again."""
    options: dict[str, Any] = {"cells": ["rnn", "gru"], "out": tmp_path / "both", "device": "cpu"}
    found = compare([recipe], seeds=2, **options)
    assert [row.cell for row in found.rows] == ["rnn", "gru"] and all(len(row.runs) == 2 for row in found.rows)
    assert found.folder == tmp_path / "both" and (found.folder / "tiny-gru-seed2" / "best.safetensors").exists()
    times = [path.stat().st_mtime_ns for path in sorted(found.folder.rglob("*.safetensors"))]
    assert compare([recipe], seeds=2, **options).rows == found.rows
    assert [path.stat().st_mtime_ns for path in sorted(found.folder.rglob("*.safetensors"))] == times
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"equal": "luck"}, "equal luck: expected characters, parameters, time"),
        ({"seeds": 0}, "seeds 0: expected 1 or more"),
        ({"to": math.nan}, "to nan: expected a perplexity"),
        ({"max_time": "90s"}, "max_time 90s: only for equal time"),
        ({"equal": "parameters", "vary": ["model.hidden=1,2"]}, "equal parameters chooses model.hidden"),
        ({"vary": ["model.hidden"]}, "vary model.hidden: expected KEY=VALUE"),
    ],
)
def test_wrong_values_are_named_as_a_program_knows_them(options: dict[str, Any], text: str) -> None:
    """If this fails, a Python user reads of flags, or a wrong value starts a training."""
    with pytest.raises(UsageError) as refused:
        compare(["shakespeare"], **options)
    assert str(refused.value).startswith(text) and "--" not in str(refused.value)
