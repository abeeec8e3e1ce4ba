"""Every kind of page in a real browser: narrow and wide, light and dark, read by everybody."""

from __future__ import annotations

import json

import pytest

import fleximoe
from data_shards import open_manifest
from data_shards.inspection.summary import summary
from launch.compare.comparison import compare
from launch.compare.report import page as compare_page
from launch.datasets.page import data_page
from launch.report.kept import kept_by
from tests.browser import Page, open_browser

# Contrast as WCAG 2 has it, of each text with what lies behind it and of each mark of a chart with the paper.
CONTRAST = """(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = numbers(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0, marks = 0;
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, style = getComputedStyle(element);
    if (!walk.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const own = element.closest("svg") ? style.fill : style.color;
    texts += 1;
    if (ratio(numbers(own), behind(element)) < 4.5) found.push([walk.currentNode.data.trim(), own]);
  }
  const paper = numbers(getComputedStyle(document.body).backgroundColor);
  for (const mark of document.querySelectorAll('svg [style*="var(--c"]')) {
    for (const name of ["stroke", "fill"]) {
      const own = getComputedStyle(mark)[name];
      if (mark.style[name].startsWith("var(--c") && ratio(numbers(own), paper) < 3) found.push([mark.tagName, own]);
      marks += mark.style[name].startsWith("var(--c");
    }
  }
  return {texts, marks, found};
})()"""
SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll("svg text")].map(text => {
  const svg = text.closest("svg");
  return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
}))"""
CUT = """[...document.querySelectorAll("svg text")].filter(text => {
  const own = text.getBoundingClientRect(), whole = text.closest("svg").getBoundingClientRect();
  return own.left < whole.left - 1 || own.right > whole.right + 1 || own.top < whole.top - 1
    || own.bottom > whole.bottom + 1;
}).map(text => text.textContent)"""
# What a reader of a screen needs: one title, headings in order, names of figures, of columns and of buttons.
NAMELESS = """[
  ...[...document.querySelectorAll("svg")].filter(own =>
    own.getAttribute("role") !== "img" || !own.getAttribute("aria-label").trim()),
  ...[...document.images].filter(own => !own.alt.trim()),
  ...[...document.querySelectorAll("th")].filter(own => own.scope !== "col" || !own.textContent.trim()),
  ...[...document.querySelectorAll("button, a")].filter(own => !own.textContent.trim()),
].map(own => own.outerHTML.slice(0, 99))"""
HEADINGS = """[...document.querySelectorAll("h1, h2, h3")].map(own => Number(own.tagName[1]))"""


def look(page: Page, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", size)
    page.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


@pytest.fixture(scope="module")
def pages(run, page, place):
    """Name -> text of a page of each kind."""
    again = {**run.recipe, "name": "again"}
    kept = [kept_by(run.url), kept_by(run.url)]
    kept[1].id, kept[0].id, kept[1].name = "two", "one", again["name"]
    kept[1].params = {**kept[1].params, "optim.lr": "0.5"}
    return {
        "run": page,
        "inspect": data_page(summary(open_manifest(run.recipe["data"]["url"]))),
        "compare": compare_page(compare(kept)),
    }


@pytest.mark.long
def test_pages_are_legible_for_everybody(pages, sweep, tmp_path):
    pages = {**pages, "sweep": fleximoe.Run(str(sweep)).report(tmp_path / "sweep.html").read_text(encoding="utf-8")}
    figures = {"run": 9, "inspect": 4, "compare": 4, "sweep": 2}
    with open_browser(tmp_path) as browser:
        for name, text in pages.items():
            (tmp_path / "page.html").write_text(text, encoding="utf-8")
            page = browser.open(tmp_path / "page.html")
            assert page.problems == [] and page.requests == [page.url], name
            assert page.evaluate("document.querySelectorAll('figure svg').length") >= figures[name], name
            assert page.evaluate(NAMELESS) == [] and page.evaluate("document.documentElement.lang") == "en"
            levels = page.evaluate(HEADINGS)
            assert levels[0] == 1 and levels.count(1) == 1 and max(levels) <= 3
            ids = page.evaluate("[...document.querySelectorAll('[id]')].map(own => own.id)")
            assert len(ids) == len(set(ids)), name
            links = page.evaluate("[...document.querySelectorAll('a')].map(own => own.getAttribute('href'))")
            assert set(links) <= {f"#{one}" for one in ids} and links, "contents lead to sections"
            papers = set()
            for width in (400, 1400):
                for scheme in ("light", "dark"):
                    look(page, width, scheme)
                    told = page.evaluate(CONTRAST)
                    assert told["found"] == [] and told["texts"] > 50 and told["marks"] > 3, (name, scheme)
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                    assert page.evaluate(CUT) == [], (name, width)
                    papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert len(papers) == 2, "light and dark are two"
            look(page, 1000, "light")
            assert page.evaluate(SMALLEST_TEXT) >= 11.5, name


SORTED = """(place => { const table = document.querySelectorAll("table.sorts")[0];
  table.querySelectorAll("th button")[place].click();
  const shown = [...table.tBodies[0].rows].map(row => row.cells[place].textContent);
  return [table.querySelectorAll("th")[place].ariaSort, ...shown];
})"""


def test_a_click_sorts_a_table_by_whole_numbers_and_words_with_empty_cells_last(tmp_path):
    from launch.output.html import html_page, table

    rows = [("<i>", 0.12342), ("a10", 2.0), ("a9", None), ("b", 0.12341), ("", 1_000)]
    file = tmp_path / "page.html"
    file.write_text(html_page("sorted", ["<h1>sorted</h1>", table(("word", "number"), rows)]), encoding="utf-8")
    with open_browser(tmp_path) as browser:
        page = browser.open(file)
        assert page.evaluate(f"{SORTED}(1)") == ["ascending", "0.1234", "0.1234", "2", "1,000", ""]
        assert page.evaluate("document.querySelector('tbody tr').cells[0].textContent") == "b"
        assert page.evaluate(f"{SORTED}(1)") == ["descending", "1,000", "2", "0.1234", "0.1234", ""]
        assert page.evaluate(f"{SORTED}(0)") == ["ascending", "<i>", "a9", "a10", "b", ""]
        assert page.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1 and page.problems == []
        assert json.loads(page.evaluate("JSON.stringify(document.querySelectorAll('i').length)")) == 0
