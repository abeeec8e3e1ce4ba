"""A Ray as `ray start --head` makes it, for the time of a test: its own ports, folder and token."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.launch.commands import ROOT, environment, processes_with, python, wait_until
from tests.ports import free_port

BIN = Path(sys.executable).parent


class Head:
    """The Ray of a test. `env` is what a client needs; without `token` everybody may do everything."""

    def __init__(self, token: bool = True, **env: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="h"))  # short, because sockets are put below it
        names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
        self.ports = {name: free_port() for name in names}
        self.dashboard = f"http://127.0.0.1:{self.ports['dashboard-port']}"
        closed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}
        self.env = environment(
            **(closed if token else {"RAY_AUTH_MODE": "disabled"}), **env, PATH=f"{BIN}:{os.environ['PATH']}"
        )
        self.env["RAY_API_SERVER_ADDRESS"] = self.dashboard
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        options = [f"--{name}={port}" for name, port in self.ports.items()]
        self._block("--head", f"--temp-dir={self.folder}", "--num-cpus=2", *options, env=self.env)
        wait_until(lambda: self._asked("/api/jobs/") is not None, "the dashboard answers", 120)

    @contextlib.contextmanager
    def joined(self, **env: str) -> Iterator[None]:
        """Another node on this machine for a while, with something else in its environment."""
        options = [f"--address={self.address}", "--num-cpus=1", f"--dashboard-agent-listen-port={free_port()}"]
        node = self._block(*options, env={**self.env, **env})
        try:
            wait_until(lambda: self._nodes() == 2, "the node joins", 90)
            yield
        finally:
            for process in [*node.children(recursive=True), node]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            wait_until(lambda: self._nodes() == 1, "the node is gone", 90)

    def _nodes(self) -> int:
        answer = self._asked("/api/v0/nodes")
        return 0 if answer is None else [node["state"] for node in answer["data"]["result"]["result"]].count("ALIVE")

    def _asked(self, path: str) -> Any:
        """What the dashboard answers, or None. Asked directly, as a command of Ray's takes seconds to start."""
        token = {"Authorization": f"Bearer {self.env.get('RAY_AUTH_TOKEN', '')}"}
        with contextlib.suppress(OSError):
            asked = urllib.request.Request(self.dashboard + path, headers=token)
            return json.load(urllib.request.urlopen(asked, timeout=10))
        return None

    def agent_is_reachable(self) -> bool:
        """Whether others in the network can reach the agent; on a machine without a network it is on loopback."""
        port = self.ports["dashboard-agent-listen-port"]
        listening = {
            each.laddr.ip for each in psutil.net_connections("tcp") if each.laddr.port == port and not each.raddr
        }
        assert listening, f"nobody listens on port {port}"
        return not all(address.startswith("127.") for address in listening)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['port']}"

    def _block(self, *options: str, env: dict[str, str]) -> psutil.Process:
        size = f"--object-store-memory={100 << 20}"
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", size, *options]
        with (self.folder / "start.log").open("a") as log:
            self._processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=self.folder))
        return psutil.Process(self._processes[-1].pid)

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray ARGUMENTS` as a client."""
        return subprocess.run(
            [str(BIN / "ray"), *arguments], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=240
        )

    def launch(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`python -m launch ARGUMENTS` as a client."""
        return python("-m", "launch", *arguments, env={**self.env, **env})

    def end(self) -> None:
        wait_until(lambda: not self._killed(), "its processes are gone", 60)
        for process in self._processes:
            process.terminate()
            process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _killed(self) -> list[int]:
        """Kills what there is. Asked again until there is nothing: a raylet may just be starting its agent."""
        pids = list(processes_with(str(self.folder)))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids


@contextlib.contextmanager
def ray_head(token: bool = True, **env: str) -> Iterator[Head]:
    """A head that runs."""
    head = Head(token, **env)
    try:
        head.start()
        yield head
    finally:
        head.end()
