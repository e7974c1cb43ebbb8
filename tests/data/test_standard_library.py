"""The corpus `code`: real modules only, in the same order everywhere."""

import hashlib
import sys
from pathlib import Path

from charlm.data.corpora import locate


def test_the_standard_library(here: Path) -> None:
    """If this fails, the corpus has tests, tables or installed packages, or lacks real modules."""
    found = locate("code", here)
    labels = {file.label for file in found.files}
    assert found.is_collection
    assert found.identity == f"Python {'.'.join(map(str, sys.version_info[:3]))} standard library"
    assert labels >= {"argparse.py", "asyncio/events.py", "email/message.py", "encodings/utf_8.py", "typing.py"}
    assert not labels & {"pydoc_data/topics.py", "keyword.py", "token.py", "encodings/cp437.py", "stringprep.py"}
    assert not {"test", "tests", "site-packages"} & {part for label in labels for part in label.split("/")}
    assert not any("_sysconfigdata" in label for label in labels)
    order = [hashlib.sha256(file.label.encode()).hexdigest() for file in found.files]
    assert order == sorted(order)
