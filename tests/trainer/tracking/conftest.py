"""Stores for the tests of this folder: a fresh database, or a real server on loopback, and trackers of runs there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from mlflow import MlflowClient

from tests.ports import free_port
from trainer.config.sections import TrackingConfig
from trainer.tracking.create import create_tracker


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow database with its tables: making them takes seconds, so it is done once and copied."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def config(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="here", spool=str(tmp_path / "spool"))


@pytest.fixture(scope="session")
def server_uri(tmp_path_factory, empty_store):
    """A real `mlflow server` on loopback with artifacts of its own."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    shutil.copy(empty_store, folder / "mlflow.db")
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "art")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **quiet}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def store(request, tmp_path):
    """Settings of a real store, a database or a server, with an experiment of the test's own."""
    if request.param == "sqlite":
        return request.getfixturevalue("config")
    uri = request.getfixturevalue("server_uri")
    return TrackingConfig(uri=uri, experiment=f"e-{tmp_path.name}", spool=str(tmp_path / "spool"))


@pytest.fixture
def make_tracker(tmp_path):
    """Trackers of rank 0, of one run unless told otherwise."""

    def make(config, name="r", **changes):
        arguments = {"run_id": None, "tags": {}, "rank": 0, "run_dir": str(tmp_path / "runs" / name)}
        return create_tracker(config, name, **{**arguments, **changes})

    return make
