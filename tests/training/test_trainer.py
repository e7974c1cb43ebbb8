"""The trainer: losses fall, schedules follow their formulas, bad numbers stop at the door, and runs end when they should."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charlm.checkpoint import load
from charlm.config import TrainSection
from charlm.errors import CheckpointError, DivergedError, RecipeError
from charlm.evaluation import perplexity
from charlm.evaluation.perplexity import Score, carried
from charlm.optimizers import OPTIMIZERS
from charlm.schedules import learning_rate
from charlm.training.events import Evaluated, Finished, Sampled, Saved, StepDone
from charlm.training.loss_scale import LossScale
from charlm.training.optimizer import make_optimizer
from charlm.training.run import observed

# -- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "lr"), [(name, {"sgd": 1.0, "rmsprop": 0.003}.get(name, 0.01)) for name in OPTIMIZERS])
def test_every_optimizer_reduces_the_loss(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, optimizer: str, lr: float
) -> None:
    """If this fails, an optimizer is wired wrongly: after 80 steps the loss must be well below that of the first."""
    run = tiny_run(english_file, tmp_path / "r", f"train.optimizer={optimizer}", f"train.lr={lr}", "train.total_steps=80")
    nats = [line["nats"] for line in run.lines("step")]
    symbols = len(load(run.folder / "last.safetensors").vocabulary)
    assert nats[0] == pytest.approx(math.log(symbols), abs=0.3), "fresh weights should know nothing"
    assert sum(nats[-10:]) / 10 < nats[0] - 0.4
    assert run.record["validation_nats"] < nats[0] - 0.3


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_short_text_is_memorised(tmp_path: Path, tiny_run: Callable[..., Any], cell: str) -> None:
    """If this fails, something in the chain from text to weights is broken: perplexity must fall below 1.1."""
    corpus = tmp_path / "sentence.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog.\n" * 40, encoding="utf-8")
    run = tiny_run(
        corpus, tmp_path / "r", f"model.cell={cell}", "model.hidden=32", "train.batch=8", "train.seq_length=20",
        "train.total_steps=250", "train.lr=0.02", "evaluate.every=250", "sample.temperature=0", "sample.prompt='the qui'",
        "sample.length=30",
    )  # fmt: skip
    assert run.record["perplexity"] < 1.1
    assert run.record["train_perplexity"] < 1.1
    assert run.record["perplexity"] == pytest.approx(math.exp(run.record["nats_per_character"]))
    assert run.events[-1].samples[0].text == "ck brown fox jumps over the la"


@pytest.mark.parametrize("seed", [3, 4, 9, 13])
def test_hello_is_learned_with_any_seed(tmp_path: Path, seed: int) -> None:
    """If this fails, the smallest recipe depends on luck: letters that occur once were withheld from training."""
    from charlm.config import load_recipe
    from charlm.training.plan import Limits
    from charlm.training.start import Options, start

    loaded = load_recipe("hello", [f"train.seed={seed}", "train.threads=1"])
    trainer = start(loaded, Options(out=tmp_path / "r", limits=Limits(time.monotonic()), device="cpu")).trainer
    finished = list(observed(trainer))[-1]
    trainer.folder.close()
    assert finished.record["train_perplexity"] < 1.05
    assert [sample.text for sample in finished.samples] == ["o"]


def test_weight_decay_acts_on_matrices_alone(network: Callable[..., Any]) -> None:
    """If this fails, biases are pulled to zero too."""
    for name in OPTIMIZERS:
        model = network(9, hidden=4)
        optimizer = make_optimizer(model, TrainSection(optimizer=name, weight_decay=0.1))
        for group in optimizer.param_groups:
            dimensions = {weight.dim() for weight in group["params"]}
            assert dimensions == ({2} if group["weight_decay"] == 0.1 else {1})
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_gradients_are_clipped_to_the_recipes_norm(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, engine: str
) -> None:
    """If this fails, train.clip does nothing, or clips what it should leave alone; the norm reported is from before.

    One step of plain SGD moves the weights by the rate times the clipped gradient.
    """
    rate = 0.5
    plain = ["train.optimizer=sgd", "train.schedule=constant", "train.warmup=0", f"train.lr={rate}"]
    for clip in (0.01, 1e6):
        folder = tmp_path / str(clip)
        trainer = begin(english_file, folder, *plain, f"model.engine={engine}", f"train.clip={clip}").trainer
        before = [weight.detach().clone() for weight in trainer.model.parameters()]
        event = next(event for event in observed(trainer) if isinstance(event, StepDone))
        trainer.folder.close()
        moves = zip(trainer.model.parameters(), before, strict=True)
        moved = torch.stack([(weight - old).norm() for weight, old in moves]).norm().item()
        assert event.gradient_norm > 0.05
        assert moved / rate == pytest.approx(min(clip, event.gradient_norm), rel=1e-3)


# -- schedules -------------------------------------------------------------------------------------------------------


def test_a_run_follows_its_schedule(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, the optimizer gets another learning rate than the schedule gives, or is a step behind."""
    keys = ("train.schedule=cosine", "train.warmup=5", "train.total_steps=15", "train.optimizer=sgd", "train.clip=null")
    run = tiny_run(english_file, tmp_path / "r", *keys)
    section = TrainSection(lr=0.01, warmup=5, total_steps=15)
    expected = [learning_rate(section, step, 15, 1) for step in range(15)]
    assert [line["learning_rate"] for line in run.lines("step")] == expected
    # The first plain SGD step is −lr·gradient: its length is the learning rate times the gradient's norm.
    one = tiny_run(english_file, tmp_path / "one", *keys, max_steps=1)
    none = tiny_run(english_file, tmp_path / "none", *keys, max_steps=0)
    before, after = (load(r.folder / "last.safetensors").weights for r in (none, one))
    moved = torch.stack([(after[name] - before[name]).double().norm() for name in after]).norm().item()
    assert moved == pytest.approx(expected[0] * one.lines("step")[0]["gradient_norm"], rel=1e-2)


