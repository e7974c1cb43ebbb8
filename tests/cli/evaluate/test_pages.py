"""The pages of ``charlm eval surprisal`` and ``influence`` in a browser: they answer, fit, load nothing, run no text."""

from __future__ import annotations

import re

import pytest
from browser import dom, needs_browser, run_in_page

HOSTILE = (
    "the king </script><script>document.title = 'run'</script>\"'&<!-- 🙂e\u0301 \x1b[31m\u202eאב\n<b onclick=x>" + "w" * 300
)
OPTIONS = {"surprisal": (), "influence": ("--characters", "60", "--distance", "8")}


@pytest.fixture(params=OPTIONS)
def page(request, charlm, trained, tmp_path):
    """The page of a question about a hostile text, as a file."""
    text, file = tmp_path / "<b>text\u202e", tmp_path / "page-of-text.html"
    text.write_text(HOSTILE, encoding="utf-8")
    done = charlm("eval", request.param, trained / "run", text, *OPTIONS[request.param], "--html", file)
    assert done.code == 0, done.err
    return file


@pytest.mark.parametrize("question", OPTIONS)
def test_an_error_names_the_file_that_was_asked_for(charlm, trained, tmp_path, question):
    """Failing would mean that the message is about a temporary file, which nobody knows."""
    (tmp_path / "text").write_text("the king and the queen", encoding="utf-8")
    page = "/proc/page.html"  # Linux: no process can make a file there, not even root
    done = charlm("eval", question, trained / "run", tmp_path / "text", "--html", page)
    assert done.code == 1 and page in done.err and ".new-" not in done.err


@needs_browser
@pytest.mark.parametrize("width", [400, 1000])
def test_pointing_at_a_character_tells_about_it(page, tmp_path, width):
    """Failing would mean an error, a request, a scroll bar on a phone, the answer about another character, or run text."""
    script = """
      const spans = [...document.querySelectorAll("#text span")], found = spans[spans.length - 3];
      found.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      const told = document.getElementById("panel").textContent, chosen = document.querySelectorAll(".chosen").length;
      spans[spans.length - 2].dispatchEvent(new MouseEvent("click", { bubbles: true }));
      const marked = [found, spans[spans.length - 2]].map(span => span.classList.contains("chosen"));
      return { told, chosen, marked, character: found.textContent, title: document.title,
               wide: [document.documentElement.scrollWidth, innerWidth],
               bold: document.querySelectorAll("b, img, [onclick]").length };
    """
    found = run_in_page(page.read_text(encoding="utf-8"), script, tmp_path, width=width)
    assert re.match(rf".{re.escape(found['character'])}.: \d+\.\d\d bits", found["told"])
    assert found["chosen"] == 1 and found["marked"] == [False, True] and found["bold"] == 0
    assert found["wide"][0] <= found["wide"][1]
    assert found["title"].startswith(("Surprisal", "Influence"))


@needs_browser
@pytest.mark.parametrize("page", ["influence"], indirect=True)
def test_the_policy_of_the_page_allows_its_own_script(page, tmp_path):
    """Failing would mean that the browser refuses the script: its hash is not that of the content security policy."""
    assert re.search(r'id="panel"[^>]*>[^<]+ bits, probability', dom(page, tmp_path))


@needs_browser
@pytest.mark.parametrize("page", ["influence"], indirect=True)
def test_arrow_keys_and_measures_change_what_is_marked(page, tmp_path):
    """Failing would mean that the page is of no use without a mouse, or shows one measure under the name of the other."""
    script = """
      const text = document.getElementById("text"), spans = [...text.querySelectorAll("span")];
      const place = () => spans.findIndex(span => span.classList.contains("chosen"));
      const colours = () => spans.map(span => span.style.backgroundColor).join();
      const press = key => text.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
      const first = place();
      press("ArrowLeft"); press("ArrowLeft"); press("ArrowRight");
      const moved = place(), replaced = colours();
      document.querySelector("input[value=gradient]").click();
      const gradient = colours();
      for (const span of spans) press("ArrowLeft");
      return { first, moved, last: spans.length - 1, differ: replaced !== gradient, leftmost: place(),
               before: document.querySelectorAll("#text .before").length };
    """
    found = run_in_page(page.read_text(encoding="utf-8"), script, tmp_path)
    assert found["first"] == found["last"] and found["moved"] == found["last"] - 1
    assert found["differ"] and found["leftmost"] == found["before"]
