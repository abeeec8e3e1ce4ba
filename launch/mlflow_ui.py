"""MLflow's server with what this project needs: the run's store, artifacts by way of the server, few processes.

By default it shows the runs of this machine to this machine. With `serve` it takes runs from a cluster: workers then
need neither the database's file nor the artifacts' folder, only the server's address.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence

from data_shards.paths import absolute_path
from launch.errors import RunFailedError, UsageError
from trainer.config.paths import DATABASE, database_uri

logger = logging.getLogger(__name__)

START_S = 180.0
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that run what we never ask for
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


class Server:
    """One MLflow server.

    Args:
        store: folder with mlflow.db and mlartifacts/.
        host: address to listen on; None = loopback, or with `serve` this machine's address in its network.
        names: further host names under which it is asked for, e.g. that of a Kubernetes service.

    Raises UsageError if the port is taken.
    """

    def __init__(self, store: str, serve: bool, host: str | None, port: int, names: Sequence[str] = ()) -> None:
        self.store = absolute_path(store)
        self.host = host or (own_address() if serve else "127.0.0.1")
        self.port, self.serve = port, serve
        self.url = f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{port}"
        self._names = names
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((self.host, port))
            except OSError as error:
                raise UsageError(
                    f"cannot listen on {self.host}:{port} ({error.strerror}): give another --port"
                ) from None

    def allowed_hosts(self) -> list[str]:
        """Names by which it may be asked for: a page in a browser cannot make it believe in another one."""
        names = ["localhost", "127.0.0.1"]
        if self.serve:
            names += [self.host, socket.gethostname(), socket.getfqdn(), *self._names]
        return [f"{name}:{self.port}" for name in dict.fromkeys(names) if name != "0.0.0.0"]

    def command(self) -> list[str]:
        """MLflow's own command."""
        artifacts = (self.store / "mlartifacts").as_uri()  # MLflow decodes %20 in a plain path, too
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", self.host, "--port", str(self.port), "--allowed-hosts", ",".join(self.allowed_hosts())),
            *("--backend-store-uri", database_uri(self.store / DATABASE), "--artifacts-destination", artifacts),
        ]

    def run(self, ready: Callable[[], None]) -> int:
        """Run it until it is stopped by a signal; `ready` is called once it answers. Returns its exit code."""
        self.store.mkdir(parents=True, exist_ok=True)
        self._prepare()
        process = subprocess.Popen(
            self.command(),
            env={**os.environ, **SETTINGS},
            cwd=self.store,
            stdout=2,  # its log; stdout is for scripts
            start_new_session=True,
        )
        stop = _StopGroup(process)
        try:
            self._wait_until_it_answers(process)
            ready()
            process.wait()
        finally:
            stop.now()
        return stop.received or process.returncode

    def _prepare(self) -> None:
        """Make the database before the server does: runs that start now may be making the same one."""
        from trainer.tracking.mlflow_client import explain, tracking_client  # seconds, and not for --help

        uri = database_uri(self.store / DATABASE)
        try:
            tracking_client(uri)
        except Exception as error:
            raise RunFailedError(explain(error, uri)) from error

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                opener.open(f"{self.url}/health", timeout=5).close()
                return
            except OSError as error:
                if process.poll() is not None:
                    raise RunFailedError(f"MLflow's server ended with {process.returncode}: see above") from None
                if time.monotonic() > deadline:
                    raise RunFailedError(f"MLflow's server does not answer at {self.url}: {error}") from None
                time.sleep(0.3)


class _StopGroup:
    """SIGTERM and SIGINT end the server with all of its processes, which are a group of their own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.received = process, 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received = 128 + number
        self._signal(signal.SIGTERM)

    def now(self) -> None:
        """End it, softly and then for sure."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            logger.warning("MLflow's server does not end by itself; it is killed")
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # all of them have ended


def own_address() -> str:
    """This machine's address in its network. Raises UsageError if it has none but loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it only asks the routing table
            return str(probe.getsockname()[0])
        except OSError:
            pass
    address = socket.gethostbyname(socket.gethostname())
    if address.startswith("127."):
        raise UsageError("this machine has no address in a network: give --host")
    return address
