"""How pages look: colours by light and dark, one stylesheet, and the few lines of script that sort tables.

Every colour is a variable, so that figures follow the reader's scheme too (`svg.py`). Texts have a contrast of at
least 4.5 to what is behind them, lines and marks of charts 3; `tests/launch/output/` measures it in a browser.
"""

from __future__ import annotations

# Of the ten colours that matplotlib calls C0 to C9, as they are drawn on light and on dark ground.
LIGHT = (
    "#1c64b0", "#b84e06", "#237a36", "#c22828", "#6f44b5", "#85533d", "#b8378d", "#5b6672", "#6c6c00", "#08798c"
)  # fmt: skip
DARK = (
    "#6cb2f5", "#ffa45c", "#69d07f", "#ff8f8f", "#b79cf0", "#cfa58e", "#f29ad4", "#a9b4bf", "#d3d35a", "#4fd0e0"
)  # fmt: skip


def _variables(colours: tuple[str, ...]) -> str:
    return "; ".join(f"--c{number}: {colour}" for number, colour in enumerate(colours))


STYLE = f"""
:root {{ color-scheme: light dark;
  --paper: #ffffff; --ink: #1c232b; --quiet: #56616d; --line: #d8dde3; --strong: #1b4b8f; --faint: #c9d1d9;
  --bad: #a33a12; --bad-paper: #fdf4ef; --good: #2f7d4f; --good-paper: #eff8f2; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{
  --paper: #14181d; --ink: #e6e9ed; --quiet: #a3aeb9; --line: #343c46; --strong: #8ab4f8; --faint: #4a545f;
  --bad: #ff9d73; --bad-paper: #33201a; --good: #74cf98; --good-paper: #16291e; {_variables(DARK)} }} }}
"""
STYLE += """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1080px; padding: 24px;
  color: var(--ink); background: var(--paper) }
h1 { margin: 0 0 4px; font-size: 26px; overflow-wrap: anywhere }
h2 { margin: 34px 0 8px; font-size: 19px; color: var(--strong) }
h3 { margin: 18px 0 4px; font-size: 16px }
p, li { margin: 4px 0; overflow-wrap: anywhere }
a { color: var(--strong) }
nav { margin: 12px 0 }
nav a { display: inline-block; padding: 2px 14px 2px 0 }
.quiet, figcaption { color: var(--quiet); overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 8px 0 }
th, td { padding: 3px 14px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--quiet); font-weight: 600; white-space: nowrap }
th.number { text-align: right }
td.long { min-width: 14em }
th[aria-sort] { color: var(--ink) }
th button { all: unset; cursor: pointer }
th button:hover, th button:focus-visible { text-decoration: underline }
th button::after { content: " \\2195"; opacity: .7 }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1 }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1 }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
figure { margin: 12px 0 }
.wide { overflow-x: auto }
svg { display: block; height: auto; max-width: 100% }
svg * { stroke-linejoin: round; stroke-linecap: butt }
svg text { fill: var(--ink); font-family: system-ui, sans-serif !important }
pre { overflow-x: auto; font-size: 13px; padding: 8px 12px; border-left: 4px solid var(--line) }
summary { cursor: pointer; color: var(--strong) }
.alarm, .fine { border-left: 4px solid var(--bad); padding: 4px 12px; background: var(--bad-paper) }
.fine { border-color: var(--good); background: var(--good-paper) }
"""

# Heads of tables become buttons; cells say in `data-value` what a number is, and empty ones come last.
SCRIPT = """
for (const head of document.querySelectorAll("table.sorts th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const body = head.closest("table").tBodies[0], up = head.ariaSort !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.ariaSort = up ? "ascending" : "descending";
    const key = row => {
      const cell = row.cells[head.cellIndex], value = cell.dataset.value;
      return value === undefined ? cell.textContent : Number(value);
    };
    const order = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const less = typeof a === "number" && typeof b === "number"
        ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
      return up ? less : -less;
    };
    body.append(...[...body.rows].map(row => [key(row), row]).sort((a, b) => order(a[0], b[0])).map(pair => pair[1]));
  };
}
"""
