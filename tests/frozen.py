"""Processes that are stopped in the middle of their work and woken again, and what lies on a storage meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess

import fsspec


def freeze(process: subprocess.Popen[str]) -> None:
    """Stop a process as it is; returns when it has stopped."""
    process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def wake(process: subprocess.Popen[str]) -> None:
    """Let it go on."""
    process.send_signal(signal.SIGCONT)


def snapshot(place: str) -> dict[str, bytes]:
    """File -> its bytes, of everything at a place."""
    fs, root = fsspec.url_to_fs(place)
    fs.invalidate_cache()
    return {path: fs.cat_file(path) for path in sorted(fs.find(root))} if fs.exists(root) else {}
