"""Folders for temporary files that outlive no one: what a process that was killed has left is removed by the next one.

Whoever uses one holds a lock in it, and the system lets go of the locks of processes that die. Only folders of the same
kind, user and machine are looked at; one without a lock was never finished, or is an earlier version's, and stays.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import tempfile
import weakref
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = "owner.lock"


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder, removed when it is closed, at the end of the process, or after its death.

    Args:
        kind: what it is for; with ``fleximoe-`` in front the name begins so.
        parent: default: the system's folder for temporary files.

    Raises:
        OSError: the parent is not there, or cannot be written to.
    """

    def __init__(self, kind: str, parent: Path | None = None) -> None:
        _remove_abandoned(Path(parent or tempfile.gettempdir()), f"fleximoe-{kind}-")
        super().__init__(prefix=f"fleximoe-{kind}-", dir=parent)
        part = Path(self.name) / f"{LOCK}.part"
        lock = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._held = weakref.finalize(self, os.close, lock)
        os.write(lock, socket.gethostname().encode())
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under its name once it is held: nobody finds it free in between.
        part.rename(part.with_name(LOCK))

    def cleanup(self) -> None:
        """Remove the folder."""
        self._held()
        super().cleanup()


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Folders whose owner has died on this machine."""
    for path in parent.glob(f"{prefix}*"):
        try:
            # Others may write into the parent. Of a link nothing is removed: `rmtree` refuses it.
            if path.lstat().st_uid != os.getuid():
                continue
            with (path / LOCK).open() as stream:
                if stream.read() != socket.gethostname():
                    continue
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
                logger.info("removed %s, which a process that was killed had left", path)
        except OSError:  # in use, without a lock, or gone already
            continue
