"""The benchmark: fair turns, and results that follow from the timings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from charlm import bench, cells
from charlm.bench import Configuration, Shape, Sweep, sweep, timing, work
from charlm.evaluation.limits import CHUNK
from charlm.model.engines import ENGINES
from charlm.model.language_model import count_parameters

CPU = torch.device("cpu")
TINY = Shape(hidden=4, symbols=5, seq_length=3, batch=2)


class Clock:
    """Time that passes only while work is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], float]:
        """Ten characters per call; calls take these seconds in turn, and all later ones the last of them."""
        left = list(seconds)

        def run() -> float:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return 10.0

        return run


def test_cases_take_turns() -> None:
    """Failing would mean that a drift of the machine's speed favours whatever is timed first."""
    clock = Clock()
    timing.measure([clock.work("a", 1.0), clock.work("b", 1.0)], repetitions=3, seconds=1.0, clock=clock)
    warm = clock.order.index("b")
    assert warm > 0 and clock.order[: 2 * warm] == ["a"] * warm + ["b"] * warm
    assert clock.order[2 * warm :] == ["a", "b"] * 3


def test_a_turn_lasts_as_long_as_was_asked() -> None:
    """Failing would mean that quick cases are timed by a single call."""
    clock = Clock()
    (speed,) = timing.measure([clock.work("a", 0.25)], repetitions=1, seconds=1.0, clock=clock)
    assert speed.median == 40.0
    assert clock.now == pytest.approx(0.25 * len(clock.order)) and clock.now - 1.0 == 0.25 * (len(clock.order) - 4)


def test_a_result_is_the_median_and_first_calls_do_not_count() -> None:
    """Failing would mean that one disturbed turn, or the compilation of a kernel, distorts a result."""
    clock = Clock()
    run = clock.work("a", 100.0, 100.0, 100.0, 2.0, 1.0, 5.0)
    (speed,) = timing.measure([run], repetitions=3, seconds=0.5, clock=clock)
    assert (speed.low, speed.median, speed.high) == (2.0, statistics.median([5.0, 10.0, 2.0]), 10.0)


