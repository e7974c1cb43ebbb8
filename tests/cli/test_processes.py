"""``charlm`` as a real process: signals, locks, pipes, start-up."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest

LONG = (
    "corpus: ./text.txt\nmodel: {hidden: 8, dropout: 0}\n"
    "train: {batch: 4, seq_length: 16, total_steps: 10000000, threads: 1, precision: fp32}\n"
    "evaluate: {every: 1000000}\ncheckpoint: {every: 20}\nsample: {every: 1000000, length: 12}\n"
)


@pytest.fixture
def long_recipe(desk):
    """A training that would take hours, saved every 20 steps."""
    path = desk / "long.yaml"
    path.write_text(LONG, encoding="utf-8")
    return path


def _until(condition, seconds=40.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def _training(folder):
    """Whether a training in this folder has saved; from then on it is in its loop."""
    return (folder / "previous.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(charlm_process, charlm, long_recipe, desk, number):
    """Failing would mean that Ctrl-C, or a cluster that ends a job, costs work."""
    run = desk / "a run"
    process = charlm_process("train", "long.yaml", "--out", "a run")
    _until(lambda: _training(run))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    command = shlex.split(next(line for line in err.splitlines() if line.startswith("resume with")).removeprefix("resume with"))
    stopped = int(err.split("interrupted at step ")[1].split(", epoch")[0].replace(",", ""))
    done = charlm(*command[1:], "--max-steps", stopped + 1, "--json", "-q")
    assert done.record["resumed_from"] == stopped, "the step that was reached is the one that was saved"


@pytest.mark.slow
def test_one_at_a_time_and_a_killed_run_leaves_no_lock(charlm_process, charlm, long_recipe, desk):
    """Failing would mean that two processes mix their checkpoints, or that a crash locks a folder for ever."""
    run = desk / "run"
    process = charlm_process("train", "long.yaml", "--out", "run")
    _until(lambda: _training(run))
    second = charlm("train", "long.yaml", "--out", "run", "--resume", "auto")
    assert second.code == 1
    assert "another process is training in run" in second.err and "--out" in second.err
    process.kill()
    process.communicate()
    done = charlm("train", "long.yaml", "--out", "run", "--resume", "auto", "--max-steps", 1, "--json", "-q")
    assert done.code == 0
    assert done.record["resumed_from"] >= 20
    assert done.record["resumed_from"] % 20 == 0


@pytest.mark.slow
def test_ctrl_c_while_sampling_ends_with_what_was_written(charlm_process, trained):
    """Failing would mean a traceback, or a wrong exit code, at the most natural way to end endless text."""
    process = charlm_process("sample", trained / "run", "--length", 0, "--seed", 1)
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err and "interrupted" in err


@pytest.mark.slow
def test_head_may_stop_reading(trained):
    """Failing would mean that `charlm sample … | head` ends with an error."""
    command = [sys.executable, "-m", "charlm", "sample", str(trained / "run"), "--length", "0", "--seed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(100)) == 100
    process.stdout.close()
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_help_is_quick_and_does_not_import_torch():
    """Failing would mean that help and completion make people wait."""
    script = (
        "import sys, resource\n"
        "from charlm.cli.app import run\n"
        "code = run(['train', '--help'])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(code, 'torch' in sys.modules, used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8")
        code, torch, used = done.stderr.split()
        assert (code, torch) == ("0", "False")
        assert "--resume" in done.stdout
        seconds.append(float(used))
    assert min(seconds) <= 0.3


@pytest.mark.parametrize("settings", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}])
def test_output_is_utf_8_whatever_the_locale_says(settings):
    """Failing would mean that a text cannot be shown on a machine without a locale."""
    command = [sys.executable, "-m", "charlm", "train", "nö.yaml"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **settings})
    assert done.returncode == 2
    assert "nö.yaml does not exist" in done.stderr.decode("utf-8")


def _on_a_terminal(arguments, seconds=60.0, **settings):
    """Run ``charlm`` on a terminal of 80 columns and return all that it drew."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", **settings}
    command = [sys.executable, "-m", "charlm", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    drawn, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                block = os.read(ours, 65536)
            except OSError:  # Linux says so when the last writer has gone
                break
            if not block:
                break
            drawn += block
    os.close(ours)
    return process.wait(timeout=10), drawn.decode("utf-8", "replace")


@pytest.mark.slow
def test_a_terminal_is_drawn_on(long_recipe, desk):
    """Failing would mean that there is nothing to watch."""
    code, drawn = _on_a_terminal(["train", "long.yaml", "--out", "run", "--max-steps", "4000"])
    assert code == 0
    assert "\x1b[2K" in drawn and "loss" in drawn, "a line is redrawn"
    assert "nats per character against steps:  · training" in drawn, "the curve is drawn at the end"
    assert drawn.rstrip().splitlines()[-1].startswith("validation perplexity")


@pytest.mark.slow
def test_no_color_is_honoured_on_a_terminal(desk):
    """Failing would mean that NO_COLOR is not."""
    code, drawn = _on_a_terminal(["train", "absent.yaml"], NO_COLOR="1")
    assert code == 2
    assert "error: " in drawn
    assert "\x1b[31m" not in drawn and "\x1b[1;31m" not in drawn
    _, coloured = _on_a_terminal(["train", "absent.yaml"])
    assert "31m" in coloured
