"""A local copy of remote shards, named by content: verified when stored, replaced atomically, bounded in size.

Several ranks of a host share the folder; a lock per shard makes one of them fetch while the others wait for the result.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.paths import absolute_path

if TYPE_CHECKING:
    from data_shards.shards.contents.shards import Shard
    from data_shards.shards.storage import Storage

_PIECE = 32 << 20


class ShardCache:
    """Whole shards in ``folder``, at most ``capacity`` bytes; least recently used ones leave first."""

    def __init__(self, folder: str, capacity: int) -> None:
        self.folder, self.capacity = absolute_path(folder), capacity

    def read(self, storage: Storage, shard: Shard, start: int, end: int) -> bytes | None:
        """Bytes [start, end) of the cached shard, fetched whole first; None if it does not fit or cannot be verified.

        Raises:
            OSError: the origin cannot be read, or the folder cannot be written.
        """
        if shard.bytes > self.capacity:
            return None
        path = self._path(shard)
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(shard):
                if not path.exists() and not self._fetch(storage, shard, path):
                    return None
        try:
            os.utime(path)
            with path.open("rb") as stream:
                stream.seek(start)
                return stream.read(end - start)
        except FileNotFoundError:  # another process made room in this moment
            return None

    def drop(self, shard: Shard) -> None:
        """Forget a shard (its copy turned out to be damaged)."""
        self._path(shard).unlink(missing_ok=True)

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    @contextmanager
    def _lock(self, shard: Shard) -> Iterator[None]:
        with (self.folder / f"{shard.sha256[:2]}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _fetch(self, storage: Storage, shard: Shard, path: Path) -> bool:
        """Copy the shard piece by piece; False if its SHA-256 is not the manifest's."""
        self._make_room(shard.bytes)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as stream:
                for start in range(0, shard.bytes, _PIECE):
                    piece = storage.read(shard.name, start, min(start + _PIECE, shard.bytes))
                    digest.update(piece)
                    stream.write(piece)
            if digest.hexdigest() != shard.sha256:
                return False
            temporary.replace(path)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        entries = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                entries.append((stat.st_mtime_ns, stat.st_size, path))
        held = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if held + wanted <= self.capacity:
                return
            path.unlink(missing_ok=True)
            held -= size
