"""The versions that this project was tested with: `constraints.txt`, which travels with the code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the project: what a job takes along
LOCK = ROOT / "constraints.txt"


def locked_version(package: str) -> str:
    """The version of a package in constraints.txt."""
    match = re.search(rf"^{re.escape(package)}==(\S+)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{package} is not in {LOCK}"
    return match[1]
