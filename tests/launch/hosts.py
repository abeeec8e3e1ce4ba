"""Hosts that can be killed, cut off and drained: network namespaces of one machine, joined by a bridge.

Each host has its own network, name and Ray folder; kernel, processors and disks are shared, the disk also standing in
for the shared storage of a cluster. Needs root. Everything is gone when the context ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.commands import ROOT, environment

# The marks of a test module that uses hosts.
NEEDS_HOSTS = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the command ip (iproute2)"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs the command unshare (util-linux)"),
]

BIN = Path(sys.executable).parent
RAY_PORT = 6379
# A host that falls silent is given up after about ten seconds instead of a minute.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
NODE_OF = """
import ray, sys
ray.init(log_to_driver=False)
print(*(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == sys.argv[1]))
"""


class Hosts:
    """`count` hosts; host 0 is meant for Ray's head. Use `hosts(count)`."""

    def __init__(self, count: int) -> None:
        self.count, self.tag = count, secrets.token_hex(2)
        self.net = f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(250)}"
        self.folder = Path(tempfile.mkdtemp(prefix="h"))
        self.env = environment(
            **IMPATIENT,
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(32),
            RAY_USAGE_STATS_ENABLED="0",
            GLOO_SOCKET_IFNAME="eth0",
            PATH=f"{BIN}:{os.environ['PATH']}",
        )
        self.address = f"{self.ip(0)}:{RAY_PORT}"
        self.dashboard = f"http://{self.ip(0)}:8265"

    def ip(self, host: int) -> str:
        return f"{self.net}.{10 + host}"

    def space(self, host: int) -> str:
        """Name of the host's network namespace, and of the bridge's end of its cable."""
        return f"h{self.tag}{host}"

    def up(self) -> None:
        bridge = f"b{self.tag}"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for host in range(self.count):
            space = self.space(host)
            _ip("netns", "add", space)
            _ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", space, "master", bridge, "up")
            _ip("-n", space, "addr", "add", f"{self.ip(host)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def down(self) -> None:
        for host in range(self.count):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.kill(host)
                _ip("netns", "del", self.space(host))
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", f"b{self.tag}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def popen(self, host: int, *command: str, log: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command on a host; its output goes to the file `log` in the hosts' folder."""
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                self._inside(host, *command), env={**self.env, **env}, cwd=ROOT, stdout=file, stderr=file
            )

    def _inside(self, host: int, *command: str) -> list[str]:
        own, shared = self.folder / f"ray{host}", self.folder / "ray"
        own.mkdir(exist_ok=True)
        shared.mkdir(exist_ok=True)
        script = f'hostname host{host}; mount --bind {own} {shared}; exec "$@"'
        return ["ip", "netns", "exec", self.space(host), "unshare", "-u", "-m", "bash", "-c", script, "_", *command]

    def launch(self, host: int, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`python -m launch ARGUMENTS` on a host, to its end."""
        return subprocess.run(
            self._inside(host, sys.executable, "-m", "launch", *arguments),
            env={**self.env, "RAY_API_SERVER_ADDRESS": self.dashboard, **env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def run(self, host: int, *command: str, log: str) -> None:
        """Run a command on a host to its end. Raises AssertionError with its output if it fails."""
        process = self.popen(host, *command, log=log)
        assert process.wait(180) == 0, (self.folder / log).read_text()

    def start_ray(self, host: int, cpus: int) -> None:
        """`ray start` on a host: the head on host 0, else a node that joins it."""
        where = [f"--address={self.address}"]
        if host == 0:
            where = ["--head", f"--port={RAY_PORT}", f"--temp-dir={self.folder}/ray", f"--dashboard-host={self.ip(0)}"]
        options = [f"--node-ip-address={self.ip(host)}", f"--num-cpus={cpus}", f"--object-store-memory={100 << 20}"]
        self.run(host, "ray", "start", *where, *options, "--disable-usage-stats", log=f"start{host}.log")

    def kill(self, host: int) -> None:
        """The host loses power."""
        for _ in range(50):
            pids = subprocess.run(
                ["ip", "netns", "pids", self.space(host)], capture_output=True, text=True
            ).stdout.split()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)  # until the kernel has taken them away
        raise AssertionError(f"processes of host {host} do not end")

    def cut(self, host: int) -> None:
        """The host's cable is pulled: it goes on, and nobody hears of it."""
        _ip("link", "set", self.space(host), "down")

    def heal(self, host: int) -> None:
        _ip("link", "set", self.space(host), "up")

    def drain(self, host: int, seconds: int) -> None:
        """The notice a spot machine gets: it will be gone in `seconds`."""
        process = self.popen(0, sys.executable, "-c", NODE_OF, self.ip(host), log="node.log", RAY_ADDRESS=self.address)
        assert process.wait(120) == 0, (self.folder / "node.log").read_text()
        node = (self.folder / "node.log").read_text().split()[-1]
        notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        deadline = ["--deadline-remaining-seconds", str(seconds)]
        self.run(
            0, "ray", "drain-node", f"--address={self.address}", "--node-id", node, *notice, *deadline, log="drain.log"
        )


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Hosts for the time of a test."""
    made = Hosts(count)
    try:
        made.up()
        yield made
    finally:
        made.down()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
