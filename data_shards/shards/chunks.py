"""Chunks of a data set as columns: some forty bytes each, checked at once, handed out one by one.

A chunk is the unit of reading and of order: consecutive records of a shard. A *sample* is what a model learns from: a
record, or each moment of a record whose labels have times.

Shapes: K chunks, S shards, C (split, part) columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np

MAX_CHUNK_BYTES = 1 << 30


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
    """

    first_S1: np.ndarray
    offset_K: np.ndarray
    length_K: np.ndarray
    records_K: np.ndarray
    crc32_K: np.ndarray
    parts_KC: np.ndarray
    samples_KC: np.ndarray
    total_K: np.ndarray

    def __len__(self) -> int:
        return len(self.offset_K)

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
        return Chunks(self, int(self.first_S1[number]), int(self.first_S1[number + 1]))

    @cached_property
    def shard_K(self) -> np.ndarray:  # noqa: N802
        """int64: the shard of each chunk."""
        return np.repeat(np.arange(len(self.first_S1) - 1), np.diff(self.first_S1))

    def sums(self, column_K: np.ndarray) -> np.ndarray:
        """int64 [S]: a column added up by shard."""
        ends = np.concatenate(([0], np.cumsum(column_K, dtype=np.int64)))
        added: np.ndarray = ends[self.first_S1[1:]] - ends[self.first_S1[:-1]]
        return added

    def problem(self, bytes_S: np.ndarray, records_S: np.ndarray) -> tuple[int, str] | None:
        """(shard, what is wrong with it) where numbers contradict each other; None if none do."""
        end_K = self.offset_K + self.length_K
        start_K = np.concatenate(([0], end_K[:-1]))[: len(self)]
        start_K[self.first_S1[:-1][np.diff(self.first_S1) > 0]] = 0
        wrong_K = (self.offset_K != start_K) | (self.length_K < 1) | (self.records_K < 1)
        if wrong_K.any():
            k = int(np.argmax(wrong_K))
            found = f"bytes {self.offset_K[k]}+{self.length_K[k]}, expected to start at {start_K[k]}"
            return self._at(k, f"{found} and to hold records")
        long_K = self.length_K > MAX_CHUNK_BYTES
        if long_K.any():
            k = int(np.argmax(long_K))
            return self._at(k, f"{self.length_K[k]} bytes, the limit is {MAX_CHUNK_BYTES}")
        parts, most = self.parts_KC, self.records_K[:, None]
        unfit_K = ((parts < 0) | (parts > most)).any(axis=1)
        if unfit_K.any():
            k = int(np.argmax(unfit_K))
            return self._at(k, f"counts per part {tuple(parts[k].tolist())} do not fit {self.records_K[k]} records")
        # Each record is at least one sample, and those of a part are some of all.
        unfit_K = (
            (self.samples_KC < parts) | (self.samples_KC - parts > (self.total_K - self.records_K)[:, None])
        ).any(1)
        unfit_K |= self.total_K < self.records_K
        if unfit_K.any():
            k = int(np.argmax(unfit_K))
            samples = f"samples {tuple(self.samples_KC[k].tolist())} of {self.total_K[k]}"
            return self._at(k, f"{samples} do not fit {self.records_K[k]} records")
        longest_S = np.zeros(len(bytes_S), np.int64)
        np.maximum.at(longest_S, self.shard_K, end_K)
        wrong_S = (longest_S > bytes_S) | (self.sums(self.records_K) != records_S)
        if wrong_S.any():
            s = int(np.argmax(wrong_S))
            return s, f"its chunks do not fit its {bytes_S[s]} bytes and {records_S[s]} records"
        return None

    def _at(self, chunk: int, words: str) -> tuple[int, str]:
        shard = int(self.shard_K[chunk])
        return shard, f"chunk {chunk - int(self.first_S1[shard])}: {words}"


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

    @property
    def longest(self) -> int:
        """Bytes of the largest chunk."""
        return int(self._table.length_K[self._start : self._end].max(initial=0))
