"""The native engine under GCC's sanitizers: nothing outside its arrays, nothing that nobody wrote, nothing undefined."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from charlm.model.native.build import Compiler, compile_one, find_compiler, flags_of
from charlm.model.native.library import SOURCE

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")

SCRIPT = """
import ctypes, importlib.util, math, sys

import numpy as np
import torch

from charlm.config import TrainSection
from charlm.model.dropout import Dropout
from charlm.model.language_model import LanguageModel
from charlm.model.native import library, memory
from charlm.model.native.sampling import NativeSampler
from charlm.optimizers import OPTIMIZERS
from charlm.threads import use
from charlm.training.update import Updater

spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
sys.modules["shared"] = shared
spec.loader.exec_module(shared)

loaded = ctypes.CDLL(sys.argv[2])
library.reason = lambda: None
library.current = lambda: loaded
# Each array by itself, with the sanitizer's fences around it, and full of what is not a number.
memory.Pool.take = lambda self, shape, dtype: torch.full(shape, math.nan, dtype=dtype)

shapes = [
    dict(T=1, B=1, H=1, V=2, inputs="tied"),
    dict(T=3, B=17, H=33, V=5, layers=2),
    dict(T=2, B=3, H=64, V=700, inputs=7),
    dict(T=4, B=33, H=31, V=32, layers=2, inputs=40),
]
for threads in (1, 2):
    use(threads)
    for cell in shared.CELLS:
        for shape in shapes:
            case = shared.Case(cell, **shape)
            model = case.model("native")
            ids, targets = case.batch()
            for precision in ("fp32", "bf16"):
                for name, part in case.outcome(model, precision).items():
                    assert part.isfinite().all(), (cell, shape, precision, name)
                drops = {"dropout": 0.3, "weight_drop": 0.2, "input_dropout": 0.2 if model.embedding is not None else 0}
                section = model.section.model_copy(update=drops | {"residual": case.layers > 1})
                dropped = LanguageModel(section, case.V, "native")
                dropped.initialise(1)
                update = Updater(dropped, TrainSection(), precision)
                for step, streams in enumerate((case.B, 1) if threads == 2 else ()):
                    scored = max(1, int((targets[:, :streams] >= 0).sum()))
                    batch = ids[:, :streams].contiguous(), targets[:, :streams].contiguous()
                    nats = update(*batch, scored, dropped.zero_state(streams), 1e-3, Dropout(section, 1, step)).nats
                    assert math.isfinite(nats), (cell, shape, precision)
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    features, state = model.features(ids, model.zero_state(case.B))
                    logits = model.logits(features)[-1]
                    dtype = features.dtype
                    assert model.engine.cross_entropy(
                        features.flatten(0, 1), model.output_matrix(), model.output_bias, targets.flatten()
                    ).isfinite()
                    for params in ((0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 2, 1.0), (1.3, 0, 0.5), (1.0, case.V + 5, 0.999)):
                        sampler = NativeSampler(model, logits, state, *params, frozenset({0}), dtype)
                        for count in (0, 1, 4):
                            drawn = sampler.draw(np.random.default_rng(1).random((count, case.B)))
                            assert ((drawn > 0) & (drawn < case.V)).all()
        if threads == 1:
            continue
        for rule in OPTIMIZERS:
            updater = Updater(model, TrainSection(optimizer=rule, momentum=0.5), "fp32")
            for _ in range(2):
                scored = int((targets >= 0).sum())
                assert math.isfinite(updater(ids, targets, scored, model.zero_state(case.B), 1e-3).nats)
print("done")
"""


def _runtime(compiler: Compiler, name: str) -> str:
    """Where the compiler keeps a sanitizer's library; empty: it has none."""
    command = [*compiler.command, f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    return found if Path(found).is_absolute() and Path(found).is_file() else ""


@pytest.mark.parametrize(
    "extra",
    [pytest.param((), id="any processor"), pytest.param(("-DCHARLM_EMULATE_AMX",), id="amx, emulated", marks=pytest.mark.slow)],
)
def test_nothing_is_read_or_written_outside_its_place(tmp_path: Path, extra: tuple[str, ...]) -> None:
    """If this fails, the engine's C++ has a memory error: all cells, odd shapes, one and two threads, all it can do."""
    compiler, problem = find_compiler()
    if compiler is None:
        pytest.skip(problem)
    runtimes = [_runtime(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if not all(runtimes):
        pytest.skip("this compiler has no sanitizers")
    file = tmp_path / "sanitized.so"
    assert not compile_one(SOURCE, file, (*flags_of("portable"), *FLAGS, *extra), compiler=compiler)
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).with_name("conftest.py")), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[:3000] + "\n…\n" + done.stderr[-1000:]
