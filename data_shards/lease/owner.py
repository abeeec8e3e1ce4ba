"""A process as others can recognise it, and whether it has ended.

A process number alone says little: it means another process on another host, in another container, after a reboot, and
once the number has been given away again. So an owner also names its host, the boot, the namespaces and its start.
"""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_ENDED = "ZX"  # states of a process of which only the entry in the table is left


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        started: ticks after boot at which it began. boot: the kernel's name for this boot. pids, times: namespaces that
            process numbers and the clock belong to. All of these are None where the system does not tell.
    """

    host: str
    user: str
    pid: int
    started: int | None
    boot: str | None
    pids: str | None
    times: str | None

    def __str__(self) -> str:
        return f"{self.user}@{self.host} (pid {self.pid})"

    def is_dead(self) -> bool:
        """Whether it has certainly ended: it was one of this host, boot and container, and is not there any more."""
        return self._was_here() and _start_of(self.pid) != self.started

    def runs_here(self) -> bool:
        """Whether it certainly has not: it is one of this host, boot and container. It may be frozen."""
        return self._was_here() and _start_of(self.pid) == self.started

    def _was_here(self) -> bool:
        here = this_process()
        known = None not in (self.started, self.boot, self.pids)
        return known and (self.host, self.boot, self.pids) == (here.host, here.boot, here.pids)

    def shares_clock(self) -> bool:
        """Whether its `Clock` is this process's own."""
        here = this_process()
        return None not in (self.boot, self.times) and (self.boot, self.times) == (here.boot, here.times)


def this_process() -> Owner:
    """This process."""
    pid = os.getpid()
    boot = _read(_PROC / "sys/kernel/random/boot_id")
    return Owner(socket.gethostname(), _user(), pid, _start_of(pid), boot, _namespace("pid"), _namespace("time"))


def _start_of(pid: int) -> int | None:
    """When a process began; None if it has ended, or the system does not tell."""
    line = _read(_PROC / str(pid) / "stat")
    if line is None:
        return None
    # The second field is the program's name, which may hold blanks and brackets: (state, parent, ...) follow it.
    fields = line.rpartition(")")[2].split()
    return None if fields[0] in _ENDED else int(fields[19])


def _namespace(kind: str) -> str | None:
    try:
        return str((_PROC / "self/ns" / kind).readlink())
    except OSError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return str(os.getuid())
