"""Parts of the HTML pages: what a data set holds, how runs compare. One look for all of them.

A page is one file: no script, no request to anywhere, figures inside, readable in ten years. All text is escaped here
or where it becomes markup, as names come from other people's files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; --line: #d8dde3; --quiet: #5b6672; --strong: #1b4b8f }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1080px; padding: 24px; color: #1c232b }
h1 { margin: 0 0 4px; font-size: 26px }
h2 { margin: 34px 0 8px; font-size: 19px; color: var(--strong) }
p, li { margin: 4px 0 }
.quiet, figcaption { color: var(--quiet); overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 8px 0 }
th, td { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--quiet); font-weight: 600 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 8px 0 }
img { max-width: 100%; display: block }
.wide { overflow-x: auto }
.alarm, .fine { border-left: 4px solid #a33a12; padding: 4px 12px; background: #fdf4ef }
.fine { border-color: #2f7d4f; background: #eff8f2 }
"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are markup already; `title` is plain text. Empty parts are left out."""
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], digits: str = ".4g") -> str:
    """A table of plain values; empty without rows. `digits` is the format of floats."""
    lines = ["<tr>" + "".join(_cell(value, digits) for value in row) + "</tr>" for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f'<div class="wide"><table><tr>{head}</tr>\n{"".join(lines)}</table></div>'


def _cell(value: Any, digits: str) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        return f'<td class="number">{value:{digits}}</td>'
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"


def picture(figure: Figure | None, about: str) -> str:
    """A figure inside the page and what it shows below; equal figures give equal text."""
    if figure is None:
        return ""
    import matplotlib  # slow, and a page may have no figure

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "page"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    data = base64.b64encode(stream.getvalue()).decode()
    image = f'<img alt="{escape(about)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(about)}</figcaption></figure>"


def write_page(text: str, path: Path) -> None:
    """Write the page, and its folder if need be. It appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