def test_the_time_left_follows_from_the_warm_up() -> None:
    """Failing would mean that the benchmark promises seconds and takes minutes, as it does where one call is long."""
    clock, told = Clock(), []

    def progress(done: int, total: int, left: float | None) -> None:
        told.append((done, total, left, clock.now))

    runs = [clock.work("quick", 0.01), clock.work("slow", 3.0)]
    timing.measure(runs, repetitions=4, seconds=0.1, clock=clock, progress=progress)
    assert [(done, total) for done, total, _, _ in told] == [(done, 10) for done in range(1, 11)]
    for _, _, left, at in told[2:]:
        assert left == pytest.approx(clock.now - at, rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    ("others", "threads", "lowest", "words"),
    [(0.1, 1, 90, []), (None, 1, 90, []), (1.6, 2, 90, ["busy"]), (0.0, 2, 60, ["vary"]), (1.4, 2, 60, ["busy", "vary"])],
)
def test_a_disturbed_measurement_is_told(
    others: float | None, threads: int, lowest: float, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing would mean that results of a busy machine are taken for those of an idle one."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    row = bench.Row("train", "lstm", "native", "fp32", 100.0, lowest, 110.0, 3, None, 1.0, None)
    warnings = sweep._warnings([row], others, threads)
    assert len(warnings) == len(words) and all(word in text for word, text in zip(words, warnings, strict=True))


@pytest.mark.parametrize("cell", bench.CELLS)
@pytest.mark.parametrize("layers", [1, 3])
def test_operations_are_six_per_multiplied_weight(cell: str, layers: int) -> None:
    """Failing would mean that the share of the ceiling is not a share of what has to be computed."""
    shape = Shape(hidden=8, symbols=5, layers=layers)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    weights = count_parameters(bench.section_of(cell, shape), shape.symbols)
    biases = 2 * gates * shape.hidden * layers + shape.symbols
    looked_up = gates * shape.hidden * shape.symbols  # one-hot input
    assert shape.flop_per_character(cell) == 6 * (weights - biases - looked_up)


@pytest.mark.parametrize("cell", bench.CELLS)
def test_torch_nn_has_the_same_network(cell: str) -> None:
    """Failing would mean that the program beside ours does other work."""
    shape = Shape(hidden=8, symbols=5, layers=2)
    theirs = sum(weight.numel() for weight in work.TorchNN(cell, shape).parameters())
    assert theirs == count_parameters(bench.section_of(cell, shape), shape.symbols)


@pytest.mark.parametrize("kind", bench.KINDS)
@pytest.mark.parametrize("engine", [*ENGINES, bench.TORCH_NN])
def test_all_work_can_be_repeated(kind: str, engine: str) -> None:
    """Failing would mean that a program cannot continue from its own state, or miscounts its characters."""
    if engine in ENGINES and ENGINES[engine].why_not(bench.section_of("lstm", TINY), CPU):
        pytest.skip("this engine does not run here")
    run = work.build(Configuration(kind, "lstm", engine, "fp32"), TINY, CPU)
    characters = {"train": TINY.seq_length * TINY.batch, "evaluate": CHUNK, "sample": run()}[kind]
    assert [run(), run(), run()] == [characters] * 3
    assert not torch.is_inference_mode_enabled()


def test_all_engines_and_torch_nn_are_planned() -> None:
    """Failing would mean that an engine is left out without a word."""
    planned, left_out = bench.plan(Sweep(shape=TINY, precisions=bench.PRECISIONS), CPU)
    assert len(set(planned)) == len(planned)
    for kind in bench.KINDS:
        for cell in bench.CELLS:
            for precision in bench.PRECISIONS if kind == "train" else ("fp32",):
                rows = {about.engine for about in planned if about == Configuration(kind, cell, about.engine, precision)}
                missing = {about.engine for about in left_out if (about.cell, about.precision) == (cell, precision)}
                assert rows | missing == {*ENGINES, bench.TORCH_NN} and not rows & missing


def test_bf16_runs_by_itself_only_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean minutes of emulated arithmetic, or that asking for it by name does not help."""
    monkeypatch.setattr("charlm.runtime.cpu_bf16_instructions", lambda: "")
    planned, left_out = bench.plan(Sweep(shape=TINY), CPU)
    assert {about.precision for about in planned} == {"fp32"}
    assert any("no bf16 arithmetic" in about.reason for about in left_out if about.engine == "torch")
    planned, _ = bench.plan(Sweep(shape=TINY, precisions=["bf16"]), CPU)
    assert ("torch", "bf16") in {(about.engine, about.precision) for about in planned}
    assert Configuration("train", "lstm", bench.TORCH_NN, "fp32") in planned, "ratios need it"

    monkeypatch.setattr("charlm.runtime.cpu_bf16_instructions", lambda: "avx512_bf16")
    planned, left_out = bench.plan(Sweep(shape=TINY), CPU)
    assert {("torch", "bf16"), (bench.TORCH_NN, "bf16")} <= {(about.engine, about.precision) for about in planned}
    assert {about.precision for about in left_out if about.engine == "reference"} == {"bf16"}


def test_an_engine_that_cannot_run_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a missing engine is silently absent, or complained of for every kind."""
    monkeypatch.setattr(ENGINES["torch"], "why_not", lambda model, device: f"no {model.cell} today")
    planned, left_out = bench.plan(Sweep(shape=TINY, cells=["gru"], engines=["torch"], precisions=["fp32"]), CPU)
    assert {about.engine for about in planned} == {bench.TORCH_NN}
    assert left_out == [bench.NotRun("gru", "torch", "fp32", "no gru today")]


def test_a_cell_that_pytorch_does_not_have_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that a cell without kernels cannot be timed, or is compared with another cell of torch.nn."""
    monkeypatch.setattr(cells, "CELLS", tuple(replace(entry, kernels={}) for entry in cells.CELLS))
    wanted = Sweep(shape=TINY, kinds=["train"], cells=["lstm"], precisions=["fp32"], repetitions=1, seconds=0.0)
    monkeypatch.setattr("charlm.bench.sweep.product_sizes", lambda device: [(8, 8, 8)])
    report = bench.bench(wanted, CPU)
    assert [(row.engine, row.ratio_to_torch_nn) for row in report.rows] == [("reference", None)]
    assert {about.engine: about.reason for about in report.not_run} == {
        "native": "the native engine has no kernel for the LSTM", "torch": "PyTorch has no LSTM",
        bench.TORCH_NN: "PyTorch has no LSTM",
    }  # fmt: skip


def test_ceilings_are_measured_once_and_shares_refer_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that shares and ratios are not what their names say."""
    monkeypatch.setattr("charlm.bench.sweep.product_sizes", lambda device: [(8, 8, 8), (16, 8, 16)])
    wanted = Sweep(shape=TINY, cells=["rnn"], engines=["reference"], precisions=["fp32", "bf16"], repetitions=2, seconds=0.0)
    report = bench.bench(wanted, CPU)
    assert all(report.gemm_gflops.values())
    base = {row.kind: row.characters_per_second for row in report.rows if (row.engine, row.precision) == ("torch.nn", "fp32")}
    for row in report.rows:
        assert 0 < row.low <= row.characters_per_second <= row.high
        assert row.ratio_to_torch_nn == row.characters_per_second / base[row.kind]
        if row.kind == "train":
            ceiling = 1e9 * (report.gemm_gflops[row.precision] or 0.0)
            assert row.share_of_ceiling == pytest.approx(row.characters_per_second * TINY.flop_per_character("rnn") / ceiling)
        else:
            assert row.share_of_ceiling is None


def test_memory_is_what_the_network_takes() -> None:
    """Failing would mean that the result hides the network behind the libraries' own memory, or misses it."""
    shape = Shape(hidden=1024, symbols=64)
    taken = bench.peak_memory(Configuration("evaluate", "lstm", "reference", "fp32"), shape, CPU, threads=1)
    if taken is None:
        pytest.skip("this system does not tell")
    weights = 4 * count_parameters(bench.section_of("lstm", shape), shape.symbols)
    assert weights < taken < 5 * weights


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing would mean that work which a GPU has only been asked for counts as done; or that a CPU is timed otherwise."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    gpu = torch.device("cuda", 0)
    clock = timing.clock_of(gpu)
    assert clock() <= clock() and waited == [gpu, gpu]
    assert timing.clock_of(CPU) is time.perf_counter
    assert bench.precisions_on(gpu) == ("fp32", "bf16", "fp16") and bench.precisions_on(CPU) == ("fp32", "bf16")
