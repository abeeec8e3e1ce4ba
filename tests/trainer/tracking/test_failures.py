"""What MLflow's errors mean, made by MLflow itself: a server that answers with each status, databases in each state."""

from __future__ import annotations

import http.server
import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from tests.ports import free_port
from trainer.config.sections import TrackingConfig
from trainer.tracking import mlflow_client
from trainer.tracking.failures import BusyError, ClosedError, RefusedError, UncertainError
from trainer.tracking.mlflow_client import meaning, problem
from trainer.tracking.mlflow_run import RunStore, open_run
from trainer.tracking.spool import Spool


@pytest.fixture
def answering():
    """A server that answers every request with the status that it is told."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(server.status)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(mlflow_client, "_opened", set())
    monkeypatch.setattr(mlflow_client, "COLLISIONS", 1)


def failure(uri, tmp_path):
    """What opening a run there ends with."""
    with pytest.raises(Exception) as caught:
        RunStore(TrackingConfig(uri=uri), "r", None, {}, str(tmp_path / "run")).open()
    return caught.value


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (200, ClosedError, "no MLflow server: correct tracking.uri"),
        (301, ClosedError, "no MLflow server: correct tracking.uri"),
        (401, ClosedError, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, ClosedError, "it forbids this"),
        (404, ClosedError, "no MLflow server: correct tracking.uri"),
        (429, BusyError, "API request to"),
        (500, UncertainError, "API request to"),
        (502, MlflowException, "too many 502 error responses"),
        (503, BusyError, "API request to"),
        (504, MlflowException, "too many 504 error responses"),
    ],
)
def test_what_a_server_answers(answering, tmp_path, status, kind, words):
    answering.status = status
    found = failure(f"http://127.0.0.1:{answering.server_port}", tmp_path)
    assert type(found) is kind and words in str(found)


def test_nobody_answers(tmp_path):
    found = failure(f"http://127.0.0.1:{free_port()}", tmp_path)
    assert type(found) is MlflowException and "Connection refused" in str(found)


def changed(statement):
    def change(file):
        with sqlite3.connect(file) as database:
            database.executescript(statement)

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            changed("update alembic_version set version_num = 'ffff'"),
            "made by another version of MLflow: use that one",
        ),
        (changed("delete from alembic_version; drop table webhooks"), "is half made"),
        (lambda file: file.write_text("no database " * 1000), "its file is no database"),
        (lambda file: file.write_bytes(file.read_bytes()[:40960]), "its file is no database"),
        (lambda file: (file.unlink(), file.mkdir()), "cannot be written"),
    ],
)
def test_databases_that_cannot_be_used(tmp_path, empty_store, damage, words):
    file = tmp_path / "mlflow.db"
    file.write_bytes(empty_store.read_bytes())
    damage(file)
    found = failure(f"sqlite:///{file}", tmp_path)
    assert type(found) is ClosedError and words in str(found), str(found)
    assert words in (problem(f"sqlite:///{file}") or "")


def test_a_folder_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    found = failure(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path)
    assert type(found) is ClosedError and "cannot be written: give this user the right to" in str(found)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("foo://somewhere", "there is no such kind of store"),
        ("postgresql://u@127.0.0.1:9/x", "the driver of this kind of database is not installed"),
    ],
)
def test_stores_that_there_are_not(tmp_path, uri, words):
    found = failure(uri, tmp_path)
    assert type(found) is ClosedError and words in str(found)


def test_a_full_or_read_only_database_is_no_passing_trouble(tmp_path, config):
    """SQLite's own words, as MLflow passes them on: the code says that it is temporarily unavailable."""
    store = RunStore(config, "r", None, {}, str(tmp_path / "run"))
    store.open()
    assert store._client is not None
    engine = store._client._tracking_client.store.engine
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    @event.listens_for(engine, "checkout")
    def small(connection, *rest):
        size = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {size}")

    operations = [{"op": "params", "values": {f"k{number}": "x" * 6000 for number in range(90)}, "time": 1}]
    with pytest.raises(ClosedError, match=r"its disk is full: make room there"):
        store.apply(operations)  # type: ignore[arg-type]
    event.remove(engine, "connect", small)
    event.remove(engine, "checkout", small)

    @event.listens_for(engine, "checkout")
    def read_only(connection, *rest):
        connection.execute("pragma max_page_count = 1000000")
        connection.execute("pragma query_only = 1")

    store.open()
    with pytest.raises(ClosedError, match="its database cannot be written"):
        store.apply([{"op": "metrics", "values": {"x": 1.0}, "step": 1, "time": 1}])
    event.remove(engine, "checkout", read_only)
    engine.dispose()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("reset"), ConnectionError),
        (TimeoutError("timed out"), TimeoutError),
        (MlflowException("(sqlite3.OperationalError) database is locked", 4), BusyError),
        (OverflowError("Python int too large to convert to SQLite INTEGER"), RefusedError),
        (PermissionError(13, "Permission denied"), ClosedError),
        (OSError(28, "No space left on device"), ClosedError),
        (RuntimeError("who knows"), UncertainError),
    ],
)
def test_other_errors(error, kind):
    assert type(meaning(error, "sqlite:////x.db")) is kind


def test_a_run_that_mlflow_will_never_take_trains_on_and_says_so_twice(answering, make_tracker, tmp_path, caplog):
    answering.status = 401
    config = TrackingConfig(uri=f"http://127.0.0.1:{answering.server_port}", spool=str(tmp_path / "spool"))
    assert open_run(config, "r", {}, str(tmp_path / "runs" / "r")) is None and caplog.messages == []
    tracker = make_tracker(config)
    for step in (1, 2, 3):
        tracker.log_metrics({"x": float(step)}, step)
        tracker.flush()
    tracker.finish("FINISHED")
    assert len(caplog.messages) == 2 and all("MLFLOW_TRACKING_USERNAME" in message for message in caplog.messages)
    assert tracker.run_id is None and tracker.delivery.startswith(f"waiting in {config.spool} (MLflow at {config.uri}")
    waiting = Spool(Path(str(config.spool))).read()
    assert [operation.get("step") for operation in waiting] == [1, 2, 3, None]
    assert [path.name for path in (tmp_path / "runs" / "r").iterdir()] == ["metrics.jsonl"]
