"""Tells the files in a run's folder that charlm wrote from others. charlm never replaces, cuts, moves or removes others.

A file with one of charlm's names is charlm's own if it has its mark:

checkpoints         charlm's metadata in the safetensors header
metrics.jsonl       a first line that is a record of a step, an evaluation or the end
samples.txt         a first line that is a heading of a sample
learning-curve.png  a text entry that names charlm
config.yaml         a first line that names charlm, with a checksum of the lines below
tensorboard/*       the end of the name

Empty and damaged files, and some from earlier versions, have no mark. They are charlm's if another file in the folder has one.

``config.yaml`` belongs to charlm only while it is unchanged. If its user edits it, charlm leaves it alone: the recipe of the
run is also in its checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from enum import Enum, auto
from pathlib import Path

from charlm import checkpoint
from charlm.config import Recipe, reconcile, validate_recipe, with_present_names
from charlm.errors import CharlmError, UsageError
from charlm.files import remove_temporaries
from charlm.run_files import CONFIG, LOCK, METRICS, PICTURE, SAMPLES, is_checkpoint
from charlm.yaml_text import dump_yaml, parse_yaml

PICTURE_SOFTWARE = "charlm (with Matplotlib)"
"""The ``Software`` entry of a PNG that charlm drew."""

_OLD_TEMPORARY = re.compile(r"\.(?:last|previous|best|step-[0-9]+)\.safetensors\.(?:[0-9]+\.)?tmp")
_HEADING = re.compile(r"━━━ step [0-9]+, epoch ")
_WRITTEN = re.compile(r"# Written by charlm\b.*\(sha256 ([0-9a-f]{16})\)")
_HEAD = 4096  # bytes; contain every mark, except that of config.yaml


class Origin(Enum):
    """Who wrote a file."""

    CHARLM = auto()
    EDITED = auto()
    """Written by charlm, then edited by its user (``config.yaml`` only)."""
    UNMARKED = auto()
    """Unknown: empty, damaged, or perhaps from an earlier version."""
    FOREIGN = auto()


def is_own_name(name: str) -> bool:
    """Whether charlm gives this name to a file in a run's folder."""
    return is_checkpoint(name) or name in (METRICS, SAMPLES, CONFIG, PICTURE, LOCK)


def names_in_use(folder: Path) -> list[str]:
    """The names of the files in a folder that charlm would write to, without its lock.

    Raises:
        UsageError: one of them, or the lock, is a link, a folder or a device.
    """
    names = []
    for name in sorted(path.name for path in folder.iterdir() if is_own_name(path.name)):
        found = os.lstat(folder / name)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(
                f"{folder / name} is {_kind(found.st_mode)}; charlm expects a file of its own there",
                advice={"remove it": {}, "use another folder": {"out": "DIR"}},
            )
        if name != LOCK:
            names.append(name)
        elif found.st_size:
            raise UsageError(
                f"{folder / name} is not charlm's lock, which would be empty", advice={"use another folder": {"out": "DIR"}}
            )
    return names


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    return "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"


def origins(folder: Path, names: Iterable[str], had_lock: bool) -> dict[str, Origin]:
    """Who wrote the files of a folder: ``CHARLM``, ``EDITED`` or ``FOREIGN`` for each.

    A file without a mark is charlm's if another one has a mark. Beside checkpoints of charlm, a ``config.yaml`` without a mark
    is charlm's if it holds their recipe; else its user edited it.

    Args:
        names: regular files with charlm's names (:func:`names_in_use`).
        had_lock: whether the folder had a lock before this process made one.

    Raises:
        OSError: one cannot be read.
    """
    found = {name: origin(folder / name) for name in names}
    checkpoints = [name for name in found if is_checkpoint(name) and found[name] is Origin.CHARLM]
    has_mark = any(each in (Origin.CHARLM, Origin.EDITED) for each in found.values())
    if found.get(CONFIG) is Origin.UNMARKED:  # earlier versions wrote no mark
        is_own = _is_recipe_of(folder, checkpoints) if checkpoints else has_mark or had_lock
        found[CONFIG] = Origin.CHARLM if is_own else Origin.FOREIGN
        has_mark = has_mark or is_own
    if found.get(CONFIG) is Origin.FOREIGN and checkpoints:
        found[CONFIG] = Origin.EDITED
    unmarked = Origin.CHARLM if has_mark else Origin.FOREIGN
    return {name: unmarked if each is Origin.UNMARKED else each for name, each in found.items()}


