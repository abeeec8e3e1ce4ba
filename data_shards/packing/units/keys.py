"""Whether keys are unique, of any number of records in bounded memory: hashes in sorted runs on disk.

64 bits of hash and the number of the shard are kept a record (12 bytes). Runs are compared range by range of the hash,
so that one range fits into memory; equal hashes of different keys are told apart by the shards' indices.

Shapes: N entries.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_shards.packing.units.encoded import key_hashes
from data_shards.scratch import Scratch

RUN = 1 << 20
"""Entries of a run, and of a range: 12 MiB."""
_ALL = 1 << 64


class KeyCheck:
    """All keys of a pack. A context manager: its runs are removed at the end.

    Args:
        run: entries that are held in memory.
    """

    def __init__(self, run: int = RUN) -> None:
        self.run = run
        self._folder = Scratch("keys")
        self._runs: list[tuple[Path, int]] = []
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waits = 0
        self.records = 0

    def __enter__(self) -> KeyCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, hash_N: np.ndarray, shard: int) -> None:
        """Take in the keys of some records of a shard."""
        self._waiting.append((hash_N.copy(), np.full(len(hash_N), shard, np.uint32)))
        self._waits += len(hash_N)
        self.records += len(hash_N)
        if self._waits >= self.run:
            self._write()

    def forget(self) -> None:
        """Begin anew."""
        for path, _ in self._runs:
            path.unlink()
        self._runs, self._waiting = [], []
        self._waits = self.records = 0

    def _write(self) -> None:
        hash_N, shard_N = _sorted(self._waiting)
        self._waiting, self._waits = [], 0
        path = Path(self._folder.name) / f"{len(self._runs)}.run"
        with path.open("wb") as stream:
            hash_N.tofile(stream)
            shard_N.tofile(stream)
        self._runs.append((path, len(hash_N)))

    def twice(self, keys_of: Callable[[int], list[str]]) -> tuple[str, int, int] | None:
        """(key, shard, shard) of the first key that occurs twice, in the order of hashes; None if all are unique.

        Args:
            keys_of: keys of a shard. It is asked only where hashes are equal.
        """
        if self._waits:
            self._write()
        ranges = max(1, -(-self.records // self.run))
        for number in range(ranges):
            low, high = number * _ALL // ranges, (number + 1) * _ALL // ranges - 1
            hash_N, shard_N = _sorted([_between(path, rows, low, high) for path, rows in self._runs])
            equal_N = hash_N[1:] == hash_N[:-1]
            for hash_ in np.unique(hash_N[1:][equal_N]):
                found = _same_key(hash_, np.unique(shard_N[hash_N == hash_]).tolist(), keys_of)
                if found is not None:
                    return found
        return None


def _sorted(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes in ascending order, and their shards."""
    hash_N = np.concatenate([np.empty(0, np.uint64), *(piece[0] for piece in pieces)])
    shard_N = np.concatenate([np.empty(0, np.uint32), *(piece[1] for piece in pieces)])
    order_N = np.argsort(hash_N, kind="stable")
    return hash_N[order_N], shard_N[order_N]


def _between(path: Path, rows: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """The entries of a run with low <= hash <= high; of the file only those pages are read."""
    hash_N = np.memmap(path, np.uint64, mode="r", shape=(rows,))
    shard_N = np.memmap(path, np.uint32, mode="r", offset=8 * rows, shape=(rows,))
    start = int(np.searchsorted(hash_N, np.uint64(low), side="left"))
    stop = int(np.searchsorted(hash_N, np.uint64(high), side="right"))
    return np.array(hash_N[start:stop]), np.array(shard_N[start:stop])


def _same_key(hash_: np.uint64, shards: list[int], keys_of: Callable[[int], list[str]]) -> tuple[str, int, int] | None:
    """The first key with this hash that these shards hold twice."""
    found: dict[str, int] = {}
    for shard in shards:
        keys = keys_of(shard)
        for row in np.flatnonzero(key_hashes(keys) == hash_).tolist():
            if keys[row] in found:
                return keys[row], found[keys[row]], shard
            found[keys[row]] = shard
    return None
