"""A client of MLflow that gives up within seconds, and what MLflow's errors mean.

The database of a store that is a file is made aside and put into place when it is complete, so that of several runs
that meet a fresh folder at once none finds half a database, and none that dies leaves one.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.paths import database_file, database_uri
from trainer.tracking.failures import BusyError, ClosedError, RefusedError, UncertainError
from trainer.worker.file_lock import HeldError, file_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

LOCK_S = 60.0  # longer than a slow machine takes to make a database
LOCK_THERE_S = 10.0  # and to bring one that is there to this version
COLLISIONS = 5  # times that a change of the database by somebody else is waited for, a second each
# Somebody else changes the tables of the same database in this moment.
_CHANGING = re.compile(r"duplicate column|already exists|out-of-date database schema|no such table", re.I)
_BUSY = re.compile(r"is locked|too many (429|503) error|error code (429|503)", re.I)
_BUSY_CODES = {
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "RESOURCE_CONFLICT",
}
# Words of an error -> what they mean, and what helps. None of these passes by itself.
_CLOSED = (
    ("Can't locate revision|out-of-date database schema",
     "its database was made by another version of MLflow: use that one, or run `mlflow db upgrade {uri}` on a copy"),
    (r"duplicate column|no such table|table \S+ already exists",
     "its database is half made, as if whoever made it had been killed: move it away"),
    ("readonly database|unable to open database|Permission denied|Read-only file system|Not a directory|File exists",
     "its database cannot be written: give this user the right to, or another tracking.uri"),
    ("disk is full|No space left", "its disk is full: make room there"),
    ("not a database|malformed",
     "its file is no database, or a damaged one: move it away, or give another tracking.uri"),
    ("unsupported URI",
     "there is no such kind of store: give tracking.uri=sqlite:////FOLDER/mlflow.db or http://HOST:5000"),
    ("No module named", "the driver of this kind of database is not installed: install it, or use a server"),
    ("error code 401|UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED",
     "it asks for a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ("error code 403|PERMISSION_DENIED",
     "it forbids this: the login may lack the right, or the server may not know itself by this name "
     "(`python -m launch ui --serve --name HOST`)"),
    (r"error code 30\d|ENDPOINT_NOT_FOUND|not in a valid JSON format",
     "what answers there is no MLflow server: correct tracking.uri"),
)  # fmt: skip
_REFUSED = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
}
_opened: set[str] = set()


def tracking_client(uri: str | None) -> MlflowClient:
    """A client that gives up within seconds: what fails is spooled, not waited for. Makes the database if need be."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for scripts
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for chatty in ("urllib3.connectionpool", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # we say ourselves, and once
    database = database_file(uri or "")
    if database is not None and database.is_absolute() and uri not in _opened:
        prepare_database(database, str(uri))
        _opened.add(str(uri))
    elif database is None and uri not in _opened and not (uri or "http").startswith("http"):
        _look(str(uri))  # a database of another kind, which several runs may meet empty, too
        _opened.add(str(uri))
    return MlflowClient(tracking_uri=uri)


def prepare_database(file: Path, uri: str) -> None:
    """Have the tables of a database made, or brought to this version, by one process at a time.

    Raises whatever MLflow raises if it cannot be.
    """
    wait_s = LOCK_THERE_S if file.exists() else LOCK_S
    with ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(file.with_name(f"{file.name}.lock"), wait_s))
        except HeldError as error:
            # It lives and does not go on. Harmless: a database is put into place whole, and the first one stays.
            logger.warning("%s since more than %.0f s; this run does not wait for it", error, wait_s)
        except OSError:
            pass  # a folder to read from only, or a file system without locks: what is wrong is said by what follows
        if not file.exists():
            _make(file)
        with closing(sqlite3.connect(file)) as database:  # says at once what MLflow would try for minutes
            database.execute("select count(*) from sqlite_master").fetchone()
        _look(uri)


