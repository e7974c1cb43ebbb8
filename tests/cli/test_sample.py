"""``charlm sample``: what goes in, and that only sampled text comes out."""

from __future__ import annotations

import io
import json

import pytest


@pytest.fixture(scope="module")
def byte_run(trained):
    """A model of bytes; only to be read."""
    from charlm.cli.app import run

    arguments = ["--set", "data.unit=byte", "--max-steps", "2", "--out", str(trained / "bytes"), "-q"]
    assert run(["train", str(trained / "recipe.yaml"), *arguments]) == 0
    return trained / "bytes"


def test_stdout_is_the_text_and_nothing_else(charlm, trained):
    """Failing would mean that notices or an added newline get into a file of samples."""
    done = charlm("sample", trained / "run", "--length", 37)
    assert (done.code, len(done.text)) == (0, 37)
    assert done.err.startswith("seed ")


def test_a_seed_makes_the_text_repeatable(charlm, trained):
    """Failing would mean that a sample cannot be shown again; the drawn seed must give the same text as well."""
    drawn = charlm("sample", trained / "run", "--length", 50)
    seed = drawn.err.split()[1]
    again = charlm("sample", trained / "run", "--length", 50, "--seed", seed)
    other = charlm("sample", trained / "run", "--length", 50, "--seed", int(seed) + 1)
    assert again.out == drawn.out != other.out
    assert again.err == ""


def test_temperature_zero_needs_no_seed(charlm, trained):
    """Failing would mean that greedy text depends on chance."""
    greedy = [charlm("sample", trained / "run", "--length", 30, "--temperature", 0, "--seed", seed) for seed in (1, 2)]
    assert greedy[0].out == greedy[1].out


def test_prompts_from_the_command_a_file_and_standard_input_agree(charlm, trained, tmp_path, monkeypatch):
    """Failing would mean that @FILE or - read something else than what is written there."""
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfthe king")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the king"), encoding="ascii"))
    options = ("--seed", 1, "--length", 20)
    texts = {
        charlm("sample", trained / "run", "--prompt", prompt, *options).out
        for prompt in ("the king", f"@{tmp_path / 'prompt.txt'}", "-")
    }
    assert len(texts) == 1
    assert texts != {charlm("sample", trained / "run", *options).out}


def test_unknown_characters_are_refused_skipped_or_mapped(charlm, trained):
    """Failing would mean that a prompt is silently changed."""
    options = ("--seed", 1, "--length", 20, "--temperature", 0.01)
    refused = charlm("sample", trained / "run", "--prompt", "日the", *options)
    assert refused.code == 2
    assert "U+65E5" in refused.err and "--unknown" in refused.err
    assert refused.out == b""
    skipped = charlm("sample", trained / "run", "--prompt", "日the", "--unknown", "skip", *options)
    assert skipped.out == charlm("sample", trained / "run", "--prompt", "the", *options).out
    assert charlm("sample", trained / "run", "--prompt", "日the", "--unknown", "map", *options).code == 0


def test_several_samples_differ_and_json_holds_them_all(charlm, trained):
    """Failing would mean that --num repeats one sample, or that JSON and text disagree."""
    options = ("--num", 3, "--length", 15, "--seed", 5)
    texts = charlm("sample", trained / "run", *options, "--json").record["samples"]
    assert len(set(texts)) == 3
    assert charlm("sample", trained / "run", *options).text == "\n".join(texts)


def test_stopping_leaves_the_stop_text_out(charlm, trained):
    """Failing would mean that sampling continues after the --stop text, or writes it."""
    whole = charlm("sample", trained / "run", "--seed", 2, "--length", 200).text
    stop = whole[60:62]
    stopped = charlm("sample", trained / "run", "--seed", 2, "--length", 0, "--stop", stop).text
    assert stopped == whole[: whole.index(stop)]


