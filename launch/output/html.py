"""Parts of the HTML pages: what a data set holds, how runs compare, a run, a sweep. One look for all of them.

A page is one file: no request to anywhere, figures inside, readable in ten years; its one script, of a few lines, sorts
tables (`look.py`). All text is escaped here or where it becomes markup, as names come from other people's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.output.look import SCRIPT, STYLE
from launch.output.svg import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG_TEXT = 40  # characters of a cell, that get room in a narrow window


def html_page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are markup already; `title` is plain text. Empty parts are left out."""
    body = "\n".join(part for part in parts if part)
    script = f"<script>{SCRIPT}</script>\n" if '<table class="sorts">' in body else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body>\n<main>\n{body}\n</main>\n{script}</body></html>\n"
    )


def section(title: str, *content: str) -> str:
    """A part of a page with its title; nothing where there is nothing to show."""
    inside = "\n".join(part for part in content if part)
    return f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>\n{inside}</section>' if inside else ""


def anchor(title: str) -> str:
    """The name under which a section can be linked to."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def contents(sections: Iterable[str]) -> str:
    """Links to sections that are there."""
    found = [re.match(r'<section id="([^"]*)"><h2>(.*?)</h2>', part) for part in sections if part]
    return "<nav>" + "".join(f'<a href="#{own[1]}">{own[2]}</a>' for own in found if own) + "</nav>"


def paragraph(text: str, kind: str = "") -> str:
    """A sentence or some; `kind` is `quiet`, `alarm` or `fine`. Nothing for no text."""
    return f'<p class="{kind}">{escape(text)}</p>' if text and kind else f"<p>{escape(text)}</p>" if text else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], digits: str = ".4g") -> str:
    """A table of plain values; empty without rows. `digits` is the format of floats; cells hold them whole, too."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    body = "".join("<tr>" + "".join(_cell(value, digits) for value in row) + "</tr>" for row in rows)
    head = "".join(_head(column, [row[place] for row in rows]) for place, column in enumerate(columns))
    sorts = ' class="sorts"' if len(rows) > 1 else ""
    return (
        f'<div class="wide" tabindex="0"><table{sorts}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(column: str, values: list[Any]) -> str:
    """Above numbers it stands on their side."""
    known = [value for value in values if value is not None]
    side = ' class="number"' if known and all(isinstance(value, int | float) for value in known) else ""
    return f'<th scope="col"{side}>{escape(column)}</th>'


def _cell(value: Any, digits: str) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        return f'<td class="number" data-value="{value!r}">{value:{digits}}</td>'
    if isinstance(value, int):
        return f'<td class="number" data-value="{int(value)}">{value:,}</td>'
    text = str(value)
    return f'<td class="long">{escape(text)}</td>' if len(text) > LONG_TEXT else f"<td>{escape(text)}</td>"


def picture(figure: Figure | None, about: str) -> str:
    """A figure inside the page and what it shows below."""
    if figure is None:
        return ""
    caption = f"<figcaption>{escape(about)}</figcaption>"
    return f'<figure><div class="wide" tabindex="0">{svg(figure, about)}</div>{caption}</figure>'


def write_page(text: str, path: Path) -> None:
    """Write the page, and its folder if need be. It appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