def _make(file: Path) -> None:
    """Make a database beside the place where it belongs, and link it there; one that is there already stays."""
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        made, copy = Path(folder) / "new.db", Path(folder) / "copy.db"
        _look(database_uri(made))
        shutil.copyfile(made, copy)  # MLflow keeps its connections to the other one
        with suppress(FileExistsError):
            try:
                os.link(copy, file)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                if not file.exists():
                    copy.rename(file)


def _look(uri: str) -> None:
    """Open a store, which makes tables that are not there; waits while somebody else is changing them."""
    from mlflow import MlflowClient

    for left in reversed(range(COLLISIONS)):
        try:
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
            return
        except Exception as error:
            if not left or not _CHANGING.search(str(error)):
                raise
            time.sleep(1.0)


def meaning(error: Exception, uri: str | None) -> Exception:
    """An error of MLflow by what helps: one of `trainer.tracking.failures`, or itself if MLflow cannot be reached."""
    if isinstance(error, BusyError | ClosedError | RefusedError | UncertainError):
        return error
    code, text = str(getattr(error, "error_code", "")), str(error)
    if _BUSY.search(text):
        return BusyError(brief(error))
    if code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS") or "unsupported URI" in text:
        for words, sentence in _CLOSED:
            if re.search(words, f"{code} {type(error).__name__}: {text}", re.I):
                return ClosedError(f"MLflow at {uri} takes nothing ({brief(error)}): {sentence.format(uri=uri)}")
    if code in _BUSY_CODES:
        return BusyError(brief(error))
    if code in _REFUSED or _wrong_value(error) or _wrong_value(error.__cause__):
        return RefusedError(brief(error))
    unreachable = "failed with exception" in text and "too many 500" not in text
    if unreachable or re.search(r"error code 50[24]", text):
        return error
    if isinstance(error, OSError) and error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
        return error
    return UncertainError(brief(error))


def _wrong_value(error: BaseException | None) -> bool:
    """A value without a place in the database or in a request, in Python's words; MLflow calls it an internal error."""
    return isinstance(error, ValueError | TypeError | OverflowError) and not isinstance(error, OSError)


def explain(error: Exception, uri: str | None) -> str:
    """What an error of MLflow means, for a sentence about what could not be done."""
    found = meaning(error, uri)
    return str(found) if isinstance(found, ClosedError) else f"MLflow at {uri}: {brief(found)}"


def problem(uri: str) -> str | None:
    """Why the store at `uri` cannot be used from here; None if it can. Makes no database."""
    file = database_file(uri)
    try:
        if file is None or file.exists():
            tracking_client(uri).search_experiments(max_results=1)
            return None
        return None if os.access(file.parent, os.W_OK) else f"{file.parent} does not exist here, or cannot be written"
    except Exception as error:
        return explain(error, uri)


def run_deleted(uri: str | None, client: MlflowClient, run_id: str) -> str | None:
    """A sentence if a run, or its experiment, was deleted: how to get it back; None if it was not.

    Raises whatever MLflow raises for a run that it does not know.
    """
    info = client.get_run(run_id).info
    if info.lifecycle_stage != "deleted":
        return None
    return experiment_deleted(uri, client.get_experiment(info.experiment_id)) or (
        f"MLflow run {run_id} ({info.run_name}) was deleted at {uri}: restore it (MLFLOW_TRACKING_URI='{uri}' mlflow "
        f"runs restore --run-id {run_id}), or take another name or tracking.experiment for a new run"
    )


def experiment_deleted(uri: str | None, experiment: object) -> str | None:
    """A sentence if an experiment was deleted: how to get it back; None if it was not."""
    if getattr(experiment, "lifecycle_stage", "") != "deleted":
        return None
    name, number = getattr(experiment, "name", ""), getattr(experiment, "experiment_id", "")
    return (
        f"MLflow experiment {name} was deleted at {uri}: restore it (MLFLOW_TRACKING_URI='{uri}' mlflow experiments "
        f"restore --experiment-id {number}), or take another tracking.experiment"
    )


def brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(" failed with exception")[0][:200]


def metric_history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every point of a run's metric, in the order of the steps."""
    points = tracking_client(uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)
