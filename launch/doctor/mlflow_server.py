"""MLflow as a worker meets it: does its server answer from here, or is its database in a folder that can be written?"""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from launch.doctor.findings import Finding
from trainer.config.paths import database_file


def reach(uri: str) -> str | None:
    """Runs on a node. Returns what went wrong, as text, or None."""
    database = database_file(uri)
    if database is not None:
        folder = database.parent
        return None if os.access(folder, os.W_OK) else f"{folder} does not exist here, or cannot be written"
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10) as answer:
            return None if answer.status == 200 else f"it answers {answer.status}"
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return None  # it is there, and asks who one is
        return f"it answers {error.code}: is this machine's name among --allowed-hosts?"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def judge(uri: str, problem: str | None, node: str, several: bool) -> Finding:
    """What a node found. Not a failure: a run trains without MLflow, and its metrics arrive later."""
    if problem is not None:
        todo = "start it with `python -m launch ui --serve`; runs train on, and deliver their metrics when it is back"
        return Finding("MLflow", "warn", f"{uri} cannot be reached: {problem}", todo, node)
    if several and uri.startswith("sqlite:"):
        todo = "start a server with `python -m launch ui --serve`, and set tracking.uri=http://HOST:5000"
        return Finding("MLflow", "warn", f"{uri} is a file, and there are several nodes", todo, node)
    return Finding("MLflow", "ok", f"{uri} can be reached", node=node)
