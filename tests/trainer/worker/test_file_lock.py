"""The lock that is a file: one at a time, gone with its owner, and no wait without an end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from trainer.worker.file_lock import HeldError, file_lock

HOLD = """
import sys, time
from pathlib import Path
from trainer.worker.file_lock import file_lock
with file_lock(Path(sys.argv[1]), 5.0):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "x.lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_an_owner_that_lives_is_named_and_waited_for_as_long_as_was_said(tmp_path, owner):
    start = time.monotonic()
    with pytest.raises(HeldError, match=f"process {owner.pid} of .* holds .*x.lock"), file_lock(tmp_path / "x.lock", 1):
        pass
    assert 1.0 <= time.monotonic() - start < 5.0


@pytest.mark.parametrize("stopped", [False, True])
def test_a_dead_owner_holds_nothing(tmp_path, owner, stopped):
    if stopped:
        os.kill(owner.pid, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    assert (tmp_path / "x.lock").exists()  # what it left
    with file_lock(tmp_path / "x.lock", 0):
        assert (tmp_path / "x.lock").read_text().startswith(f"process {os.getpid()} of ")
    assert not (tmp_path / "x.lock").exists()


def test_one_at_a_time(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with file_lock(tmp_path / "x.lock", 60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "no" / "x.lock", 0):
        pass


def test_a_file_that_its_owner_has_removed_is_no_lock(tmp_path, monkeypatch):
    """It is opened, then its owner removes it and lets go: what is locked is a file that nobody else will open."""
    path, real, calls = tmp_path / "x.lock", fcntl.flock, []

    def late(descriptor, how):
        if not calls:
            path.unlink()
        calls.append(how)
        return real(descriptor, how)

    monkeypatch.setattr("trainer.worker.file_lock.fcntl.flock", late)
    with file_lock(path, 5.0):
        assert path.exists() and len(calls) == 2
