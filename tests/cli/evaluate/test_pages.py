"""The pages of ``charlm eval surprisal`` and ``influence`` in a browser: they show what they promise, and text stays text."""

from __future__ import annotations

import pytest
from browser import needs_browser, run_in_page

HOSTILE = "the king </script><script>problems.push('ran')</script> \"'&<!-- 🙂 \x1b[31m \u202e\n<b onclick=x>the king and the"
QUESTIONS = {"surprisal": ["--characters", 200], "influence": ["--characters", 30, "--replacements", 3]}


@needs_browser
@pytest.mark.parametrize("width", [400, 1000])
@pytest.mark.parametrize("question", QUESTIONS)
def test_hovering_tells_about_a_character_and_hostile_text_is_inert(question, width, charlm, trained, tmp_path):
    """Failing would mean that a page shows nothing, runs what a text contains, or does not fit a phone."""
    text, page = tmp_path / "text", tmp_path / "question.html"
    text.write_text(HOSTILE, encoding="utf-8")
    assert charlm("eval", question, trained / "run", text, *QUESTIONS[question], "--html", page).code == 0
    script = """
      const panel = document.getElementById("panel"), spans = document.querySelectorAll("#text span");
      const told = [];
      for (const span of [spans[spans.length - 1], spans[spans.length - 3]]) {
        span.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
        told.push(panel.textContent);
      }
      return { told, wide: [document.documentElement.scrollWidth, innerWidth],
               markup: document.querySelectorAll("#text b, #text script").length, text: document.body.innerText };
    """
    found = run_in_page(page.read_text(encoding="utf-8"), script, tmp_path, width=width)
    assert all(found["told"]) and found["told"][0] != found["told"][1]
    assert found["markup"] == 0 and "onclick=x" in found["text"]
    assert found["wide"][0] <= found["wide"][1]
