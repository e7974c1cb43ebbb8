"""``charlm report``."""

from __future__ import annotations


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
