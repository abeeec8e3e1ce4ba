"""Several runs that meet a fresh folder at once: one database, every run in it, every point once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.trainer.tracking.curves import points, written
from trainer.config.paths import database_uri
from trainer.config.sections import TrackingConfig
from trainer.run_folder import stored_run_id
from trainer.tracking import mlflow_client, mlflow_run
from trainer.tracking.mlflow_client import prepare_database, tracking_client
from trainer.tracking.mlflow_models import register_checkpoint
from trainer.tracking.spool import Spool

RUN = """
import sys, time
from pathlib import Path
from trainer.config.sections import TrackingConfig
from trainer.tracking.create import create_tracker
import mlflow, sqlalchemy, alembic  # seconds, which would spread the starts
place, name = Path(sys.argv[1]), sys.argv[2]
run_dir = place / "runs" / name
uri = f"sqlite:///{place}/mlflow.db"
config = TrackingConfig(uri=uri, experiment="e", register_as="m", spool=str(run_dir / "spool"))
print("ready", flush=True)
sys.stdin.readline()
tracker = create_tracker(config, name, None, {"who": name}, 0, str(run_dir))
tracker.log_params({"name": name})
for step in range(1, 4):
    tracker.log_metrics({"train/loss": step / 7, "train/acc": step / 3}, step)
tracker.log_model(f"runs/{name}/step-3", {"step": "3"}, {"test/acc": 0.5})
tracker.finish("FINISHED")
print(tracker.run_id, tracker.delivery, flush=True)
"""
HOLD = """
import sys, time
from pathlib import Path
from trainer.worker.file_lock import file_lock
with file_lock(Path(sys.argv[1]), 5.0):
    print("held", flush=True)
    time.sleep(600)
"""


def start(code, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() in ("ready\n", "held\n")
    return process


@pytest.mark.slow
@pytest.mark.parametrize("again", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_runs_that_start_at_once_on_a_fresh_folder_are_all_in_mlflow(tmp_path, again):
    names = [f"r{number}" for number in range(4)]
    processes = [start(RUN, tmp_path, name) for name in names]
    for process in processes:  # the barrier
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=300) for process in processes]
    for (out, errors), name in zip(said, names, strict=True):
        assert out.split()[1:] == ["complete"], f"{name}: {out} {errors}"
        assert "MLflow" not in errors

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [item for item in client.search_experiments() if item.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == names
    for run in runs:
        name = run.info.run_name
        assert run.info.status == "FINISHED" and run.data.params == {"name": name} and run.data.tags["who"] == name
        expected = written(tmp_path / "runs" / name)
        assert expected["train/loss"] == [(1, 1 / 7), (2, 2 / 7), (3, 3 / 7)]
        assert {key: points(client, run.info.run_id, key) for key in expected} == expected
    versions = client.search_model_versions("name = 'm'")
    assert sorted(version.source for version in versions) == [f"runs/{name}/step-3" for name in names]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["mlflow.db", "runs"], "no lock, and no half database, is left"


def fresh_names(monkeypatch):
    monkeypatch.setattr(mlflow_client, "_opened", set())


@pytest.mark.parametrize("how", ["dead", "alive", "frozen"])
def test_the_lock_of_another_owner_does_not_keep_a_run_out(tmp_path, monkeypatch, caplog, how):
    """Dead: at once. Alive, or frozen: after a stated time, and what it makes later replaces nothing."""
    fresh_names(monkeypatch)
    monkeypatch.setattr(mlflow_client, "LOCK_S", 2.0)
    monkeypatch.setattr(mlflow_client, "LOCK_THERE_S", 0.5)
    file = tmp_path / "mlflow.db"
    owner = start(HOLD, f"{file}.lock")
    try:
        if how == "dead":
            owner.kill()
            owner.wait()
        if how == "frozen":
            os.kill(owner.pid, signal.SIGSTOP)
        begun = time.monotonic()
        prepare_database(file, database_uri(file))
        waited = time.monotonic() - begun
        assert (f"process {owner.pid} of" in caplog.text) == (how != "dead") and (how == "dead" or waited >= 2.0)
        client = tracking_client(database_uri(file))
        run = client.create_run("0").info.run_id
        mlflow_client._make(file)  # what a frozen one does when it is woken
        assert MlflowClient(database_uri(file)).get_run(run).info.run_id == run
    finally:
        owner.kill()
        owner.communicate()


def test_makers_that_do_not_wait_for_each_other_leave_one_whole_database(tmp_path):
    """Without any lock: as on a file system that has none."""
    file, failures = tmp_path / "mlflow.db", []

    def make():
        try:
            mlflow_client._make(file)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert [item.name for item in MlflowClient(database_uri(file)).search_experiments()] == ["Default"]


def test_a_maker_that_is_killed_leaves_no_database(tmp_path):
    code = """
import sys
from pathlib import Path
from trainer.run_folder import stored_run_id
from trainer.tracking import mlflow_client, mlflow_run
import mlflow.store.db.utils as db
upgrade = db._upgrade_db
def slow(engine):
    upgrade(engine)
    print("ready", flush=True)
    sys.stdin.readline()
