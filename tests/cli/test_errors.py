"""What users do wrong, and what they are told: a few plain lines, the right exit code, never a traceback.

Each row: the command, the exit code, words that the message must hold. No message may hold a word of ``NEVER``.
"""

from __future__ import annotations

import json
import struct

import pytest

NEVER = ("Traceback", "This is a bug", "charlm.errors", "pydantic", "╭", "\x1b", 'File "')
TEXTS = {
    "empty.txt": b"",
    "one.txt": b"a",
    "two.txt": b"ab",
    "wrong.txt": b"hello \xff world" * 20,
    "wide.txt": ("hello world\n" * 30).encode("utf-16"),
    "binary.bin": bytes(range(256)) * 20,
    "nul.txt": b"abc\0def\n" * 30,
}
RECIPES = {
    **{f"{name.partition('.')[0]}.yaml": f"corpus: ./{name}\n" for name in TEXTS},
    "missing.yaml": "corpus: ./nowhere.txt\n",
    "hollow.yaml": "corpus: ./hollow\n",
    "unmatched.yaml": "corpus: './*.md'\n",
    "problems.yaml": "corpus: text.txt\nmodle: {hidden: 3}\nmodel: {hiden: 16, layers: two}\ntrain: {lr: -1}\n",
    "doubled.yaml": "corpus: text.txt\nmodel: {hidden: 16, hidden: 17}\n",
    "nothing.yaml": "",
    "list.yaml": "- a\n- b\n",
    "word.yaml": "hello\n",
    "broken.yaml": "a: [1, 2\nb: }{\n",
    "number.yaml": "corpus: 12\n",
    "code.yaml": "corpus: !!python/object/apply:os.system [echo]\n",
    "unnamed.yaml": "model: {hidden: 3}\n",
}


