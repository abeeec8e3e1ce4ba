"""The browser helper sees what a page does: what it shows, what it asks for, and what goes wrong in it."""

from __future__ import annotations

from pathlib import Path

from tests.browser import open_browser

PIXEL = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
PAGE = """<!doctype html><title>a page</title>
<img alt="good" src="data:image/gif;base64,{pixel}"><img alt="bad" src="data:image/gif;base64,AAAA">
<p id="text">before</p><script>document.getElementById("text").textContent = "after"; {script}</script>"""


def test_a_page_is_really_opened(tmp_path: Path) -> None:
    page_file = tmp_path / "page.html"
    with open_browser(tmp_path) as browser:
        page_file.write_text(PAGE.format(pixel=PIXEL, script=""))
        page = browser.open(page_file)
        assert page.evaluate("document.title") == "a page"
        assert page.evaluate("document.getElementById('text').textContent") == "after"
        assert page.broken_pictures() == ["bad"]
        assert page.requests == [page.url] and page.problems == []
        assert page.screenshot(tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")

        page_file.write_text(
            PAGE.format(pixel=PIXEL, script="fetch('file:///nowhere'); console.error('oh'); no_such()")
        )
        page = browser.open(page_file)
        assert any("no_such" in problem for problem in page.problems)
        assert "oh" in page.problems
