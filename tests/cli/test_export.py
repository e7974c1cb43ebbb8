"""``charlm export``."""

from __future__ import annotations


def test_a_page_is_written_and_named_after_the_run(charlm, trained, desk, monkeypatch):
    """Failing would mean that the command does not write what it says, or to another place."""
    done = charlm("export", trained / "run")
    assert done.code == 0 and (desk / "run.html").is_file() and "run.html" in done.text
    assert charlm("export", trained / "run", "--to", "html", "--fp32", "-o", desk / "other.html").code == 0
    assert (desk / "other.html").stat().st_size > (desk / "run.html").stat().st_size


def test_another_file_is_not_replaced(charlm, trained, desk):
    """Failing would mean that -o destroys a user's file."""
    (desk / "mine.txt").write_text("mine", encoding="utf-8")
    done = charlm("export", trained / "run", "-o", desk / "mine.txt")
    assert done.code == 2 and "--output" in done.err and (desk / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_does_not_exist_is_made_and_a_form_that_does_not_is_refused(charlm, trained, desk):
    """Failing would mean that a wrong --to writes something."""
    assert charlm("export", trained / "run", "-o", desk / "new" / "page.html").code == 0
    assert charlm("export", trained / "run", "--to", "onnx").code == 2


def test_an_empty_name_is_refused(charlm, trained, desk):
    """Failing would mean that a script with an unset variable writes to a place that it did not name."""
    done = charlm("export", trained / "run", "-o", "")
    assert done.code == 2 and "expected a path" in done.err and not (desk / "run.html").exists()
