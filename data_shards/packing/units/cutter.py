"""Where chunks and shards end: a function of the records' sizes in the source's order, and of nothing else.

A chunk is full when it has so many records, or when the next one would make it too large; a shard is closed behind the
record that makes it large enough. Whoever encodes or writes them, and however often it begins again, finds the same.

Shapes: n records of a unit, k chunks of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_shards.shards.tar import BLOCK


@dataclass(frozen=True)
class Sizes:
    """At what sizes shards and chunks are closed. Raises ValueError: less than 1."""

    shard_bytes: int
    chunk_records: int
    chunk_bytes: int

    def __post_init__(self) -> None:
        if min(self.shard_bytes, self.chunk_records, self.chunk_bytes) < 1:
            raise ValueError(
                f"shard_bytes {self.shard_bytes}, chunk_records {self.chunk_records}, chunk_bytes {self.chunk_bytes}: "
                "all >= 1"
            )


@dataclass(frozen=True)
class Piece:
    """Records [start, stop) of a unit."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class Cut:
    """A shard: the pieces that it consists of, and the first row of each of its chunks."""

    number: int
    pieces: tuple[Piece, ...]
    first_k: tuple[int, ...]


@dataclass
class _Open:
    """The shard that is being filled, and its last chunk."""

    pieces: list[Piece] = field(default_factory=list)
    first_k: list[int] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    chunk_rows: int = 0
    chunk_bytes: int = 0


class Cutter:
    """Takes units in order; what is left open goes on with the next one.

    Args:
        number: of the first shard.
    """

    def __init__(self, sizes: Sizes, number: int = 0) -> None:
        self.sizes, self.number = sizes, number
        self._open = _Open()

    def add(self, unit: int, size_n: np.ndarray, start: int = 0) -> list[Cut]:
        """Take in a unit's records from ``start`` on; the shards that are full now.

        Args:
            size_n: payload bytes of all records of the unit.
        """
        begin_n = np.concatenate(([0], np.cumsum(BLOCK + -(-size_n // BLOCK) * BLOCK)))
        # A record is put into a chunk if this, less the chunk's begin, is within the limit; it only grows.
        reach_n = begin_n[:-1] + size_n
        cuts, row, rows = list[Cut](), start, len(size_n)
        while row < rows:
            own = self._open
            room = self.sizes.chunk_bytes - own.chunk_bytes + int(begin_n[row])
            stop = min(
                int(np.searchsorted(reach_n, room, side="right")), row + self.sizes.chunk_records - own.chunk_rows
            )
            if own.chunk_rows == 0:
                stop = max(stop, row + 1)
                own.first_k.append(own.rows)
            elif stop <= row:
                own.chunk_rows = own.chunk_bytes = 0
                continue
            enough = self.sizes.shard_bytes - own.bytes + int(begin_n[row])
            last = int(np.searchsorted(begin_n[1:], enough, side="left")) + 1
            stop = min(stop, last, rows)
            self._take(unit, row, stop, int(begin_n[stop] - begin_n[row]))
            row = stop
            if stop == last:
                cuts += self.close()
        return cuts

    def _take(self, unit: int, start: int, stop: int, size: int) -> None:
        own = self._open
        if own.pieces and own.pieces[-1].unit == unit:
            own.pieces[-1] = Piece(unit, own.pieces[-1].start, stop)
        else:
            own.pieces.append(Piece(unit, start, stop))
        own.rows += stop - start
        own.chunk_rows += stop - start
        own.bytes += size
        own.chunk_bytes += size

    def close(self) -> list[Cut]:
        """The shard that is open, if it has records: after the last unit."""
        own, self._open = self._open, _Open()
        if not own.rows:
            return []
        self.number += 1
        return [Cut(self.number - 1, tuple(own.pieces), tuple(own.first_k))]
