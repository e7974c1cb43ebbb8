"""The frame of every page, and how text gets into one without becoming markup.

A page runs only the script that it was made with: its Content-Security-Policy names that script's hash and forbids every
request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from charlm.errors import UsageError
from charlm.files import is_free, whole_file

_FIRST_LINE = '<!doctype html><html lang="en"><!-- charlm -->\n'
"""Identifies charlm's own pages: no other file is overwritten."""

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1c; --faint: #666; --line: #ccc; --hot: 214, 64, 20;
        --mark: #0a58ca }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17181a; --ink: #e6e6e6; --faint: #a0a0a0; --line: #444; --hot: 255, 110, 60; --mark: #7db4ff }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; overflow-wrap: anywhere }
p { margin: .3rem 0 }
.faint { color: var(--faint) }
.text { font: 15px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 1rem 0 }
.panel { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line); padding: .4rem 0;
         min-height: 3.2em; font: 15px/1.6 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap }
@media (max-width: 40rem) { .panel { min-height: 7em } }
"""


def escape(text: str) -> str:
    """Text for the content of an element, or for an attribute in quotes."""
    return html.escape(text, quote=True)


def json_data(name: str, value: Any) -> str:
    """Data for the page's script, in an element with the id ``name``. No text in it can end the element."""
    stored = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(name)}">{stored}</script>\n'


def page_head(title: str, *, style: str, script: str) -> str:
    """The beginning of a page; HTML in which all text is escaped follows, then :func:`page_tail`.

    Args:
        title: plain text.
        style, script: added to the page, not escaped.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f'{_FIRST_LINE}<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f"img-src data:; script-src 'sha256-{digest}'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}{style}</style></head>\n<body><h1>{escape(title)}</h1>\n"
    )


def page_tail(script: str) -> str:
    """The end of a page; the script is that of :func:`page_head`."""
    return f"<script>{script}</script></body></html>\n"


@contextmanager
def page_file(path: Path, parameter: str = "html") -> Iterator[BinaryIO]:
    """Write a page atomically, over an earlier page of charlm's at most.

    Args:
        parameter: that named the path, for the message.

    Raises:
        UsageError: the file there is not charlm's.
        OSError: it cannot be written.
    """
    check_page_path(path, parameter)
    with whole_file(path) as file:
        yield file


def check_page_path(path: Path, parameter: str = "html") -> None:
    """Refuse a path that is not free for a page; ask before a long computation.

    Raises:
        UsageError: what is there is not a page of charlm's.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected a file to write", parameter=parameter)
    if not is_free(path, [_FIRST_LINE.encode()]):
        raise UsageError(f"{path} exists, and is not a page of charlm's; choose another name", parameter=parameter)
