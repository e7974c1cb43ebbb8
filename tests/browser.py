"""A page in headless Chromium, driven by a script: no other library is needed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")

_WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => problems.push("request: " + event.blockedURI));
for (const name of ["error", "warn"]) console[name] = (...words) => problems.push(words.join(" "));
</script>"""


def run_in_page(page: str, script: str, folder: Path, *, real_time: bool = False, width: int = 1000) -> Any:
    """Open a page, run a script in it, and return the script's result.

    Args:
        page: HTML.
        script: the body of a function; its ``return`` value must be JSON. It may ``await`` unless ``real_time``.
        folder: where files are written.
        real_time: measure time as it passes. Otherwise the browser's clock jumps ahead whenever nothing is left to do.

    Raises:
        AssertionError: the page reported an error, or tried to load something.
    """
    keyword = "" if real_time else "async "
    run = f"{'' if real_time else 'await '}({keyword}() => {{ {script} }})()"
    body = (
        f"<script>({keyword}() => {{ let found;"
        f"try {{ found = {run}; }} catch (error) {{ problems.push(String(error.stack)); }}"
        'const note = document.createElement("pre"); note.id = "found-by-test";'
        "note.textContent = JSON.stringify({ found: found ?? null, problems }); document.body.append(note); })();</script>"
    )
    # The policy allows the page's own script only; everything else about it stays.
    page = re.sub(r"script-src '[^;\"]*'", "script-src 'unsafe-inline'", page)
    head, end = page.index("<head>") + len("<head>"), page.rindex("</body>")
    file = folder / "page.html"
    file.write_text(page[:head] + _WATCH + page[head:end] + body + page[end:], encoding="utf-8")
    shown = dom(file, folder, real_time=real_time, width=width)
    result = re.search(r'<pre id="found-by-test">(.*?)</pre>', shown, re.DOTALL)
    assert result, f"the script did not end: {shown[-500:]}"
    told = json.loads(html.unescape(result[1]))
    assert told["problems"] == [], told["problems"]
    return told["found"]


def dom(file: Path, folder: Path, *, real_time: bool = False, width: int = 1000) -> str:
    """The HTML of a page after its scripts have run; arguments as of :func:`run_in_page`."""
    assert CHROMIUM is not None
    budget = [] if real_time else ["--virtual-time-budget=60000"]
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command = [CHROMIUM, *options, f"--window-size={width},900", *budget, "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
