"""``benchmarks/cuda.py`` runs, and says what failed: nobody may find out on a rented GPU that it has rotted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cuda.py"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_all_sections_run_on_a_cpu(tmp_path: Path) -> None:
    """Failing would mean that users with a GPU get a traceback instead of results."""
    done = _run("--tiny", "--device", "cpu", "--json", str(tmp_path / "cuda.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "cuda.json").read_text(encoding="utf-8"))
    assert record["failed"] == [] and done.stdout.count("pass  ") == len(record["parity"]) + len(record["resume"]) > 50
    assert all(one["passed"] and one["found"] <= one["allowed"] for one in record["parity"])
    assert {row["how"] for row in record["steps"]["rows"]} == {"torch.nn", "launched", "graph"}
    assert record["resume"] == {"fp32": 0.0}
    for section in ("training", "evaluation", "sampling"):
        assert {row["engine"] for row in record[section][0]["rows"]} == {"torch", "reference", "torch.nn"}


def test_sections_are_chosen_and_mistakes_are_named() -> None:
    """Failing would mean that one section costs the time of all, or that a wrong name is passed over."""
    done = _run("--tiny", "--device", "cpu", "--only", "memory")
    assert done.returncode == 0 and "sampling" not in done.stdout
    wrong = _run("--only", "parity,speed")
    assert wrong.returncode == 2 and "speed" in wrong.stderr and "sampling" in wrong.stderr


def test_a_failed_check_stops_nothing_and_fails_the_run(tmp_path: Path) -> None:
    """Failing would mean that a wrong result ends as success, or hides all that comes after it."""
    broken = (
        "import runpy, sys\n"
        "import charlm.model.dropout as dropout\n"
        "dropout.Dropout.recurrent = lambda *_: 1 / 0\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    path = tmp_path / "cuda.json"
    command = [
        sys.executable,
        "-c",
        broken,
        str(SCRIPT),
        "--tiny",
        "--device",
        "cpu",
        "--only",
        "parity,memory",
        "--json",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads(path.read_text(encoding="utf-8"))
    assert "FAIL  gradients: lstm, torch fp32: found nan" in done.stdout and "ZeroDivisionError" in done.stdout
    assert "gradients: lstm, torch fp32" in record["failed"] and "memory" in record
    assert any(one["passed"] for one in record["parity"])


def test_the_script_hides_no_package() -> None:
    """Failing would mean that PyTorch imports `benchmarks/cuda.py` in place of NVIDIA's package `cuda`."""
    script = (
        f"import importlib.util, runpy, sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); runpy.run_path({str(SCRIPT)!r}); "
        "found = importlib.util.find_spec('cuda'); print(found and found.origin)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert str(SCRIPT) not in done.stdout, "NVIDIA's package is a namespace without a file; without it, None is printed"


def test_busy_neighbours_are_measured(tmp_path: Path) -> None:
    """Failing would mean that nobody can repeat what busy programs cost."""
    command = [sys.executable, str(SCRIPT.with_name("busy.py")), "--seconds", "0.01", "--repetitions", "1", "--hidden", "8"]
    command += ["--neighbours", "0", "--engines", "torch", "--json", str(tmp_path / "busy.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "busy.json").read_text(encoding="utf-8"))["rows"]
    assert [row["work"] for row in rows] == ["training", "validation", "exact evaluation", "sampling"]
    assert all(rate > 0 for row in rows for name in ("chosen", "one", "all") for rate in row[name])
