"""``charlm info``: what is inside a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from charlm.cli.console import json_line, out, size, visible_word


def info(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's file, a run's folder (its best), or a run's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON line.")] = False,
) -> None:
    """Show what is inside a checkpoint, without loading its weights."""
    from charlm.loaded import info
    from charlm.yaml_text import dump_yaml

    found = info(checkpoint)
    if as_json:
        json_line(found)
        return
    weights = {name: shape for name, shape in found["tensors"].items() if name.startswith("model.")}
    progress, corpus, resolved = found["progress"], found["corpus"], found["resolved"]
    symbols = len(found["vocabulary"]["symbols"]) + 1 if found["vocabulary"]["unit"] == "char" else 256
    can_go_on = any(name.startswith("state.") for name in found["tensors"])
    _line(f"{found['checkpoint']}: {size(found['bytes'])}, written by charlm {found['charlm']}, format {found['format']}")
    _line(
        f"corpus      {corpus['name']}, {corpus['characters']:,} characters, sha256 {corpus['sha256']} "
        f"{corpus['identity']}".rstrip()
    )
    _line(f"vocabulary  {symbols} symbols ({found['vocabulary']['unit']})")
    _line(f"trained     step {progress['step']:,}, epoch {progress['epoch']:.2f}, {progress['characters']:,} characters")
    if progress["validation_nats"] is not None:
        _line(f"validation  {progress['validation_nats']:.4f} nats per character")
    _line(
        f"ran with    engine {resolved['engine']}, {resolved['precision']}, {resolved['device']}, {resolved['threads']} threads"
    )
    _line(f"holds       {'all that going on needs' if can_go_on else 'weights only'}")
    for name, shape in weights.items():
        _line(f"  {name.removeprefix('model.'):<24} {' × '.join(map(str, shape))}")
    _line("recipe")
    for setting in dump_yaml(found["recipe"]).rstrip("\n").split("\n"):
        _line(f"  {setting}")


def _line(text: str) -> None:
    """Write a line of what stands in a file, which may come from anywhere."""
    out(visible_word(text))