db._upgrade_db = slow
mlflow_client.prepare_database(Path(sys.argv[1]), f"sqlite:///{sys.argv[1]}")
"""
    file = tmp_path / "mlflow.db"
    process = start(code, file)
    process.kill()
    process.communicate()
    assert not file.exists()
    prepare_database(file, database_uri(file))
    assert [item.name for item in MlflowClient(database_uri(file)).search_experiments()] == ["Default"]


def test_tables_that_somebody_else_is_changing_are_waited_for(tmp_path, empty_store):
    """An older database that another program upgrades meanwhile: MLflow says `out-of-date`, and a moment later not."""
    file = tmp_path / "mlflow.db"
    file.write_bytes(empty_store.read_bytes())
    with sqlite3.connect(file) as database:
        ((head,),) = database.execute("select version_num from alembic_version").fetchall()
        database.execute("update alembic_version set version_num = 'older'")

    def upgrade():
        time.sleep(1.5)
        with sqlite3.connect(file) as database:
            database.execute("update alembic_version set version_num = ?", (head,))

    thread = threading.Thread(target=upgrade)
    thread.start()
    prepare_database(file, database_uri(file))
    thread.join()
    assert [item.name for item in MlflowClient(database_uri(file)).search_experiments()] == ["Default"]


def test_a_slow_start_of_mlflow_does_not_cost_the_run_its_id(config, make_tracker, monkeypatch):
    """The run is over before MLflow has opened: the end waits for it."""
    real = mlflow_run.tracking_client
    monkeypatch.setattr(mlflow_run, "tracking_client", lambda uri: (time.sleep(2), real(uri))[1])
    tracker = make_tracker(config)
    tracker.log_metrics({"x": 0.5}, 1)
    assert tracker.run_id is None
    tracker.finish("FINISHED")
    assert tracker.delivery == "complete"
    assert points(MlflowClient(config.uri), tracker.run_id, "x") == [(1, 0.5)]


def test_a_database_that_is_locked_for_a_while_gets_everything_before_the_run_ends(config, make_tracker, monkeypatch):
    """Somebody holds the database's write lock, longer than one attempt takes."""
    monkeypatch.setattr("trainer.tracking.mlflow_run.tracking_client", impatient_client)
    tracker = make_tracker(config)
    tracker.log_metrics({"x": 0.5}, 1)
    tracker.flush()
    holder = sqlite3.connect(config.uri.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    holder.execute("begin immediate")
    threading.Timer(3.0, holder.rollback).start()
    tracker.log_metrics({"x": 0.25}, 2)
    tracker.finish("FINISHED")
    holder.close()
    assert tracker.delivery == "complete"
    client = MlflowClient(config.uri)
    assert points(client, tracker.run_id, "x") == [(1, 0.5), (2, 0.25)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def impatient_client(uri):
    """MLflow waits 20 s for a lock; here it gives up at once, so that the test need not."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "before_cursor_execute", _patience):
        event.listen(Engine, "before_cursor_execute", _patience, retval=True)
    return tracking_client(uri)


def _patience(connection, cursor, statement, parameters, context, executemany):
    return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters


def test_a_store_that_hangs_when_the_run_ends_leaves_everything_in_the_spool(config, make_tracker, monkeypatch):
    """The end of the process takes a thread with it: what the thread had in hand must not go with it."""

    hanging = threading.Event()
    monkeypatch.setattr(mlflow_run, "tracking_client", lambda uri: hanging.wait(60))
    tracker = make_tracker(config)
    tracker.log_metrics({"x": 0.5}, 1)
    tracker.log_text("note.txt", "hello")
    tracker.flush(timeout_s=0.2)
    tracker.log_metrics({"x": 0.25}, 2)
    tracker.finish("FINISHED", timeout_s=1.0)
    waiting = Spool(Path(config.spool)).read()
    assert [(op["op"], op.get("step")) for op in waiting] == [
        ("metrics", 1),
        ("file", None),
        ("metrics", 2),
        ("status", None),
    ]
    assert Path(waiting[1]["path"]).read_text() == "hello"
    assert tracker.run_id is None and tracker.delivery.startswith(f"waiting in {config.spool} (")
    hanging.set()
    monkeypatch.undo()
    later = make_tracker(config)
    later.finish("FINISHED")
    assert points(MlflowClient(config.uri), later.run_id, "x") == [(1, 0.5), (2, 0.25)] and later.delivery == "complete"


def test_a_model_that_several_register_at_once_has_all_their_versions(config):
    config = TrackingConfig(**{**config.model_dump(), "register_as": None})
    client = tracking_client(config.uri)
    runs = [client.create_run("0").info.run_id for _ in range(4)]
    found: list[str | None] = [None] * 4

    def register(number):
        found[number] = register_checkpoint(config, "shared", runs[number], {"uri": f"runs/{number}"})

    threads = [threading.Thread(target=register, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(name) for name in found) == [f"shared version {number}" for number in range(1, 5)]
    assert register_checkpoint(config, "shared", runs[2], {"uri": "runs/2"}) == found[2]
    sources = {version.source: version.run_id for version in client.search_model_versions("name = 'shared'")}
    assert sources == {f"runs/{number}": run for number, run in enumerate(runs)}


def test_what_was_cut_off_while_a_model_was_logged_is_done_the_next_time(config, make_tracker, tmp_path, monkeypatch):
    config = config.model_copy(update={"register_as": "m"})
    real, calls = MlflowClient.finalize_logged_model, []

    def once(self, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise ConnectionError("cut off")
        return real(self, *arguments)

    monkeypatch.setattr(MlflowClient, "finalize_logged_model", once)
    tracker = make_tracker(config)
    tracker.log_model("runs/a/step-3", {"step": "3"}, {"val/loss": 0.5})
    tracker.flush()
    tracker.finish("FINISHED")
    client = MlflowClient(config.uri)
    (model,) = client.search_logged_models([client.get_run(tracker.run_id).info.experiment_id])
    assert model.status == "READY" and [metric.value for metric in model.metrics] == [0.5]
    assert [version.source for version in client.search_model_versions("name = 'm'")] == ["runs/a/step-3"]
    assert stored_run_id(str(tmp_path / "runs" / "r"), config.uri) == tracker.run_id
