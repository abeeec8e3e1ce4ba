"""The versions that this project was tested with: `constraints.txt`, which travels with the code."""

from __future__ import annotations

import re
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "constraints.txt"


def locked_version(package: str) -> str:
    """The version of a package in constraints.txt."""
    match = re.search(rf"^{re.escape(package)}==(\S+)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{package} is not in {LOCK}"
    return match[1]
