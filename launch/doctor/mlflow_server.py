"""MLflow as a worker meets it: does its server answer from here, or is its database in a folder that can be written?"""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from launch.doctor.findings import Finding
from trainer.config.paths import database_file

PERMANENT = "takes nothing"  # what `trainer.tracking.mlflow_client` says of a store that waiting does not help


def reach(uri: str) -> str | None:
    """Runs on a node. Returns what went wrong, as text, or None."""
    if uri.startswith("http"):
        problem = _answers(uri)
        if problem is not None:
            return problem
    database = database_file(uri)
    if database is not None and database.exists() and not os.access(database, os.W_OK):
        return f"{database} cannot be written"
    if database is not None and not os.access(database.parent, os.W_OK):
        return f"{database.parent} does not exist here, or cannot be written"
    from trainer.tracking.mlflow_client import problem as store_problem  # imports MLflow, which takes seconds

    return store_problem(uri)


def _answers(uri: str) -> str | None:
    """Whether anybody is there: fast, and without MLflow's own retries."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10) as answer:
            return None if answer.status == 200 else f"it answers {answer.status}"
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return None  # it is there, and asks who one is: MLflow's client may know
        return f"it answers {error.code}: is this machine's name among --allowed-hosts?"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def judge(uri: str, problem: str | None, node: str, several: bool) -> Finding:
    """What a node found. Not a failure: a run trains without MLflow, and its metrics arrive later."""
    if problem is not None and PERMANENT in problem:
        todo = "runs train on, and what they log waits until this is mended"
        return Finding("MLflow", "warn", problem, todo, node)
    if problem is not None:
        todo = "start it with `python -m launch ui --serve`; runs train on, and deliver their metrics when it is back"
        return Finding("MLflow", "warn", f"{uri} cannot be reached: {problem}", todo, node)
    if several and uri.startswith("sqlite:"):
        todo = "start a server with `python -m launch ui --serve`, and set tracking.uri=http://HOST:5000"
        return Finding("MLflow", "warn", f"{uri} is a file, and there are several nodes", todo, node)
    return Finding("MLflow", "ok", f"{uri} can be reached", node=node)