@pytest.fixture(scope="module")
def bench(trained, tmp_path_factory):
    """A folder full of things that are wrong; only to be read."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("bench")
    for name, content in TEXTS.items():
        (folder / name).write_bytes(content)
    for name, content in RECIPES.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "text.txt").write_bytes((trained / "text.txt").read_bytes())
    (folder / "recipe.yaml").write_bytes((trained / "recipe.yaml").read_bytes())
    (folder / "latin.yaml").write_bytes(b"corpus: caf\xe9.txt\n")
    (folder / "hollow").mkdir()
    (folder / "run").mkdir()
    whole = (trained / "run" / "best.safetensors").read_bytes()
    (folder / "run" / "best.safetensors").write_bytes(whole)
    (folder / "run" / "last.safetensors").write_bytes(whole)
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "stub.safetensors").write_bytes(whole[:5])
    (folder / "flipped.safetensors").write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    (folder / "pickle.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "foreign.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with safe_open(folder / "run" / "best.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    future = json.dumps({**json.loads(metadata["charlm"]), "format": 99})
    save_file(tensors, folder / "future.safetensors", metadata={**metadata, "charlm": future})
    whole = json.loads(metadata["charlm"])
    _signed(folder / "nan.safetensors", whole, {**tensors, "model.output_bias": tensors["model.output_bias"] * float("nan")})
    _signed(folder / "huge.safetensors", whole, {**tensors, "model.output_weight": tensors["model.output_weight"] * 0 + 3e38})
    whole["recipe"]["model"]["layers"] = 900
    _signed(folder / "deep.safetensors", whole, tensors)
    return folder


def _signed(path, described, tensors):
    """A checkpoint with a right checksum."""
    from safetensors.torch import save_file

    from charlm.checkpoint.contents import checksum

    text = json.dumps(described)
    save_file(tensors, path, metadata={"charlm": text, "sha256": checksum(text, tensors)})


TRAIN = "train recipe.yaml --out out"
TABLE = [
    # texts
    ("train empty.yaml", 1, ["empty.txt", "empty"]),
    ("train one.yaml", 1, ["one.txt", "1 character", "at least two"]),
    ("train two.yaml", 2, ["two.txt", "data.split"]),
    ("train wrong.yaml", 1, ["wrong.txt", "0xFF", "offset 6", "data.encoding", "data.unit: byte"]),
    ("train wide.yaml", 1, ["wide.txt", "utf-16"]),
    ("train binary.yaml", 1, ["binary.bin", "data.unit: byte"]),
    ("train nul.yaml", 1, ["nul.txt", "NUL", "data.unit: byte"]),
    ("train missing.yaml", 2, ["nowhere.txt", "does not exist"]),
    ("train hollow.yaml", 1, ["hollow", "no text"]),
    ("train unmatched.yaml", 2, ["*.md", "no file matches"]),
    # recipes
    ("train absent.yaml", 2, ["absent.yaml", "does not exist"]),
    ("train ./hollow", 1, ["hollow", "folder", "no text"]),
    ("train shakespear", 2, ["shakespeare", "did you mean"]),
    ("train hollow", 2, ["no shipped recipe", "./hollow", "Shipped:"]),
    ("train problems.yaml", 2, ["4 problems", "modle", "did you mean model.hidden", "model.layers", "train.lr", "-1"]),
    ("train doubled.yaml", 2, ["doubled.yaml, line 2", "'hidden'", "twice"]),
    ("train nothing.yaml", 2, ["not a recipe", "corpus: FILE", "nothing"]),
    ("train list.yaml", 2, ["not a recipe", "a list"]),
    ("train word.yaml", 2, ["not a recipe", "hello"]),
    ("train broken.yaml", 2, ["broken.yaml, line 2"]),
    ("train number.yaml", 2, ["corpus", "string", "12"]),
    ("train code.yaml", 2, ["code.yaml, line 1"]),
    ("train unnamed.yaml", 2, ["corpus", "missing"]),
    ("train latin.yaml", 2, ["latin.yaml", "not UTF-8"]),
    # --set
    (f"{TRAIN} --set model.hiden=4", 2, ["model.hiden", "did you mean model.hidden"]),
    (f"{TRAIN} --set foo", 2, ["KEY=VALUE"]),
    (f"{TRAIN} --set =3", 2, ["--set =3"]),
    (f"{TRAIN} --set model=lstm", 2, ["section", "model.cell"]),
    (f"{TRAIN} --set model.hidden=abc", 2, ["model.hidden", "integer", "abc"]),
    (f"{TRAIN} --set train.lr=[1", 2, ["--set train.lr=[1"]),
    (f"{TRAIN} --set train.lr=", 2, ["train.lr", "number"]),
    (f"{TRAIN} --set train.lr=.inf", 2, ["train.lr", "finite"]),
    (f"{TRAIN} --set model.cell=transformer", 2, ["model.cell", "lstm", "transformer"]),
    # options of train
    ("train", 2, ["RECIPE", "charlm train --help"]),
    ("train recipe.yaml --otu x", 2, ["--otu", "--out"]),
    (f"{TRAIN} --max-time soon", 2, ["--max-time", "90s", "soon"]),
    (f"{TRAIN} --max-time 0", 2, ["--max-time"]),
    (f"{TRAIN} --max-steps -1", 2, ["--max-steps"]),
    (f"{TRAIN} --max-steps many", 2, ["--max-steps", "integer"]),
    (f"{TRAIN} --device tpu", 2, ["--device tpu", "cuda:N"]),
    (f"{TRAIN} --device cuda:x", 2, ["--device cuda:x", "cuda:N"]),
    (f"{TRAIN} --device cuda:99", 2, ["--device cuda:99"]),
    (f"{TRAIN} --seed -1", 2, ["--seed"]),
    (f"{TRAIN} --resume maybe", 2, ["--resume", "maybe", "never"]),
    (f"{TRAIN} --resume must", 2, ["--resume must", "no run"]),
    (f"{TRAIN} --resume auto --overwrite", 2, ["--resume", "--overwrite"]),
    (f"{TRAIN} --init absent", 2, ["absent"]),
    (f"{TRAIN} --init flipped.safetensors", 1, ["flipped.safetensors", "checksum"]),
    ("train recipe.yaml --out text.txt", 1, ["text.txt", "--out"]),
    ("train recipe.yaml --out text.txt/sub", 1, ["text.txt/sub", "--out"]),
    ("train recipe.yaml --out run", 2, ["holds a run", "--resume auto", "--overwrite"]),
    ("train recipe.yaml --out run --resume auto", 1, ["last.safetensors", "weights only", "--init"]),
    # checkpoints
    ("sample half.safetensors", 1, ["half.safetensors", "truncated or damaged"]),
    ("sample stub.safetensors", 1, ["stub.safetensors", "5 bytes"]),
    ("sample empty.txt", 1, ["empty.txt", "not a charlm checkpoint"]),
    ("sample text.txt", 1, ["text.txt", "not a charlm checkpoint"]),
    ("sample flipped.safetensors", 1, ["checksum"]),
    ("sample pickle.safetensors", 1, ["pickle", "never unpickles"]),
    ("sample foreign.safetensors", 1, ["not written by charlm"]),
    ("sample future.safetensors", 1, ["format version 99", "reads 1 to 2"]),
    ("sample absent", 2, ["absent", "does not exist"]),
    ("sample hollow", 2, ["hollow", "no checkpoint"]),
    ("info half.safetensors", 1, ["truncated or damaged"]),
    ("info absent", 2, ["absent"]),
    # options of sample
    ("sample run --prompt @absent", 2, ["--prompt @absent", "No such file"]),
    ("sample run --prompt @hollow", 2, ["--prompt @hollow"]),
    ("sample run --prompt @wrong.txt", 2, ["--prompt @wrong.txt", "byte 6"]),
    ("sample run --prompt ÄÖ", 2, ["U+00C4", "U+00D6", "--unknown skip"]),
    ("sample run --temperature -1", 2, ["--temperature"]),
    ("sample run --temperature nan", 2, ["--temperature", "1e+09", "nan"]),
    ("sample run --temperature inf", 2, ["--temperature", "1e+09", "inf"]),
    ("sample run --top-p 0", 2, ["--top-p"]),
    ("sample run --top-p nan", 2, ["--top-p"]),
    ("sample run --top-k -1", 2, ["--top-k"]),
    ("sample run --num 0", 2, ["--num"]),
    ("sample run --length -1", 2, ["--length"]),
    ("sample run --length 0 --num 2", 2, ["--length 0"]),
    ("sample run --length 0 --json", 2, ["--length 0"]),
    # eval
    ("eval perplexity", 2, ["CHECKPOINT", "charlm eval perplexity --help"]),
    ("eval perplexity run absent.txt", 2, ["absent.txt", "does not exist"]),
    ("eval perplexity run empty.txt", 1, ["empty.txt", "empty"]),
    ("eval perplexity run one.txt", 1, ["one.txt", "two"]),
    ("eval perplexity run wrong.txt", 1, ["wrong.txt", "0xFF"]),
    ("eval perplexity run text.txt --split test", 2, ["--split", "FILE"]),
    ("eval perplexity run text.txt --context reset:0", 2, ["reset:N"]),
    ("eval perplexity run text.txt --context reset:²", 2, ["reset:N"]),
    ("eval perplexity run text.txt --context backwards", 2, ["backwards", "carried"]),
    ("eval perplexity run text.txt --chunk -1", 2, ["--chunk"]),
    ("eval perplexity run text.txt --engine warp", 2, ["--engine warp", "reference"]),
    # values beyond every bound
    (f"{TRAIN} --set model.hidden=10000000000000000000000", 2, ["--set model.hidden=1", "less than or equal to 1000000"]),
    (f"{TRAIN} --set train.threads=100000", 2, ["--set train.threads=100000", "4096"]),
    (f"{TRAIN} --set train.epochs=1e12", 2, ["--set train.epochs=1e12", "1000000"]),
    (f"{TRAIN} --set train.weight_decay=1e300", 2, ["--set train.weight_decay", "1000000"]),
    (f"{TRAIN} --set model.forget_bias=1e300", 2, ["--set model.forget_bias", "1000"]),
    (f"{TRAIN} --set model.hidden=100000 --set model.layers=1000", 2, ["takes about", "GB", "model.hidden"]),
    (f"{TRAIN} --set train.learning_rate=1", 2, ["did you mean train.lr?"]),
    (f"{TRAIN} --seed {10**40}", 2, ["--seed"]),
    (f"{TRAIN} --max-steps {10**30}", 2, ["--max-steps"]),
    (f"{TRAIN} --max-time {'9' * 40}", 2, ["--max-time", "at most"]),
    ("train ~nouser/x.yaml", 2, ["~nouser/x.yaml", "home folder"]),
    (f"{TRAIN} --set corpus=~nouser/x", 2, ["~nouser/x", "home folder"]),
    (f"{TRAIN} --init ~nouser/x", 2, ["~nouser/x", "home folder"]),
    ("sample ~nouser/x", 2, ["~nouser/x", "home folder"]),
    ("sample run --prompt @~nouser/x", 2, ["~nouser/x", "home folder"]),
    ("eval perplexity run ~nouser/x", 2, ["~nouser/x", "home folder"]),
    ("sample nul\0", 2, ["expected a path"]),
    (f"sample run --length {10**23}", 2, ["--length"]),
    (f"sample run --num {10**20}", 2, ["--num"]),
    (f"sample run --top-k {10**30}", 2, ["--top-k"]),
    (f"sample run --seed {10**40}", 2, ["--seed"]),
    ("sample run --temperature 1e300", 2, ["--temperature", "1e+09"]),
    ("sample run --stop \ud800", 2, ["--stop", "surrogate"]),
    ("eval perplexity run text.txt --dynamic --dynamic-rate 1e300", 2, ["--dynamic-rate"]),
    (f"eval perplexity run text.txt --context reset:{10**23}", 2, ["reset:N"]),
    # weights and scores that are not finite
    *[
        (f"{command} nan.safetensors{rest}", 1, ["nan.safetensors", "NaN or infinite"])
        for command, rest in (
            ("sample", ""),
            ("sample", " --probabilities"),
            ("eval perplexity", " text.txt"),
            ("eval attention", " abc"),
            ("eval perplexity", " text.txt --dynamic"),
            (f"{TRAIN} --init", ""),
        )
    ],
    ("eval perplexity huge.safetensors text.txt", 1, ["logits are NaN or infinite"]),
    ("eval perplexity huge.safetensors text.txt --context reset:50", 1, ["logits are NaN or infinite"]),
    ("eval perplexity huge.safetensors text.txt --dynamic", 1, ["logits are NaN or infinite"]),
    ("sample deep.safetensors", 1, ["900 layers in 7 tensors"]),
    ("info deep.safetensors", 1, ["900 layers in 7 tensors"]),
    # commands
    ("trian recipe.yaml", 2, ["trian", "'train'", "charlm --help"]),
    ("eval nonsense", 2, ["nonsense", "charlm eval --help"]),
]


@pytest.mark.parametrize(("command", "code", "words"), TABLE, ids=[row[0] for row in TABLE])
def test_a_mistake_is_explained(charlm, bench, monkeypatch, command, code, words):
    """Failing would mean that a mistake is called a bug, is explained wrongly, or is not noticed."""
    monkeypatch.chdir(bench)
    done = charlm(*command.split())
    assert done.code == code, done.err
    assert done.out == b""
    for word in words:
        assert word in done.err
    for word in NEVER:
        assert word not in done.err
    message = done.err.partition("error: ")[2]
    assert 1 <= len(message.splitlines()) <= 6
    assert not (bench / "out").exists(), "a refused run leaves nothing behind"


def test_a_ban_of_everything_is_explained(charlm, bench, monkeypatch):
    """Failing would mean that sampling continues with characters that were banned."""
    monkeypatch.chdir(bench)
    done = charlm("sample", "run", "--seed", 1, "--ban", (bench / "text.txt").read_text(encoding="utf-8"))
    assert (done.code, done.out) == (2, b"")
    assert "banned" in done.err


def test_an_unexpected_error_is_called_a_bug_and_debug_shows_where(charlm, bench, monkeypatch):
    """Failing would mean that bugs are reported without the place, or with it to everybody."""

    def fail(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr("charlm.checkpoint.find_checkpoint", fail)
    plain, debugged = charlm("info", "run"), charlm("--debug", "info", "run")
    assert (plain.code, debugged.code) == (1, 1)
    assert "boom" in plain.err and "--debug" in plain.err and "Traceback" not in plain.err
    assert "Traceback" in debugged.err and "test_errors.py" in debugged.err


def test_a_full_disk_is_explained(charlm, bench, monkeypatch):
    """Failing would mean that a full disk looks like a bug."""

    def fail(*_):
        raise OSError(28, "No space left on device", "/full/metrics.jsonl")

    monkeypatch.setattr("charlm.checkpoint.find_checkpoint", fail)
    done = charlm("info", "run")
    assert done.code == 1
    for word in ("No space left", "/full/metrics.jsonl", "Free some space"):
        assert word in done.err


def test_control_characters_of_a_message_are_made_visible(charlm, bench, monkeypatch):
    """Failing would mean that a file name can take over the terminal."""
    monkeypatch.chdir(bench)
    done = charlm("train", "./\x1b[31mred.yaml")
    assert done.code == 2
    assert "\x1b" not in done.err and "\\x1b" in done.err
