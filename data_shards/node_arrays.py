"""Arrays that all processes of a user on a node share: made once, by the first that asks, and mapped by everybody.

What is large and the same in every rank and every loader process (chunks of a data set, the order of an epoch) lies
in a file of a folder that belongs to the user alone, below the system's folder for temporary files. Pages that nobody
reads take no memory; those that are read take it once a node. A file is named by its key and by the boot of the
machine, as what a crash left half-written must never be believed. Whoever maps a file holds a shared lock on it, so
that what nobody holds any longer can be removed; the system lets go of the locks of processes that die.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 64
KEPT_S = 3600.0  # a file that nobody holds stays this long: the next process of a run may just be starting


class NodeArrays(dict[str, np.ndarray]):
    """Arrays by name, read-only views of a mapped file; to another process of the node its path travels."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            # Held as long as an array is in use: the mapping keeps a descriptor of this opening of the file.
            fcntl.flock(stream, fcntl.LOCK_SH)
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.path = path
        length = int.from_bytes(data[-8:], "little")
        for name, (kind, shape, start) in json.loads(data[-8 - length : -8]).items():
            count = int(np.prod(shape, dtype=np.int64))
            # By column, so that one of several lies together.
            self[name] = np.frombuffer(data, kind, count, start).reshape(shape, order="F")

    def __reduce__(self) -> tuple[Any, ...]:
        return NodeArrays, (self.path,)


def node_arrays(key: str, make: Callable[[], Mapping[str, np.ndarray]], folder: Path | None = None) -> NodeArrays:
    """The arrays of this key; `make` is called in one process of the node, while others wait for it.

    Args:
        key: what they are a function of. make: arrays by name; what it raises is raised here, and leaves nothing.
        folder: default: of this user, on this machine.

    Raises:
        OSError: the folder belongs to somebody else, or cannot be written; the disk is full.
    """
    folder = folder or _own_folder()
    path = folder / hashlib.sha256(f"{_boot()}\n{key}".encode()).hexdigest()[:40]
    with (folder / "making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            os.utime(path)
        else:
            _remove_unused(folder)
            _write(path, make())
        # Before the lock is let go: nobody takes the file for unused in between.
        return NodeArrays(path)


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A file that appears whole: data, a table of contents as JSON, and its length."""
    part = path.with_suffix(".part")  # of a process that has died while it held the lock, too
    try:
        with part.open("wb") as stream:
            contents = {}
            for name, array in arrays.items():
                stream.write(bytes(-stream.tell() % ALIGNMENT))
                contents[name] = (array.dtype.str, array.shape, stream.tell())
                stream.write(np.ascontiguousarray(array.T).data.cast("B") if array.size else b"")
            text = json.dumps(contents).encode()
            stream.write(text + len(text).to_bytes(8, "little"))
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        words = "data sets of millions of chunks are shared by a node's processes through it"
        raise OSError(error.errno, f"{path.parent}: {words}: {error.strerror}") from error


def _remove_unused(folder: Path) -> None:
    """What nobody has asked for lately, and no process has mapped."""
    for path in folder.iterdir():
        try:
            if path.suffix or time.time() - path.stat().st_mtime < KEPT_S:
                continue
            with path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:  # in use, or gone already
            continue


def _own_folder() -> Path:
    """Made for this user alone: whoever could write there could change what is trained on."""
    folder = Path(tempfile.gettempdir()) / f"fleximoe-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise OSError(f"{folder} belongs to another user, or others may write there: remove it, or set TMPDIR")
    return folder


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text("ascii").strip() if path.exists() else ""
