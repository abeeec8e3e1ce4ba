"""Where a run comes from: the commit of the code, the command, the packages it ran with."""

from __future__ import annotations

import getpass
import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path


def source_tags() -> dict[str, str]:
    """Tags of the process that was started by hand: `git.commit`, `git.dirty`, `command`, and MLflow's own for them.

    Without a checkout around this file the tags about git are left out.
    """
    command = command_line()
    tags = {"command": command, "mlflow.source.name": command, "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return tags
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {**tags, "mlflow.source.git.commit": commit, "git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def command_line() -> str:
    """How this process was started, as one would type it."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec is not None else None
    start = ["python", "-m", module] if module else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


def environment_lock() -> str:
    """Every installed package with its version, as a requirements file."""
    described = (dist.metadata for dist in importlib.metadata.distributions())  # read once each: it takes milliseconds
    found = {about["Name"]: about["Version"] for about in described}
    pins = [f"{name}=={version}" for name, version in sorted(found.items(), key=lambda item: item[0].lower())]
    return "\n".join([f"# Python {sys.version.split()[0]} on {sys.platform}", *pins, ""])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or no repository: a packaged copy of the code
        return None
    return done.stdout.strip()