def test_the_loss_scale_of_fp16() -> None:
    """If this fails, fp16 training loses small gradients or never recovers from an overflow."""
    scale = LossScale(True)
    start = scale.scale
    assert scale.overflowed()
    assert scale.scale == start / 2
    for _ in range(LossScale.GROW_AFTER):
        scale.succeeded()
    assert scale.scale == start
    assert not LossScale(False).overflowed(), "without fp16 a bad gradient is an error at once"
    off = LossScale(False)
    for _ in range(2 * LossScale.GROW_AFTER):
        off.succeeded()
    assert off.scale == 1


# -- bad numbers -----------------------------------------------------------------------------------------------------


def _poison(trainer: Any, spoil: Callable[[Any, float], float]) -> None:
    """At the fifth step, ``spoil`` changes the gradient buffer and the loss."""
    update = trainer._update
    backpropagate = update._backpropagate

    def poisoned(*arguments: Any, **options: Any) -> Any:
        nats, state = backpropagate(*arguments, **options)
        return (spoil(update._gradient.flat, nats) if trainer.step == 4 else nats), state

    update._backpropagate = poisoned


def _poison_loss(trainer: Any) -> None:
    _poison(trainer, lambda gradient, nats: math.nan)


def _poison_gradient(trainer: Any) -> None:
    def spoil(gradient: Any, nats: float) -> float:
        gradient[0] = math.inf
        return nats

    _poison(trainer, spoil)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("poison", "message"), [(_poison_loss, "the loss became nan"), (_poison_gradient, "the gradient's norm became")]
)
def test_what_is_not_finite_never_reaches_the_optimizer(
    tmp_path: Path,
    begin: Callable[..., Any],
    tiny_run: Callable[..., Any],
    english_file: Path,
    poison: Callable[[Any], None],
    message: str,
    optimizer: str,
) -> None:
    """If this fails, one bad batch destroys the weights, or the moments, and then the checkpoint too."""
    keys = (f"train.optimizer={optimizer}", "evaluate.every=100", "model.dropout=0.2")
    trainer = begin(english_file, tmp_path / "bad", *keys).trainer
    poison(trainer)
    with pytest.raises(DivergedError, match=rf"{message}.* at step 5; the update was not applied.*holds step 4") as caught:
        list(observed(trainer))
    trainer.folder.close()
    assert "Resume with a lower learning rate (train.lr=0.0033)" in str(caught.value)

    tiny_run(english_file, tmp_path / "good", *keys, max_steps=4)
    bad, good = (load(tmp_path / name / "last.safetensors") for name in ("bad", "good"))
    assert bad.progress["step"] == 4
    for mine, theirs in ((bad.weights, good.weights), (bad.optimizer, good.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(torch.equal(a, b) for a, b in zip(bad.state, good.state, strict=True))
    run = tiny_run(english_file, tmp_path / "bad", *keys, resume="auto")
    assert (run.record["resumed_from"], run.record["step"]) == (4, 20)


def test_a_learning_rate_that_is_far_too_large(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a diverging run continues with NaN instead of stopping, or saves weights that are not finite."""
    keys = ("model.cell=rnn", "model.nonlinearity=relu", "train.optimizer=sgd", "train.lr=100000", "train.clip=null",
            "train.total_steps=300", "train.schedule=constant", "evaluate.every=1000")  # fmt: skip
    trainer = begin(english_file, tmp_path / "r", *keys).trainer
    with pytest.raises(DivergedError):
        list(observed(trainer))
    trainer.folder.close()
    stored = load(tmp_path / "r" / "last.safetensors")
    assert stored.progress["step"] > 0
    assert all(bool(weight.isfinite().all()) for weight in stored.weights.values())
    assert all(bool(part.isfinite().all()) for part in stored.state)


@pytest.mark.parametrize(
    ("every", "exists"), [("evaluate.every=1000", "nothing had been saved"), ("evaluate.every=1", "holds step")]
)
def test_a_message_about_weights_that_are_not_finite_says_what_is_on_disk(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, every: str, exists: str
) -> None:
    """If this fails, a user is sent to a checkpoint that does not exist, or is not told of one that does."""
    trainer = begin(english_file, tmp_path / "r", "train.weight_decay=1e6", "train.clip=null", every).trainer
    with pytest.raises(DivergedError, match=r"NaN or infinite.*train\.weight_decay is 1e\+06") as caught:
        list(observed(trainer))
    trainer.folder.close()
    assert exists in str(caught.value)
    assert (tmp_path / "r" / "last.safetensors").exists() == (exists == "holds step")


def test_a_model_larger_than_the_memory_is_refused(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a slip of the finger fills the machine's memory instead of being a sentence."""
    with pytest.raises(RecipeError, match=r"takes about [\d,.]+ GB, but cpu has [\d,.]+ GB; use a smaller model\.hidden"):
        begin(english_file, tmp_path / "r", "model.hidden=100000", "model.layers=1000")


def test_a_million_epochs_are_planned_at_once(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a long plan is counted epoch by epoch before the run starts; or its length is wrong."""
    keys = ("train.total_steps=null", "train.epochs=1000000")
    trainer = begin(english_file, tmp_path / "r", *keys).trainer
    trainer.folder.close()
    assert trainer.plan.total_steps == 1_000_000 * trainer.batches.epoch_length(0)
    offset = begin(
        english_file, tmp_path / "o", "train.total_steps=null", "train.epochs=7.5", "train.random_offset=true"
    ).trainer
    offset.folder.close()
    lengths = [offset.batches.epoch_length(number) for number in range(7)]
    assert offset.plan.total_steps == sum(lengths) + round(0.5 * lengths[0])


# -- evaluating and stopping -----------------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """``scripted([2.0, 1.5])``: what the cheap validations will say, one after the other."""

    def script(nats: list[float]) -> None:
        coming = iter(nats)
        monkeypatch.setattr(perplexity, "segments", lambda *_, **__: Score(next(coming) * 100, 100))

    return script


def test_early_stopping(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, scripted: Callable[[list[float]], None]
) -> None:
    """If this fails, a run stops too soon or too late: after `patience` evaluations in a row without a new best."""
    scripted([3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 9.9])
    run = tiny_run(english_file, tmp_path / "r", "evaluate.every=2", "evaluate.patience=2", "train.total_steps=100")
    assert (run.record["stopped_because"], run.record["step"]) == ("early stopping", 12)
    assert (run.record["best_step"], run.record["best_validation_nats"]) == (8, 1.5)
    assert run.record["validation_nats"] == 1.5
    assert [event.is_best for event in run.events if isinstance(event, Evaluated)] == [True, True, False, True, False, False]


def test_early_stopping_counts_across_a_resume(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, scripted: Callable[[list[float]], None]
) -> None:
    """If this fails, a run that is often interrupted never stops early. The evaluation of a stop does not count."""
    scripted([3.0, 2.0, 2.5, 9.9, 2.6, 9.9])
    keys = ("evaluate.every=2", "evaluate.patience=2", "train.total_steps=100")
    first = tiny_run(english_file, tmp_path / "r", *keys, max_steps=7)
    assert first.record["stopped_because"] == "max steps"
    second = tiny_run(english_file, tmp_path / "r", *keys, resume="must")
    assert (second.record["stopped_because"], second.record["step"]) == ("early stopping", 8)
    assert (second.record["best_step"], second.record["best_validation_nats"]) == (4, 2.0)


def test_best_is_the_best_regular_evaluation(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path, scripted: Callable[[list[float]], None]
) -> None:
    """If this fails, `best` holds other weights than those that were validated best."""
    scripted([2.0, 1.0, 1.5, 1.1])  # the last one is that of the stop, at step 7
    run = tiny_run(english_file, tmp_path / "r", "evaluate.every=2", "checkpoint.keep_every=4", max_steps=7)
    evaluations = [(e.step, e.is_best, e.regular) for e in run.events if isinstance(e, Evaluated)]
    assert evaluations == [(2, True, True), (4, True, True), (6, False, True), (7, False, False)]
    best, then = (load(run.folder / f"{name}.safetensors") for name in ("best", "step-4"))
    assert best.progress["step"] == 4
    assert all(torch.equal(best.weights[name], then.weights[name]) for name in best.weights)
    assert run.record["best_validation_nats"] == 1.0
    assert run.record["checkpoint"].endswith("best.safetensors")
    assert not (run.folder / "best-of-schedule.safetensors").exists()


def test_a_stop_that_beats_best_is_reported(
    tmp_path: Path,
    tiny_run: Callable[..., Any],
    recipe_for: Callable[..., Any],
    english_file: Path,
    scripted: Callable[[list[float]], None],
) -> None:
    """If this fails, a time limit loses the best model, or the record tells of other weights than those it names."""
    from charlm.data.dataset import open_dataset

    scripted([2.0, 1.0, 1.5, 0.9])
    run = tiny_run(english_file, tmp_path / "r", "evaluate.every=2", "checkpoint.keep_every=7", max_steps=7)
    best, stop = (load(run.folder / f"{name}.safetensors") for name in ("best", "step-7"))
    assert all(torch.equal(best.weights[name], stop.weights[name]) for name in best.weights)
    assert (run.record["best_step"], run.record["best_validation_nats"], run.record["schedule_best_step"]) == (7, 0.9, 4)
    score = carried(best.model(torch.device("cpu")), open_dataset(recipe_for(english_file)).text("validation"))
    assert run.record["nats_per_character"] == pytest.approx(score.nats_per_character, rel=1e-9)
    assert load(run.folder / "best-of-schedule.safetensors").progress["step"] == 4
    assert load(run.folder / "last.safetensors").progress["best"]["step"] == 4, "early stopping would go by the stop's"


def test_a_stop_before_the_first_evaluation_still_leaves_a_best(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, a short run cannot be sampled; the next regular evaluation must take the place over."""
    run = tiny_run(english_file, tmp_path / "r", "evaluate.every=10", max_steps=3)
    assert load(run.folder / "best.safetensors").progress["step"] == 3
    assert run.record["best_validation_nats"] == run.record["validation_nats"], "that of the file"
    again = tiny_run(english_file, tmp_path / "r", "evaluate.every=10", resume="auto", max_steps=10)
    assert load(run.folder / "best.safetensors").progress["step"] == 10
    assert again.record["best_step"] == 10


def test_without_validation_best_is_last(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a run without validation text leaves no best, or an old one."""
    run = tiny_run(english_file, tmp_path / "r", "data.split=[1.0, 0.0, 0.0]", "checkpoint.every=3")
    best, last = (load(run.folder / f"{name}.safetensors") for name in ("best", "last"))
    assert best.progress["step"] == last.progress["step"] == 20
    assert all(torch.equal(best.weights[name], last.weights[name]) for name in best.weights)
    assert not any(isinstance(event, Evaluated) for event in run.events)
    assert run.record["measured_on"] == "training"
    assert run.record["nats_per_character"] == run.record["train_nats"]
    assert run.record["validation_nats"] is None


def test_the_final_figure_is_exact(
    tmp_path: Path, tiny_run: Callable[..., Any], recipe_for: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, the loss at a run's end is not that of `best` over the whole validation text, state carried."""
    from charlm.data.dataset import open_dataset

    run = tiny_run(english_file, tmp_path / "r", "model.dropout=0.4")
    model = load(run.folder / "best.safetensors").model(torch.device("cpu"))
    text = open_dataset(recipe_for(english_file)).text("validation")
    score = carried(model, text)
    assert run.record["context"] == "carried"
    assert run.record["nats_per_character"] == pytest.approx(score.nats_per_character, rel=1e-9)
    assert run.record["characters"] == len(text) - 1 == 599
    assert run.record["bits_per_character"] == pytest.approx(score.nats_per_character / math.log(2))


@pytest.mark.parametrize(("corpus_size", "updates"), [(1000, 25), (6000, 110)])
def test_train_nats_is_the_last_epoch_or_100_steps(
    tmp_path: Path, tiny_run: Callable[..., Any], english: Callable[..., str], corpus_size: int, updates: int
) -> None:
    """If this fails, train_nats is a mean of means, or over another stretch than documented."""
    corpus = tmp_path / "c.txt"
    corpus.write_text(english(corpus_size), encoding="utf-8")
    run = tiny_run(corpus, tmp_path / "r", f"train.total_steps={updates}", "train.seq_length=11", "evaluate.every=1000")
    lines = run.lines("step")
    longest = math.ceil((int(0.8 * corpus_size) - 1) / 4)
    epoch = math.ceil(longest / 11)
    last = lines[-min(100, epoch) :]
    scored = [now["characters"] - before["characters"] for before, now in zip([{"characters": 0}, *lines], lines, strict=False)]
    weights = scored[-len(last) :]
    expected = sum(line["nats"] * n for line, n in zip(last, weights, strict=True)) / sum(weights)
    assert len(set(scored)) > 1 or corpus_size == 6000, "all batches alike would show nothing"
    assert run.record["train_nats"] == pytest.approx(expected, rel=1e-12)


def test_no_more_time_than_was_given(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, --max-time is exceeded, or stops at once; the last evaluation and save are included."""
    began = time.monotonic()
    run = tiny_run(english_file, tmp_path / "r", "train.total_steps=1000000", max_seconds=3.0)
    assert time.monotonic() - began < 3.0
    assert run.record["stopped_because"] == "max time"
    assert run.record["step"] > 0
    assert load(run.folder / "last.safetensors").progress["step"] == run.record["step"]
    assert any(isinstance(event, Evaluated) for event in run.events)


def test_the_exact_evaluation_ends_with_the_time(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a machine that has become slower exceeds --max-time, or what was read by then is thrown away."""
    monkeypatch.setattr(perplexity.carried, "__kwdefaults__", perplexity.carried.__kwdefaults__ | {"chunk": 100})
    trainer = begin(english_file, tmp_path / "r", "evaluate.characters=100", max_steps=2, max_seconds=1000.0).trainer

    def slow(done: int, total: int) -> None:
        if done == 200:
            monkeypatch.setattr(time, "monotonic", lambda: trainer.limits.started_at + 999.5)

    record = list(observed(trainer, exact_progress=slow))[-1].record
    trainer.folder.close()
    best = load(tmp_path / "r" / "best.safetensors").model(torch.device("cpu"))
    assert (record["context"], record["characters"], record["validation_length"]) == ("carried", 300, 599)
    assert record["exact_nats_of_validation_characters"] is None, "the quick ones are outside"
    expected = carried(best, trainer.dataset.text("validation")[slice(0, 301)]).nats_per_character
    assert record["nats_per_character"] == pytest.approx(expected, rel=1e-9)


def test_the_exact_evaluation_can_be_skipped(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, Ctrl-C at the end of a run waits for minutes, or the record claims an exact result."""
    trainer = begin(english_file, tmp_path / "r", max_steps=7).trainer
    told = []

    def skip(done: int, total: int) -> None:
        told.append((done, total))
        trainer.request_stop("interrupted")

    record = list(observed(trainer, exact_progress=skip))[-1].record
    trainer.folder.close()
    assert told == [(0, 599)]
    assert (record["context"], record["stopped_because"], record["step"]) == ("segments", "interrupted", 7)
    assert record["nats_per_character"] == record["best_validation_nats"]


def test_quick_and_exact_validation_are_compared_on_the_same_characters(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, nobody can tell whether the two results differ by their characters or by a mistake."""
    run = tiny_run(english_file, tmp_path / "r", "evaluate.characters=120", "evaluate.segments=3", "evaluate.warm=20")
    record = run.record
    assert (record["validation_characters"], record["validation_length"], record["characters"]) == (120, 599, 599)
    assert record["exact_nats_of_validation_characters"] == pytest.approx(record["best_validation_nats"], abs=5e-3)
    assert abs(record["nats_per_character"] - record["best_validation_nats"]) > 1e-2, "alike, this shows nothing"
    events = [event for event in run.events if isinstance(event, Evaluated)]
    assert {(event.characters, event.of) for event in events} == {(120, 599)}


def test_a_request_to_stop_finishes_the_step_and_saves(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, Ctrl-C loses work, or touches what only a regular evaluation may change."""
    trainer = begin(english_file, tmp_path / "r").trainer
    events = []
    for event in observed(trainer):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 8:
            trainer.request_stop("interrupted")
    trainer.folder.close()
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.record["step"], finished.record["stopped_because"]) == (8, "interrupted")
    assert (finished.record["best_step"], finished.record["schedule_best_step"]) == (8, 5)
    stored = load(tmp_path / "r" / "last.safetensors")
    assert stored.progress["step"] == 8
    assert stored.progress["worse_in_a_row"] == 0
    assert [event.step for event in events if isinstance(event, Saved)] == [5, 8]


def test_what_happens_when(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, evaluations, checkpoints or samples come at other steps than the recipe says."""
    run = tiny_run(
        english_file, tmp_path / "r", "evaluate.every=6", "checkpoint.every=4", "checkpoint.keep_every=8",
        "sample.every=5", "sample.prompt=[the, '']", "train.total_steps=20",
    )  # fmt: skip
    assert [e.step for e in run.events if isinstance(e, StepDone)] == list(range(1, 21))
    assert [e.step for e in run.events if isinstance(e, Evaluated)] == [6, 12, 18, 20]
    assert [e.step for e in run.events if isinstance(e, Sampled)] == [5, 5, 10, 10, 15, 15, 20, 20]
    headings = re.findall(r"step (\d+), epoch", (run.folder / "samples.txt").read_text(encoding="utf-8"))
    assert headings == ["5", "5", "10", "10", "15", "15", "20", "20"], "the last one twice"
    assert [sample.step for sample in run.events[-1].samples] == [20, 20]
    assert {4, 8, 12, 16, 20} <= {e.step for e in run.events if isinstance(e, Saved)}
    assert sorted(path.name for path in run.folder.glob("step-*")) == ["step-16.safetensors", "step-8.safetensors"]
    assert {path.name for path in run.folder.iterdir()} >= {
        "last.safetensors", "previous.safetensors", "best.safetensors", "config.yaml", "metrics.jsonl", "samples.txt",
    }  # fmt: skip
    assert json.loads((run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["kind"] == "finished"


def test_steps_are_kept_where_nothing_else_is_saved(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, files that were asked for are missing when the run is over."""
    run = tiny_run(english_file, tmp_path / "r", "evaluate.every=7", "checkpoint.keep_every=3", "train.total_steps=10")
    assert {path.stem for path in run.folder.glob("step-*")} == {"step-3", "step-6", "step-9"}


def test_a_shorter_plan_is_measured_at_its_own_end(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a resumed run reports the validation of an earlier step as its own."""
    keys = ("evaluate.every=4",)
    tiny_run(english_file, tmp_path / "r", *keys, "train.total_steps=20", max_steps=6)
    run = tiny_run(english_file, tmp_path / "r", *keys, "train.total_steps=6", resume="auto")
    assert [(e.step, e.regular) for e in run.events if isinstance(e, Evaluated)] == [(6, True)]


def test_a_network_that_cannot_be_sampled_has_diverged(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, weights that have grown beyond all bounds are reported as a mistake of the command line."""
    trainer = begin(english_file, tmp_path / "r", "sample.every=2", "evaluate.every=100").trainer
    with torch.no_grad():
        trainer.model.output_bias[0] = math.inf
    trainer._train_step = lambda: trainer.progress.advance(3.0, 1, 0.01)  # the loss would notice too
    with pytest.raises(DivergedError, match=r"scores became NaN or infinite by step 2; nothing had been saved.*train\.lr"):
        list(observed(trainer))
    trainer.folder.close()


def test_the_record_has_the_promised_keys(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, scripts that read --json break. It must be JSON, and every result a number."""
    record = tiny_run(english_file, tmp_path / "r").record
    promised = {
        "perplexity", "nats_per_character", "bits_per_character", "characters", "unknown_characters",
        "characters_per_second", "step", "epoch", "train_nats", "validation_nats", "best_validation_nats", "seconds",
        "resumed_from", "device", "engine", "precision", "parameters", "checkpoint", "stopped_because",
    }  # fmt: skip
    assert promised <= record.keys()
    json.dumps(record, allow_nan=False)
    assert (record["device"], record["precision"], record["resumed_from"]) == ("cpu", "fp32", None)
    assert record["characters_per_second"] > 0


def test_the_runs_own_config_repeats_it(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, `charlm train RUN/config.yaml` is another run, or does not find its text from elsewhere."""
    from charlm.config import load_recipe
    from charlm.training.plan import Limits
    from charlm.training.start import Options, start

    run = tiny_run(english_file, tmp_path / "r", "sample.prompt=no", "train.time=1h")
    loaded = load_recipe(str(run.folder / "config.yaml"))
    begun = start(loaded, Options(out=tmp_path / "again", limits=Limits(time.monotonic()), device="cpu"))
    list(observed(begun.trainer))
    begun.trainer.folder.close()
    one, other = (load(folder / "last.safetensors") for folder in (run.folder, tmp_path / "again"))
    assert one.recipe == other.recipe
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


# -- small texts and other models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 12, 60])
def test_a_text_too_small_is_read_in_smaller_batches(tmp_path: Path, tiny_run: Callable[..., Any], size: int) -> None:
    """If this fails, a tiny text crashes, or is trained on otherwise than said."""
    corpus = tmp_path / "tiny.txt"
    corpus.write_text(("abc" * size)[:size], encoding="utf-8")
    run = tiny_run(
        corpus,
        tmp_path / "r",
        "train.batch=32",
        "train.seq_length=64",
        "data.split=[1.0, 0.0, 0.0]",
        "train.random_offset=true",
    )
    assert run.record["step"] == 20
    (notice,) = [notice for notice in run.notices if "too small" in notice]
    assert "batch 32 × seq_length 64" in notice
    assert f"shrunk to 1 × {min(64, size - 1)}" in notice


def test_initial_weights_from_another_run(tmp_path: Path, tiny_run: Callable[..., Any], english: Callable[..., str]) -> None:
    """If this fails, --init gives a character another one's weights, loses characters, or does not learn new ones."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("abcd" * 100, encoding="utf-8")
    second.write_text("bdXcZ" * 100, encoding="utf-8")
    cases = (("model.input=one-hot", {"output_weight": 0, "output_bias": 0, "layers.0.weight_ih": 1}),
             ("model.input=embedding", {"output_weight": 0, "output_bias": 0, "embedding": 0}),
             ("model.tied=true", {"embedding": 0, "output_bias": 0}))  # fmt: skip
    for key, of_characters in cases:
        folder = tmp_path / key
        old = tiny_run(first, folder / "old", key)
        new = tiny_run(second, folder / "new", key, init=str(old.folder), max_steps=0)
        there, here = load(old.folder / "best.safetensors"), load(new.folder / "last.safetensors")
        assert here.vocabulary.symbols == tuple(sorted(map(ord, "abcdXZ")))
        ids = [(there.vocabulary.id_of(ord(c)), here.vocabulary.id_of(ord(c))) for c in "abcd"] + [(0, 0)]
        for name, weight in here.weights.items():
            if name in of_characters:
                for a, b in ids:
                    dimension = of_characters[name]
                    assert torch.equal(there.weights[name].select(dimension, a), weight.select(dimension, b)), name
                fresh = weight.select(of_characters[name], here.vocabulary.id_of(ord("Z")))
                assert name == "output_bias" or fresh.abs().sum() > 0
            else:
                assert torch.equal(there.weights[name], weight), name
        (notice,) = [notice for notice in new.notices if "initial weights" in notice]
        assert "4 symbols mapped" in notice
        assert "'X' (U+0058), 'Z' (U+005A)" in notice
        assert here.optimizer == {}, "moments of another text were taken over"


def test_initial_weights_of_another_network_are_refused(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, --init squeezes one network's weights into another; the folder must stay untouched."""
    old = tiny_run(english_file, tmp_path / "old", max_steps=1)
    for key, message in (("model.hidden=9", r"model\.hidden: 16 there, 9 here"), ("model.cell=gru", r"model\.cell"),
                         ("model.variant=peephole", r"model\.variant: vanilla there, peephole here"),
                         ("model.embedding=9", "model.input: 16 there, 9 here"),
                         ("model.input=one-hot", "one-hot")):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            tiny_run(english_file, tmp_path / "new", key, init=str(old.folder))
        assert not (tmp_path / "new").exists()
    with pytest.raises(RecipeError, match="reads chars"):
        tiny_run(english_file, tmp_path / "new", "data.unit=byte", init=str(old.folder))


def test_epochs_and_characters_are_counted(tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path) -> None:
    """If this fails, `epochs: 2` is not two readings of the training text: 2 × 4,799 targets."""
    run = tiny_run(english_file, tmp_path / "r", "train.total_steps=null", "train.epochs=2", "train.batch=32",
                   "train.seq_length=50", "evaluate.every=100")  # fmt: skip
    assert run.record["training_characters"] == 2 * 4799
    assert (run.record["epoch"], run.record["step"], run.record["stopped_because"]) == (2.0, 6, "finished")
    assert math.isclose([e for e in run.events if isinstance(e, StepDone)][2].epoch, 1.0)


def test_the_loss_of_a_step_is_a_mean_over_characters(
    tmp_path: Path, begin: Callable[..., Any], numpy_model: Callable[..., Any], english: Callable[..., str]
) -> None:
    """If this fails, masked positions count, a short batch is scaled wrongly, or the state is not carried into it."""
    corpus = tmp_path / "c.txt"
    corpus.write_text(english(120), encoding="utf-8")
    trainer = begin(corpus, tmp_path / "r", "data.split=[1.0, 0.0, 0.0]", "train.batch=3", "train.seq_length=30",
                    "model.layers=2", "data.unknown_rate=0", "train.optimizer=sgd", "train.lr=1e-30").trainer  # fmt: skip
    text = trainer.dataset.text("train")
    ids = text.ids(0, len(text))
    pieces: list[list[float]] = [[], []]
    for stream in range(3):  # of 39, 40 and 40 characters: the second batch has 9, 10 and 10 of them
        start, stop = stream * 119 // 3, (stream + 1) * 119 // 3
        logits = numpy_model(trainer.model, ids[start:stop, None])[:, 0]
        nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(stop - start), ids[start + 1 : stop + 1]]
        pieces[0] += nats[:30].tolist()
        pieces[1] += nats[30:].tolist()
    steps = []
    for event in observed(trainer):
        steps += [event] if isinstance(event, StepDone) else []
        if len(steps) == 2:
            break
    trainer.folder.close()
    assert [len(piece) for piece in pieces] == [90, 29]
    for event, piece in zip(steps, pieces, strict=True):
        assert event.nats == pytest.approx(sum(piece) / len(piece), rel=1e-5)


def test_decay_by_epochs_does_not_follow_the_random_offsets(
    tmp_path: Path, tiny_run: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, the learning rate jumps up and down where epochs differ in length by a batch."""
    run = tiny_run(english_file, tmp_path / "r", "train.random_offset=true", "train.drop_last=true", "train.batch=160",
                   "train.seq_length=9", "train.schedule=exponential", "train.gamma=0.5", "train.total_steps=30")  # fmt: skip
    rates = [event.learning_rate for event in run.events if isinstance(event, StepDone)]
    assert rates == sorted(rates, reverse=True)


def test_an_interrupted_run_says_how_many_characters_its_figure_covers(
    tmp_path: Path, begin: Callable[..., Any], english_file: Path
) -> None:
    """If this fails, the record of a run that was stopped claims that nothing was scored."""
    trainer = begin(english_file, tmp_path / "r").trainer
    trainer.request_stop("interrupted")
    record = list(observed(trainer))[-1].record
    trainer.folder.close()
    assert record["context"] == "segments"
    assert record["characters"] == 599


@pytest.mark.parametrize("engine", ["reference", "torch", "native"])
def test_the_loss_of_records_is_that_of_each_record_alone(
    begin: Callable[..., Any], numpy_model: Callable[..., Any], tmp_path: Path, engine: str
) -> None:
    """If this fails, training reads a record with the state of another, or forgets the beginning of a long one."""
    random = np.random.default_rng(1)
    words = ["".join(random.choice(list("abcd"), length)) for length in random.integers(1, 40, 120)]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    begun = begin(
        tmp_path / "words.txt", tmp_path / "run", f"model.engine={engine}", "data.records=line", "train.epochs=1",
        "train.lr=1e-30", "train.schedule=constant", "evaluate.every=1000",
    )  # fmt: skip
    trainer = begun.trainer
    try:
        before = trainer.progress
        steps = [event for event in trainer.run() if isinstance(event, StepDone)]
    finally:
        trainer.folder.close()
    vocabulary, (_, stop) = trainer.dataset.vocabulary, trainer.dataset.splits["train"]
    assert before.epoch == 1 and before.index == 0 and before.characters == stop - 1
    nats, read = 0.0, 0
    for word in words:
        if read == stop - 1:
            break
        ids = np.array([vocabulary.separator_id, *vocabulary.encode(word + "\n")])
        logits = numpy_model(trainer.model, ids[:-1, None])[:, 0]
        nats += float((np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids) - 1), ids[1:]]).sum())
        read += len(ids) - 1
    scored = np.diff([0, *(step.characters for step in steps)])
    assert sum(step.nats * count for step, count in zip(steps, scored, strict=True)) == pytest.approx(nats, rel=1e-6)


def test_a_run_on_records_reports_them(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, the result is that of one stream, or a sample runs past the end of its record."""
    (tmp_path / "words.txt").write_text("ab\nabc\nba\n" * 100, encoding="utf-8")
    run = tiny_run(tmp_path / "words.txt", tmp_path / "run", "data.records=line", "sample.length=300")
    assert run.record["context"] == "records"
    assert run.record["characters"] == run.record["validation_characters"] == run.record["validation_length"]
    assert run.record["nats_per_character"] == pytest.approx(run.record["best_validation_nats"], rel=1e-6)
    samples = [event.text for event in run.events if isinstance(event, Sampled)]
    assert samples and all("\n" not in sample for sample in samples)
    last = samples[-1]
    assert 0 < len(last) < 50
    capped = tiny_run(
        tmp_path / "words.txt", tmp_path / "capped", "data.records=line", "evaluate.characters=20", "train.total_steps=5"
    )
    assert capped.record["validation_characters"] <= 20 < capped.record["characters"]
    assert capped.record["best_validation_nats"] == pytest.approx(
        capped.record["exact_nats_of_validation_characters"], rel=1e-6
    )  # fmt: skip


def test_a_model_of_one_stream_can_start_a_model_of_records(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    """If this fails, initial weights from a stream of the same text are refused, or bring a vocabulary without separator."""
    (tmp_path / "words.txt").write_text("ab, abc, ba, " * 100, encoding="utf-8")
    tiny_run(tmp_path / "words.txt", tmp_path / "first", "train.total_steps=3")
    run = tiny_run(
        tmp_path / "words.txt", tmp_path / "second", 'data.records=", "', "train.total_steps=3", init=str(tmp_path / "first")
    )  # fmt: skip
    stored = load(tmp_path / "second" / "last.safetensors")
    assert run.record["context"] == "records"
    assert stored.vocabulary.separator_id == stored.vocabulary.id_of(0) == 1


def test_a_long_plan_of_records_is_estimated(tmp_path: Path, begin: Callable[..., Any], english_file: Path) -> None:
    """If this fails, a plan of many epochs orders all records of each before the run starts; or a short plan is not exact."""
    lengths = {}
    for epochs in (3, 1_000_000):
        trainer = begin(english_file, tmp_path / f"{epochs}", "data.records=line", f"train.epochs={epochs}").trainer
        trainer.folder.close()
        lengths[epochs] = trainer.plan.total_steps
    assert lengths[3] == sum(map(trainer.batches.epoch_length, range(3)))
    assert lengths[1_000_000] == pytest.approx(1_000_000 * lengths[3] / 3, rel=0.02)
