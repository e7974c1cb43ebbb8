"""``charlm info``: the content of a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from charlm.cli.console import json_line, out, size, visible_word
from charlm.cli.evaluate.arguments import CheckpointArgument


def info(
    checkpoint: CheckpointArgument,
    as_json: Annotated[bool, typer.Option("--json", help="All details, as one JSON line.")] = False,
) -> None:
    """Show the content of a checkpoint, without loading its weights.

    Examples:
        charlm info shakespeare
        charlm info checkpoints/mine/last.safetensors --json
    """
    from charlm.loaded import info
    from charlm.yaml_text import dump_yaml

    found = info(checkpoint)
    if as_json:
        json_line(found)
        return
    weights = {name: shape for name, shape in found["tensors"].items() if name.startswith("model.")}
    progress, corpus, resolved = found["progress"], found["corpus"], found["resolved"]
    symbols = len(found["vocabulary"]["symbols"]) + 1 if found["vocabulary"]["unit"] == "char" else 256
    is_resumable = any(name.startswith("state.") for name in found["tensors"])
    _line(f"{found['checkpoint']}: {size(found['bytes'])}, written by charlm {found['charlm']}, format {found['format']}")
    _line(
        f"corpus      {corpus['name']}, {corpus['characters']:,} characters, sha256 {corpus['sha256']} "
        f"{corpus['identity']}".rstrip()
    )
    _line(f"vocabulary  {symbols} symbols ({found['vocabulary']['unit']})")
    _line(f"trained     step {progress['step']:,}, epoch {progress['epoch']:.2f}, {progress['characters']:,} characters")
    if progress["validation_nats"] is not None:
        _line(f"validation  {progress['validation_nats']:.4f} nats per character")
    threads = f"{resolved['threads']} thread{'s' * (resolved['threads'] != 1)}"
    _line(f"ran with    engine {resolved['engine']}, {resolved['precision']}, {resolved['device']}, {threads}")
    _line(f"holds       {'full training state (resumable)' if is_resumable else 'weights only'}")
    for name, shape in weights.items():
        _line(f"  {name.removeprefix('model.'):<24} {' × '.join(map(str, shape))}")
    _line("recipe")
    for setting in dump_yaml(found["recipe"]).rstrip("\n").split("\n"):
        _line(f"  {setting}")


def _line(text: str) -> None:
    """Write a line from an untrusted file, with control characters visible."""
    out(visible_word(text))
