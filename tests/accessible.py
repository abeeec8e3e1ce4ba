"""Whether a page can be read and used by everybody, as far as a program sees that; of a page in `tests.browser`.

Contrast is computed as WCAG 2 defines it, over every text that is shown and what is behind it. Names are looked for
wherever something is filled in, pressed or drawn. Then the rules of axe-core are asked.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.browser import Page

LEAST_CONTRAST = 4.5

_OURS = """(() => {
  const found = [], shown = e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length;
  const seen = new Set(), all = [...document.querySelectorAll("*")];
  const what = e => `${e.tagName.toLowerCase()}#${e.id} ${(e.textContent || "").trim().slice(0, 30)}`;
  for (const e of all) {
    if (e.id && seen.has(e.id)) found.push("twice: " + e.id);
    seen.add(e.id);
    if (e.tabIndex > 0) found.push("an order of its own: " + what(e));
  }
  if (!document.documentElement.lang) found.push("no language");
  if (!document.title) found.push("no title");
  if (document.querySelectorAll("main").length !== 1) found.push("not one main part");
  let level = 0;
  for (const h of document.querySelectorAll("h1, h2, h3, h4")) {
    if (!shown(h)) continue;
    const own = Number(h.tagName[1]);
    if (own > level + 1) found.push("a heading too deep: " + what(h));
    level = own;
  }
  const named = e => e.ariaLabel || [...(e.labels || [])].some(l => l.textContent.trim()) ||
    (e.getAttribute("aria-labelledby") && document.getElementById(e.getAttribute("aria-labelledby")));
  for (const e of document.querySelectorAll("input, textarea, select"))
    if (!named(e)) found.push("no label: " + what(e));
  for (const e of document.querySelectorAll("button, a, summary"))
    if (!e.textContent.trim() && !e.ariaLabel) found.push("no name: " + what(e));
  for (const e of document.images) if (!e.hasAttribute("alt")) found.push("no alternative text: " + what(e));
  for (const e of document.querySelectorAll("svg"))
    if (e.getAttribute("aria-hidden") !== "true" && !(e.getAttribute("role") === "img" && e.ariaLabel))
      found.push("a drawing without words");
  for (const t of document.querySelectorAll("table")) if (shown(t) && !t.querySelector("th")) found.push("no heads");
  for (const e of document.querySelectorAll("[aria-describedby]"))
    if (!document.getElementById(e.getAttribute("aria-describedby"))) found.push("described by nothing: " + what(e));
  const parts = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = parts(c).map(x => x / 255).map(x =>
    x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor, p = parts(c);
    if (p.length === 3 || p[3] === 1) return c } return null };
  let texts = 0;
  for (const e of all) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.value;
    if (!own || !shown(e) || ["SCRIPT", "STYLE", "TITLE", "OPTION"].includes(e.tagName)) continue;
    if (e.disabled) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const fore = svg ? style.fill : style.color, back = behind(svg ? e.ownerSVGElement : e);
    if (back === null) { found.push("on nothing: " + what(e)); continue }
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    texts++;
    if (ratio < LEAST) found.push(ratio.toFixed(2) + " of contrast: " + what(e));
  }
  if (texts < 5) found.push("hardly any text: " + texts);
  return found;
})()"""


def problems_of_access(page: Page) -> list[str]:
    """One sentence each, none where all is well."""
    ours: list[str] = page.evaluate(_OURS.replace("LEAST", str(LEAST_CONTRAST)))
    return ours + _axe(page)


def axe() -> Path | None:
    """The script of axe-core, if a package that has it is installed."""
    spec = importlib.util.find_spec("axe_core_python")
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((file for place in places for file in Path(place).glob("axe*.js")), None)


def _axe(page: Page) -> list[str]:
    script = axe()
    if script is None:
        return []
    page.evaluate(script.read_text(encoding="utf-8") + "; 1")
    found: list[str] = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(said => said.violations.map(own => own.id + ': ' + "
        "own.nodes.map(node => node.html.slice(0, 120)).join(' | ')))"
    )
    return found