def _is_recipe_of(folder: Path, checkpoints: list[str]) -> bool:
    """Whether ``config.yaml`` has the values of the recipe in these checkpoints."""
    try:
        stored = validate_recipe(checkpoint.describe(folder / checkpoints[0])["recipe"], checkpoints[0])
        values = parse_yaml((folder / CONFIG).read_text(encoding="utf-8"), CONFIG)
        reconcile(stored, validate_recipe(with_present_names(values), CONFIG))
    except (CharlmError, OSError, KeyError):
        return False
    return True


def origin(path: Path) -> Origin:
    """Who wrote a regular file that has one of charlm's names.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if path.name == CONFIG:
            return _config_origin(head + file.read())
    if path.name == METRICS:
        return _metrics_origin(head)
    if path.name == SAMPLES:
        own = _HEADING.match(head.decode("utf-8", "replace"))
        return Origin.CHARLM if own else Origin.FOREIGN if head else Origin.UNMARKED
    return picture_origin(head) if path.name == PICTURE else _checkpoint_origin(head)


def _checkpoint_origin(head: bytes) -> Origin:
    # A header's length, then JSON, whose metadata come first: a truncated file has the mark too.
    if head[8:].startswith(b'{"__metadata__":') and b'"charlm":' in head:
        return Origin.CHARLM
    if len(head) < min(_HEAD, 8 + int.from_bytes(head[:8], "little")) and head[8:9] in (b"", b"{"):
        return Origin.UNMARKED  # cut off inside the header
    is_something_else = head[8:9] == b"{" or head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"
    return Origin.FOREIGN if is_something_else else Origin.UNMARKED


def _metrics_origin(head: bytes) -> Origin:
    if not head:
        return Origin.UNMARKED
    line, end, _ = head.partition(b"\n")
    if not end:  # cut off, or a long record
        return Origin.UNMARKED if line.startswith(b'{"kind": "') else Origin.FOREIGN
    try:
        record = json.loads(line)
    except ValueError:
        return Origin.FOREIGN
    own = isinstance(record, dict) and record.get("kind") in ("step", "threads", "evaluation", "finished") and "step" in record
    return Origin.CHARLM if own else Origin.FOREIGN


def picture_origin(head: bytes) -> Origin:
    """Who drew a PNG, from its first bytes. Earlier versions of charlm kept Matplotlib's own entry."""
    if not head:
        return Origin.UNMARKED
    if not head.startswith(b"\x89PNG"):
        return Origin.FOREIGN
    if PICTURE_SOFTWARE.encode() in head:
        return Origin.CHARLM
    return Origin.UNMARKED if b"Matplotlib version" in head else Origin.FOREIGN


def may_draw(path: Path) -> bool:
    """Whether a picture may be written here: there is no file, or one that charlm drew.

    For a learning curve, whose folder is known to be a run's, Matplotlib's own entry is enough.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with path.open("rb") as file:
            found = picture_origin(file.read(_HEAD))
    except FileNotFoundError:
        return True
    return found is Origin.CHARLM or (found is Origin.UNMARKED and path.name == PICTURE)


def config_text(recipe: Recipe) -> str:
    """A recipe as ``config.yaml`` holds it, with charlm's mark."""
    body = dump_yaml(recipe.model_dump(mode="json"))
    mark = f"# Written by charlm: the recipe of this run. If you edit it, charlm never replaces it (sha256 {_digest(body)})."
    return f"{mark}\n{body}"


def _config_origin(content: bytes) -> Origin:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return Origin.FOREIGN
    if not text:
        return Origin.UNMARKED
    first, _, body = text.partition("\n")
    if mark := _WRITTEN.match(first):
        return Origin.CHARLM if mark[1] == _digest(body) else Origin.EDITED
    return Origin.UNMARKED if _is_plain_dump(text) else Origin.FOREIGN


def _is_plain_dump(text: str) -> bool:
    """Whether a text is exactly the dump of a complete recipe: earlier versions wrote no mark."""
    try:
        values = parse_yaml(text, CONFIG)
    except CharlmError:
        return False
    is_whole = isinstance(values, dict) and with_present_names(values).keys() >= Recipe.model_fields.keys()
    return is_whole and dump_yaml(values) == text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes. The caller makes sure that no process is writing in the folder."""
    remove_temporaries(folder)
    for path in [entry for entry in folder.iterdir() if _OLD_TEMPORARY.fullmatch(entry.name)]:
        if stat.S_ISREG(os.lstat(path).st_mode):
            path.unlink()
