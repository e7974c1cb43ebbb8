"""The corpus ``code``: the source code of the running Python's standard library."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from pathlib import Path

from charlm.data.sources import SourceFile, files_under
from charlm.errors import CorpusError

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload", "_bundled"}

# Generated tables are marked at the top of the file. This pattern excludes pydoc_data/topics.py, keyword.py, token.py,
# stringprep.py, re/_casefix.py and the tables of single-byte encodings (such as encodings/cp437.py): 2.1 of the 12.1 MB
# of Python 3.11. A few hand-written tables of encodings match too.
_GENERATED = re.compile(
    rb'auto-?generated|file is (automatically )?generated|^""" ?Python Character Mapping Codec',
    re.IGNORECASE | re.MULTILINE,
)
_HEAD = 1000  # bytes at the start of a file that are searched for the pattern


def standard_library_files() -> tuple[SourceFile, ...]:
    """The modules of this Python's standard library, without tests, installed packages and generated tables.

    They are sorted by the sha256 of their relative path. The order looks random, so each part of a contiguous split is a
    mixture, and it is the same on every machine.

    Raises:
        CorpusError: this Python is installed without source code.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = files_under(library, lambda name: name in _SKIPPED_FOLDERS or name.startswith("config-"))
    files = [
        SourceFile(path.relative_to(library).as_posix(), path)
        for path in paths
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata") and not _is_generated(path)
    ]
    if not files:
        raise CorpusError(f"the standard library of this Python has no source code in {library}; choose another corpus")
    return tuple(sorted(files, key=lambda file: hashlib.sha256(file.label.encode()).digest()))


def _is_generated(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _GENERATED.search(file.read(_HEAD)) is not None
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from None
