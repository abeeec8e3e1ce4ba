"""A server by the command `serve`, and whoever asks it; for benchmarks and tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]


class Client:
    """Asks a server, over one connection that stays; of one thread.

    Attributes:
        process: of the server, where it is known.
    """

    def __init__(self, url: str, token: str, process: int | None = None) -> None:
        self.url, self.token, self.process = url, token, process
        self._connection: http.client.HTTPConnection | None = None

    def again(self) -> Client:
        """Another one, for another thread."""
        return Client(self.url, self.token, self.process)

    def ask(self, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        """Status, and the JSON (of metrics the text) of the answer."""
        status, said = self.raw(path, body, token)
        return status, said.decode() if path == "/metrics" and status == 200 else json.loads(said)

    def raw(self, path: str, body: Any = None, token: str | None = None) -> tuple[int, bytes]:
        """Status, and the bytes of the answer. A connection that was closed meanwhile is opened again, once."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        for attempt in (1, 2):
            fresh = self._connection is None
            if self._connection is None:
                self._connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=180)
            try:
                self._connection.request("GET" if data is None else "POST", path, data, headers)
                answer = self._connection.getresponse()
                said = answer.read()
                if answer.will_close:
                    self._connection = None
                return answer.status, said
            except (ConnectionError, http.client.HTTPException):
                self._connection = None
                if fresh or attempt == 2:
                    raise
        raise AssertionError


@contextlib.contextmanager
def serving(model: str, port: int, *options: str, env: dict[str, str] | None = None) -> Iterator[Client]:
    """The command, until the block is left."""
    command = [sys.executable, "-m", "launch", "serve", model, "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=env or os.environ.copy(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the server did not start"
        said = json.loads(line)
        yield Client(said["url"], said["token"], process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(120) == 0
        finally:
            process.kill()


def free_port() -> int:
    """Of this moment."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes(parent: int, word: str) -> list[int]:
    """Processes below this one whose name holds a word, e.g. `ServeReplica:fleximoe:Replica`."""
    import psutil

    below = psutil.Process(parent).children(recursive=True)
    found = []
    for own in below:
        with contextlib.suppress(psutil.Error):
            if word in " ".join(own.cmdline()):
                found.append(own.pid)
    return found
