"""``charlm report``."""

from __future__ import annotations

import os
import shutil

import pytest


def test_a_report_is_written_into_the_run(charlm, trained, desk):
    """Failing would mean that the page is not where the command says."""
    done = charlm("report", trained / "run")
    assert done.code == 0 and "report.html" in done.text
    page = trained / "run" / "report.html"
    assert page.is_file()
    page.unlink()


def test_several_runs_need_a_file_name(charlm, trained, desk):
    """Failing would mean that a report about several runs lands in one of them."""
    done = charlm("report", trained / "run", trained / "run")
    assert done.code == 2 and "--output" in done.err
    assert charlm("report", trained / "run", trained / "run", "-o", desk / "two.html").code == 0


def test_another_file_is_not_replaced(charlm, trained, desk):
    """Failing would mean that -o destroys a user's file."""
    (desk / "mine.html").write_text("mine", encoding="utf-8")
    assert charlm("report", trained / "run", "-o", desk / "mine.html").code == 2
    assert (desk / "mine.html").read_text(encoding="utf-8") == "mine"


@pytest.fixture
def damaged(trained, tmp_path):
    """``damaged(file, content)``: a copy of a run in which a file has another content."""

    def make(file, content):
        shutil.copytree(trained / "run", tmp_path / "run")
        (tmp_path / "run" / file).write_bytes(content)
        return tmp_path / "run"

    return make


def test_a_cut_line_of_the_log_is_left_out(charlm, trained, damaged):
    """Failing would mean that no report can be made of a run that was killed while it wrote a line."""
    run = damaged("metrics.jsonl", (trained / "run" / "metrics.jsonl").read_bytes() + b'{"kind": "st')
    assert charlm("report", run).code == 0
    assert "Loss during training" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1}',
        b"[1]",
        b'{"kind": "step"}',
        b'{"kind": "step", "step": "x", "characters": 1, "seconds": 1}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_a_log_of_another_program_is_named(charlm, damaged, line):
    """Failing would mean a message about charlm's insides, or a question that a foreign file keeps from its answer."""
    run = damaged("metrics.jsonl", line + b"\n")
    done = charlm("report", run)
    assert done.code == 1 and "metrics.jsonl, line 1: not a line of a run's log" in done.err
    assert charlm("eval", "gradients", run, "--distance", 3, "--json").record["clipping"] is None


def test_a_log_that_is_a_pipe_is_refused(charlm, trained, damaged):
    """Failing would mean that the command waits forever for a writer."""
    run = damaged("metrics.jsonl", b"")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    done = charlm("report", run)
    assert done.code == 1 and "not a regular file" in done.err


def test_a_final_record_without_results_is_not_shown(charlm, damaged):
    """Failing would mean that a log written by another version prevents the report."""
    run = damaged("metrics.jsonl", b'{"kind": "finished", "step": 3}\n')
    assert charlm("report", run).code == 0


def test_headings_with_absurd_steps_are_text(charlm, damaged):
    """Failing would mean that a sample which looks like a heading prevents the report."""
    run = damaged("samples.txt", f"━━━ step 3, a ━━━\nabc\n━━━ step {'9' * 5000}, b ━━━\nxyz\n".encode())
    assert charlm("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<h3>step 3</h3>") == 1 and "xyz" in page
