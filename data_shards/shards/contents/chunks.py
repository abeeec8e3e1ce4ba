"""Chunks of a data set as columns: some forty bytes each, checked at once, handed out one by one.

A chunk is the unit of reading and of order: consecutive records of a shard. A *sample* is what a model learns from: a
record, or each moment of a record whose labels have times.

Of a data set with very many chunks the columns are shared by all processes of a node (`node_arrays`), and were checked
when they were made.

Shapes: K chunks, S shards, C (split, part) columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np

from data_shards.node_arrays import NodeArrays

MAX_CHUNK_BYTES = 1 << 30
_BLOCK = 1 << 16  # chunks that are checked at a time


class Chunk(NamedTuple):
    """Consecutive records of a shard.

    Attributes:
        offset, length: its bytes in the shard are [offset, offset + length).
        records: in it. crc32: of its bytes.
        parts: records of each (split, part) column. samples: the samples of those.
        total_samples: of all of its records, whatever splits say of them.
    """

    offset: int
    length: int
    records: int
    crc32: int
    parts: tuple[int, ...]
    samples: tuple[int, ...]
    total_samples: int


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """All chunks of a data set in storage order; columns of integers.

    Attributes:
        first_S1: number of each shard's first chunk, and the number of chunks.
        offset_K, length_K, records_K, crc32_K, parts_KC, samples_KC, total_K: as in `Chunk`. Without moments samples
            are records, and their columns are the same arrays.
        start_K: int64, number of each chunk's first record in the data set.
        shared: what they are views of, where processes of a node share them.
    """

    first_S1: np.ndarray
    offset_K: np.ndarray
    length_K: np.ndarray
    records_K: np.ndarray
    crc32_K: np.ndarray
    parts_KC: np.ndarray
    samples_KC: np.ndarray
    total_K: np.ndarray
    start_K: np.ndarray
    shared: NodeArrays | None = None

    @classmethod
    def of(
        cls,
        counts_S: np.ndarray,
        offset_K: np.ndarray,
        length_K: np.ndarray,
        records_K: np.ndarray,
        crc32_K: np.ndarray,
        parts_KC: np.ndarray,
        samples: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> ChunkTable:
        """From the number of chunks of each shard and the columns; `samples`, of each part and of all, where records
        have moments."""
        first_S1 = np.concatenate(([0], np.cumsum(counts_S, dtype=np.int64)))
        start_K = np.cumsum(records_K, dtype=np.int64)
        start_K -= records_K
        samples_KC, total_K = samples or (parts_KC, records_K)
        return cls(first_S1, offset_K, length_K, records_K, crc32_K, parts_KC, samples_KC, total_K, start_K)

    def arrays(self) -> dict[str, np.ndarray]:
        """Its columns by name, for `of_arrays`."""
        found = {name: getattr(self, name) for name in _COLUMNS}
        if self.samples_KC is self.parts_KC:
            del found["samples_KC"], found["total_K"]
        return found | {"sums": np.array(self.sums())}

    @classmethod
    def of_arrays(cls, shared: NodeArrays) -> ChunkTable:
        """From what processes of the node share."""
        own = {"samples_KC": shared["parts_KC"], "total_K": shared["records_K"]} | shared
        return cls(**{name: own[name] for name in _COLUMNS}, shared=shared)

    def __reduce__(self) -> tuple[Any, ...]:
        """Of shared columns only their place travels to another process."""
        if self.shared is not None:
            return ChunkTable.of_arrays, (self.shared,)
        return ChunkTable, tuple(getattr(self, name) for name in _COLUMNS)

    def __len__(self) -> int:
        return len(self.offset_K)

    def place(self, chunk: int) -> tuple[int, int]:
        """(shard, number within the shard) of a chunk."""
        shard = int(np.searchsorted(self.first_S1, chunk, side="right")) - 1
        return shard, chunk - int(self.first_S1[shard])

    def cut(self, shard: int) -> slice:
        """The chunks of a shard."""
        return slice(int(self.first_S1[shard]), int(self.first_S1[shard + 1]))

    def chunk(self, number: int) -> Chunk:
        """One of them."""
        parts = tuple(self.parts_KC[number].tolist())
        samples = parts if self.samples_KC is self.parts_KC else tuple(self.samples_KC[number].tolist())
        return Chunk(
            int(self.offset_K[number]),
            int(self.length_K[number]),
            int(self.records_K[number]),
            int(self.crc32_K[number]),
            parts,
            samples,
            int(self.total_K[number]),
        )

    def of_shard(self, number: int) -> Chunks:
        """The chunks of one shard."""
        own = self.cut(number)
        return Chunks(self, own.start, own.stop)

    def sums(self) -> list[int]:
        """Records, the records of each (split, part) column, and samples, of all chunks."""
        if self.shared is not None:
            kept: list[int] = self.shared["sums"].tolist()
            return kept
        columns = [self.records_K, *self.parts_KC.T, self.total_K]
        return [int(column_K.sum(dtype=np.int64)) for column_K in columns]

    def problem(self, bytes_S: np.ndarray, records_S: np.ndarray) -> tuple[int, str] | None:
        """(shard, what is wrong with it) where numbers contradict each other; None if none do."""
        for start in range(0, len(self), _BLOCK):
            found = self._problem_in(slice(start, min(start + _BLOCK, len(self))))
            if found is not None:
                return self._at(*found)
        # Chunks of a shard follow each other: the last one ends last.
        filled_S = np.diff(self.first_S1) > 0
        last_S = self.first_S1[1:][filled_S] - 1
        longest_S = np.zeros(len(bytes_S), np.int64)
        longest_S[filled_S] = self.offset_K[last_S] + self.length_K[last_S]
        # Where the next shard's records begin, less where its own do.
        before_S1 = np.full(len(self.first_S1), int(self.start_K[-1]) + int(self.records_K[-1]) if len(self) else 0)
        begun_S1 = self.first_S1 < len(self)
        before_S1[begun_S1] = self.start_K[self.first_S1[begun_S1]]
        wrong_S = (longest_S > bytes_S) | (np.diff(before_S1) != records_S)
        if wrong_S.any():
            s = int(np.argmax(wrong_S))
            return s, f"its chunks do not fit its {bytes_S[s]} bytes and {records_S[s]} records"
        return None

    def _problem_in(self, own: slice) -> tuple[int, str] | None:
        """(chunk, what is wrong with it) of some chunks: few enough to stay in the processor's cache meanwhile."""
        offset_K, length_K, records_K = self.offset_K[own], self.length_K[own], self.records_K[own]
        start_K, before = np.empty(len(offset_K), np.int64), own.start - 1
        start_K[0] = self.offset_K[before] + self.length_K[before] if own.start else 0
        np.add(offset_K[:-1], length_K[:-1], out=start_K[1:])
        first, last = np.searchsorted(self.first_S1, (own.start, own.stop)).tolist()
        start_K[self.first_S1[first:last] - own.start] = 0  # of each shard
        wrong_K = (offset_K != start_K) | (length_K < 1) | (records_K < 1)
        if wrong_K.any():
            k = int(np.argmax(wrong_K))
            found = f"bytes {offset_K[k]}+{length_K[k]}, expected to start at {start_K[k]}"
            return own.start + k, f"{found} and to hold records"
        if length_K.max() > MAX_CHUNK_BYTES:
            k = int(np.argmax(length_K > MAX_CHUNK_BYTES))
            return own.start + k, f"{length_K[k]} bytes, the limit is {MAX_CHUNK_BYTES}"
        parts_KC = self.parts_KC[own]
        unfit_K = np.zeros(len(offset_K), bool)
        for part_K in parts_KC.T:
            unfit_K |= (part_K < 0) | (part_K > records_K)
        if unfit_K.any():
            k = int(np.argmax(unfit_K))
            return own.start + k, f"counts per part {tuple(parts_KC[k].tolist())} do not fit {records_K[k]} records"
        return None if self.samples_KC is self.parts_KC else self._unfit_samples(own)

    def _unfit_samples(self, own: slice) -> tuple[int, str] | None:
        """As `_problem_in`: each record is at least one sample, and those of a part are some of all."""
        parts_KC, samples_KC = self.parts_KC[own], self.samples_KC[own]
        records_K, total_K = self.records_K[own], self.total_K[own]
        unfit_K = ((samples_KC < parts_KC) | (samples_KC - parts_KC > (total_K - records_K)[:, None])).any(1)
        unfit_K |= total_K < records_K
        if unfit_K.any():
            k = int(np.argmax(unfit_K))
            samples = f"samples {tuple(samples_KC[k].tolist())} of {total_K[k]}"
            return own.start + k, f"{samples} do not fit {records_K[k]} records"
        return None

    def _at(self, chunk: int, words: str) -> tuple[int, str]:
        shard, number = self.place(chunk)
        return shard, f"chunk {number}: {words}"


_COLUMNS = ("first_S1", "offset_K", "length_K", "records_K", "crc32_K", "parts_KC", "samples_KC", "total_K", "start_K")


class Chunks(Sequence[Chunk]):
    """Consecutive rows of a table."""

    def __init__(self, table: ChunkTable, start: int, end: int) -> None:
        self._table, self._start, self._end = table, start, end

    def __len__(self) -> int:
        return self._end - self._start

    @overload
    def __getitem__(self, number: int) -> Chunk: ...
    @overload
    def __getitem__(self, number: slice) -> Chunks: ...
    def __getitem__(self, number: int | slice) -> Chunk | Chunks:
        if isinstance(number, slice):
            start, end, step = number.indices(len(self))
            if step != 1:
                raise ValueError("chunks are taken in stretches")
            return Chunks(self._table, self._start + start, self._start + max(start, end))
        if not -len(self) <= number < len(self):
            raise IndexError(f"chunk {number} of {len(self)}")
        return self._table.chunk(self._start + number % len(self))

    def __iter__(self) -> Iterator[Chunk]:
        return (self._table.chunk(number) for number in range(self._start, self._end))
