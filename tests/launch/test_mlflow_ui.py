"""`ui`: the real MLflow server, artifacts through it, closed to foreign names, few processes, gone at the end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from mlflow import MlflowClient

from launch.errors import UsageError
from launch.mlflow_ui import Server
from tests.launch.commands import ROOT, environment, python
from tests.ports import free_port

pytestmark = [pytest.mark.together, pytest.mark.long]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """What the command said when it was ready, its process, and its store."""
    # It is this very folder: MLflow decodes paths, and SQLAlchemy takes what follows ? for options.
    store, port = tmp_path_factory.mktemp("store 100%20#1?x=2"), str(free_port())
    command = [sys.executable, "-m", "launch", "ui", "--serve", "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(
        [*command, "--store", str(store), "--name", "tracker"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()), process, store
    finally:
        process.terminate()  # which ends the server with it
        process.wait(60)


@pytest.mark.slow
def test_runs_and_artifacts_go_through_the_server(server):
    said, _, store = server
    client = MlflowClient(said["url"])
    run = client.create_run(client.create_experiment("e"))
    client.log_metric(run.info.run_id, "loss", 0.5)
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert [path.read_text() for path in (store / "mlartifacts").rglob("note.txt")] == ["hello"]
    assert (store / "mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("evil.example", 403), ("tracker", 200), ("localhost", 200)])
def test_only_known_names_are_answered(server, name, status):
    said = server[0]
    port = said["url"].rsplit(":", 1)[1]
    asked = urllib.request.Request(f"{said['url']}/ajax-api/2.0/mlflow/experiments/get?experiment_id=0")
    asked.add_header("Host", f"{name}:{port}")
    try:
        answer = urllib.request.urlopen(asked).status
    except urllib.error.HTTPError as error:
        answer = error.code
    assert answer == status


@pytest.mark.slow
def test_few_processes_and_none_left(server):
    _, process, _ = server
    family = psutil.Process(process.pid).children(recursive=True)
    sizes = [each.memory_info().rss >> 20 for each in family]
    print(f"\n{len(family)} processes with {sum(sizes)} MiB below the command")
    assert len(family) <= 4
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    with contextlib.suppress(psutil.NoSuchProcess):
        assert [each.pid for each in family if each.is_running() and each.status() != "zombie"] == []


def test_a_port_that_is_taken_is_said(tmp_path):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = python("-m", "launch", "ui", "--port", str(other.getsockname()[1]), "--store", str(tmp_path))
    assert done.returncode == 2 and "give another --port" in done.stderr


def test_where_it_listens(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.mlflow_ui.own_address", lambda: "127.0.0.2")
    port = free_port()
    assert Server(str(tmp_path), False, None, port).allowed_hosts() == [f"localhost:{port}", f"127.0.0.1:{port}"]
    served = Server(str(tmp_path), True, None, port, ["tracker"])
    assert served.host == "127.0.0.2" and {f"127.0.0.2:{port}", f"tracker:{port}"} <= set(served.allowed_hosts())
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        Server(str(tmp_path), True, "192.0.2.1", port)
