"""The doctor on MLflow: what waiting helps, and what it does not."""

from __future__ import annotations

import http.server
import threading

import pytest
from mlflow import MlflowClient

from launch.doctor.mlflow_server import judge, reach
from launch.errors import RunFailedError
from launch.mlflow_ui import Server
from tests.ports import free_port


@pytest.fixture
def forbidding():
    """A server that is there, and wants a login."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refused_login_is_not_a_server_that_is_away(forbidding):
    finding = judge(forbidding, reach(forbidding), "here", several=False)
    assert (finding.state, finding.node) == ("warn", "here")
    assert (
        "it asks for a login: set MLFLOW_TRACKING_USERNAME" in finding.text and "cannot be reached" not in finding.text
    )
    assert "ui --serve" not in finding.todo


def test_nobody_is_there():
    uri = f"http://127.0.0.1:{free_port()}"
    finding = judge(uri, reach(uri), "here", several=False)
    assert finding.text.startswith(f"{uri} cannot be reached: ") and "ui --serve" in finding.todo


def test_a_damaged_database_and_one_that_is_not_there_yet(tmp_path):
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"
    assert reach(uri) is None and not file.exists(), "looking makes no database"
    file.write_text("no database " * 1000)
    finding = judge(uri, reach(uri), "here", several=False)
    assert finding.state == "warn" and "its file is no database, or a damaged one" in finding.text
    with pytest.raises(RunFailedError, match="its file is no database, or a damaged one"):
        Server(str(tmp_path), serve=False, host=None, port=free_port()).run(lambda: None)


def test_the_server_s_database_is_whole_before_the_server_starts(tmp_path):
    """Runs that start in the same moment meet a database with all of its tables, or none at all."""
    server = Server(str(tmp_path), serve=False, host=None, port=free_port())
    server._prepare()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert reach(uri) is None and [item.name for item in MlflowClient(uri).search_experiments()] == ["Default"]
