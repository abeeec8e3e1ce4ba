"""TCP ports for servers of other programs, which must be told a number (ours ask for port 0 and say what they got)."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

ABOVE_RAY = 20000  # Ray gives its workers ports from 10002 on, up to here
LAST = 65535
SYSTEMS = Path("/proc/sys/net/ipv4/ip_local_port_range")
IANAS = (49152, 65535)  # what other systems than Linux give away by themselves


def free_port() -> int:
    """A TCP port that is free on all addresses now, and that nobody else is likely to take before it is used.

    Not one that the system itself gives to whoever binds port 0 or connects, not one of a test process beside this
    one, and never the same twice.

    Raises:
        OSError: none is left.
    """
    for port in _ours():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError(f"no TCP port between {ABOVE_RAY} and {LAST} is left for this test process")


@functools.cache
def _ours() -> Iterator[int]:
    """This process's share, in an order of its own: another run of the tests may be going on."""
    low, high = map(int, SYSTEMS.read_text("ascii").split()) if SYSTEMS.exists() else IANAS
    outside = [port for port in range(ABOVE_RAY, LAST + 1) if not low <= port <= high]
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = (outside or list(range(ABOVE_RAY, LAST + 1)))[number::count]
    random.SystemRandom().shuffle(share)
    return iter(share)