def test_a_stop_text_ends_samples_without_a_length(charlm, trained):
    """Failing would mean that several samples, or JSON, cannot be ended by a text alone."""
    done = charlm("sample", trained / "run", "--length", 0, "--stop", "e", "--num", 3, "--seed", 1, "--json")
    assert done.code == 0 and len(done.record["samples"]) == 3
    assert not any("e" in text for text in done.record["samples"])


def test_banned_characters_do_not_appear(charlm, trained):
    """Failing would mean that --ban does not."""
    text = charlm("sample", trained / "run", "--seed", 2, "--length", 300, "--ban", "e \n").text
    assert len(text) == 300 and not set(text) & set("e \n")


def test_probabilities_are_a_distribution(charlm, trained):
    """Failing would mean that the listed probabilities are not those that are drawn from."""
    found = charlm("sample", trained / "run", "--probabilities", "--prompt", "th", "--json").record["next"]
    assert sum(entry["probability"] for entry in found) == pytest.approx(1)
    shown = charlm("sample", trained / "run", "--probabilities", "--prompt", "th").text
    assert "space" in shown and "probability" in shown


def test_bytes_come_out_as_they_are(charlm, byte_run):
    """Failing would mean that a model of bytes writes text in place of its bytes."""
    done = charlm("sample", byte_run, "--seed", 1, "--length", 400)
    assert len(done.out) == 400
    assert set(done.out) - set(range(128))


def test_control_characters_are_exact_in_a_pipe_and_visible_on_a_terminal(charlm, trained, monkeypatch, capfdbinary):
    """Failing would mean that a corpus with escape sequences takes over the terminal of a user who samples."""
    text = "\x1b[31mred\x1b[0m \u202eabc\u202c\n"
    (trained / "escapes.txt").write_text(text * 60, encoding="utf-8")
    (trained / "escapes.yaml").write_text(
        "corpus: escapes.txt\nmodel: {hidden: 8}\ntrain: {total_steps: 1, batch: 4, seq_length: 8}\n", encoding="utf-8"
    )
    assert charlm("train", trained / "escapes.yaml", "--out", trained / "escapes", "-q").code == 0
    options = ("--seed", 1, "--length", 200)
    piped = charlm("sample", trained / "escapes", *options)
    assert b"\x1b" in piped.out and "\u202e" in piped.text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = charlm("sample", trained / "escapes", *options)
    assert b"\x1b" not in shown.out and "\u202e" not in shown.text
    assert b"\\x1b" in shown.out and b"\\u202e" in shown.out


def test_a_run_is_found_by_its_name(charlm, desk):
    """Failing would mean that `charlm sample NAME` does not find checkpoints/NAME."""
    assert charlm("train", "recipe.yaml", "--max-steps", 1, "-q").code == 0
    assert len(charlm("sample", "recipe", "--length", 5).text) == 5


def test_a_damaged_recipe_of_the_run_does_not_matter(charlm, trained, tmp_path):
    """Failing would mean that a checkpoint needs more than its own file."""
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((trained / "run" / "best.safetensors").read_bytes())
    assert charlm("sample", alone, "--length", 9).code == 0


def test_json_tells_what_is_needed_to_repeat_it(charlm, trained):
    """Failing would mean that a stored sample cannot be traced back to its options."""
    done = charlm("sample", trained / "run", "--length", 5, "--prompt", "th", "--json")
    assert json.loads(done.out) == done.record
    assert done.record["prompt"] == "th" and isinstance(done.record["seed"], int)


def test_escapes_are_read_on_request(charlm, trained):
    """Failing would mean that --escape changes other prompts, or that the advice for a literal \\n does not work."""
    options = ("--seed", 1, "--length", 20)
    expected = charlm("sample", trained / "run", "--prompt", "the\nking", *options).out
    assert charlm("sample", trained / "run", "--prompt", "the\\nking", "--escape", *options).out == expected
    refused = charlm("sample", trained / "run", "--prompt", "the\\nking", *options)
    assert refused.code == 2 and "--escape" in refused.err
    assert "'\\\\'" in charlm("sample", trained / "run", "--prompt", "the\\\\nking", "--escape", *options).err
