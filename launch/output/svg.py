"""Figures as markup inside a page: their text is text, and their colours are the page's, light or dark.

matplotlib lays them out; what it writes is then cut down to the drawing, its colours become variables of the
stylesheet, and its names unique to the figure.
"""

from __future__ import annotations

import hashlib
import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDEST = 10.0  # inches, 96 px each: what a page of 1,000 px shows in full size
SMALLEST_TEXT = 9.0  # points, 12 px
NARROWEST = 0.8  # of a figure's size: a narrower window scrolls it

# Colour that matplotlib writes -> variable of the stylesheet.
_COLOURS = {
    "#000000": "--ink", "#ffffff": "--paper", "#808080": "--quiet", "#b0b0b0": "--line", "#cccccc": "--line",
    "#2f6db5": "--c0", "#c9d1d9": "--faint", "#1f77b4": "--c0", "#ff7f0e": "--c1", "#2ca02c": "--c2",
    "#d62728": "--c3", "#9467bd": "--c4", "#8c564b": "--c5", "#e377c2": "--c6", "#7f7f7f": "--c7", "#bcbd22": "--c8",
    "#17becf": "--c9",
}  # fmt: skip


def svg(figure: Figure, about: str) -> str:
    """The figure; equal figures give equal text. `about` is read to those who do not see it."""
    import matplotlib  # slow, and a page may have no figure

    _legible(figure)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "page", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _as_part(stream.getvalue(), about)


def _legible(figure: Figure) -> None:
    """Not wider than a page, no text smaller than `SMALLEST_TEXT`, and laid out again for both."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.text import Text

    wide, high = figure.get_size_inches()
    figure.set_size_inches(min(wide, WIDEST), high)
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_fontsize(max(SMALLEST_TEXT, text.get_fontsize()))
    for axes in figure.axes:  # ticks are made anew when they are drawn
        axes.tick_params(labelsize=max(SMALLEST_TEXT, _tick_size(axes)))
    if not isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.tight_layout()


def _tick_size(axes: object) -> float:
    sizes = [label.get_fontsize() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]  # type: ignore[attr-defined]
    return min(sizes, default=SMALLEST_TEXT)


def _as_part(text: str, about: str) -> str:
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    assert view, head
    width = float(view[1]) * 4 / 3
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, flags=re.S)
    name = hashlib.sha256((about + body).encode()).hexdigest()[:8]
    body = re.sub(r"<[^<>]+>", lambda tag: _tag(tag[0], name), body)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda own: own[0] if own[1] in used else "", body)
    size = f'width="{width:.0f}" style="min-width: {NARROWEST * width:.0f}px" viewBox="0 0 {view[1]} {view[2]}"'
    names = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg role="img" aria-label="{escape(about)}" {size} {names}>{body.strip()}'


def _tag(tag: str, name: str) -> str:
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda hit: f"var({_COLOURS[hit[0]]})" if hit[0] in _COLOURS else hit[0], tag)
