"""A lock that is a file: one process at a time, among all that share its folder.

The operating system lets go of it when its owner dies, however that happens, so no lock is ever stale. An owner that
lives but has stopped is waited for, for a stated time.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_S = 0.1


class HeldError(RuntimeError):
    """Somebody else has the lock. The text says who."""


@contextmanager
def file_lock(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock `path`, which is there as long as somebody holds it.

    Raises:
        HeldError: somebody else still has it after `wait_s` seconds.
        OSError: the folder cannot be written, or its file system has no locks.
    """
    descriptor = _take(path, time.monotonic() + wait_s)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} of {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before it is let go: whoever waits for it looks whether it is still the one that is there
        os.close(descriptor)


def _take(path: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise HeldError(f"{owner} holds {path}") from None
            time.sleep(POLL_S)
            continue
        except OSError:
            os.close(descriptor)
            raise
        if _is_there(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last owner has removed it meanwhile


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
