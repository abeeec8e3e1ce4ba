"""What a process that was killed has left is removed by the next one of its kind; nobody else's folder ever is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.scratch import LOCK, Scratch

KILLED = """
import os, signal, sys
from pathlib import Path
from data_shards.scratch import Scratch
own = Scratch("rows", Path(sys.argv[1]))
Path(own.name, "0.run").write_bytes(b"rows")
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(parent: Path) -> Path:
    """A folder whose owner was killed."""
    before = set(parent.iterdir())
    ended = subprocess.run([sys.executable, "-c", KILLED, str(parent)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = set(parent.iterdir()) - before
    assert {path.name for path in left.iterdir()} == {LOCK, "0.run"}
    return left


def test_of_a_killed_process(tmp_path: Path) -> None:
    left = killed(tmp_path)
    with Scratch("units", tmp_path):  # another kind
        assert left.exists()
    with Scratch("rows", tmp_path) as own:
        assert {path.name for path in tmp_path.iterdir()} == {Path(own).name} != {left.name}
    assert not list(tmp_path.iterdir())


def test_folders_that_are_not_abandoned_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, unfinished = tmp_path / "fleximoe-rows-link", tmp_path / "fleximoe-rows-unfinished"
    link.symlink_to(killed(tmp_path).rename(tmp_path / "mine"))
    unfinished.mkdir()
    kept = {link, unfinished, tmp_path / "mine"}
    with Scratch("rows", tmp_path) as live, Scratch("rows", tmp_path) as other:
        assert set(tmp_path.iterdir()) == kept | {Path(live), Path(other)}
    left = killed(tmp_path)
    for name, changed in (("gethostname", lambda: "elsewhere"), ("getuid", lambda: 12345)):
        with monkeypatch.context() as patch:
            patch.setattr("socket.gethostname" if name == "gethostname" else "os.getuid", changed)
            with Scratch("rows", tmp_path):
                assert left.exists()
    with Scratch("rows", tmp_path):
        assert not left.exists()
    assert set(tmp_path.iterdir()) == kept
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {LOCK, "0.run"}
