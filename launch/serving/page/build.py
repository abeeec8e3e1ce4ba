"""The page as one text, and the headers that let it do nothing but talk to its own server.

It holds nothing of the model, so it needs no token; what it shows is asked for with the token that is typed into it.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from launch.output.look import STYLE

_HERE = Path(__file__).parent


@cache
def page() -> str:
    """The HTML text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fleximoe</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_style()}</style></head>\n"
        f"<body>\n{_file('page.html')}<script>{_file('draw.js')}{_file('page.js')}</script></body></html>\n"
    )


@cache
def headers() -> dict[str, str]:
    """Of HTTP: this style and this script alone, requests to this server alone, and no frame around it."""
    policy = (
        f"default-src 'none'; style-src {_digest(_style())}; "
        f"script-src {_digest(_file('draw.js') + _file('page.js'))}; connect-src 'self'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }


def _style() -> str:
    return STYLE + _file("page.css")


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
