"""Where a run comes from: the commit of the code, set as tags on the run."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_tags() -> dict[str, str]:
    """`git.commit` and `git.dirty` of the checkout that this file is in; nothing if it is not a checkout."""
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or no repository: a packaged copy of the code
        return None
    return done.stdout.strip()
