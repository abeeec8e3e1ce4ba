"""Cuts encoded records into chunks and shards, writes them, and collects what the manifest says about them."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_shards.lease.lease import Guard
from data_shards.records.arrays import Limits
from data_shards.records.schema import RAGGED, DatasetSchema
from data_shards.records.statistics import Accumulator
from data_shards.shards.index import NO_PART, ShardIndex, dump_index
from data_shards.shards.manifest import LENGTHS, Chunk, Contents, IndexFile, Manifest, Shard
from data_shards.shards.storage import Storage
from data_shards.shards.tar import ShardBuilder


@dataclass
class Encoded:
    """One record ready to be written."""

    key: str
    payload: bytes
    splits: dict[str, str]
    lengths_M: np.ndarray
    objects_M: np.ndarray
    targets_KW: np.ndarray
    observations: int
    group: int = 0


@dataclass
class Unit:
    """What one work unit of a source gives."""

    records: list[Encoded]
    notes: Counter[str]
    statistics: dict[str, Accumulator]


@dataclass
class _OpenShard:
    builder: ShardBuilder = field(default_factory=ShardBuilder)
    rows: list[tuple[Encoded, int]] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)  # (first row, start byte) of each chunk


class ShardSetWriter:
    """Cuts encoded records into chunks and shards, and remembers what it wrote."""

    def __init__(
        self,
        storage: Storage,
        schema: DatasetSchema,
        shard_bytes: int,
        chunk_records: int,
        chunk_bytes: int,
        guard: Guard,
    ) -> None:
        if min(shard_bytes, chunk_records, chunk_bytes) < 1:
            raise ValueError(
                f"shard_bytes {shard_bytes}, chunk_records {chunk_records}, chunk_bytes {chunk_bytes}: all >= 1"
            )
        self.storage, self.schema = storage, schema
        self.shard_bytes, self.chunk_records, self.chunk_bytes = shard_bytes, chunk_records, chunk_bytes
        self._guard = guard
        self.written: list[str] = []
        self._open = _OpenShard()
        self._closed: list[tuple[Shard, np.ndarray]] = []
        self._columns: dict[tuple[str, str], int] = {}
        self._statistics: dict[str, Accumulator] = {}
        self._notes: Counter[str] = Counter()
        self._keys: set[str] = set()
        self._observations = 0
        self._longest: np.ndarray = np.zeros(len(schema.modalities), np.int64)
        self._total: np.ndarray = np.zeros(len(schema.modalities), np.int64)

    def add(self, unit: Unit) -> None:
        """Take in one unit; writes every shard that it fills."""
        self._notes += unit.notes
        for split, accumulator in unit.statistics.items():
            if split in self._statistics:
                self._statistics[split].merge(accumulator)
            else:
                self._statistics[split] = accumulator
        for record in unit.records:
            self._add_record(record)

    def _add_record(self, record: Encoded) -> None:
        if record.key in self._keys:
            raise ValueError(f"record key {record.key!r} occurs twice; keys must be unique in the data set")
        if len(record.payload) > Limits().member_bytes:
            raise ValueError(f"record {record.key} has {len(record.payload)} bytes, at most {Limits().member_bytes}")
        self._keys.add(record.key)
        self._observations += record.observations
        lengths_M = np.maximum(record.lengths_M, 0)  # nothing where a modality is absent
        np.maximum(self._longest, lengths_M, out=self._longest)
        self._total += lengths_M
        for pair in sorted(record.splits.items()):
            self._columns.setdefault(pair, len(self._columns))
        shard = self._open
        if not shard.bounds or self._chunk_full(shard, len(record.payload)):
            shard.bounds.append((len(shard.rows), shard.builder.size))
        _, start = shard.builder.add(record.key, record.payload)
        shard.rows.append((record, start))
        if shard.builder.size >= self.shard_bytes:
            self._close()

    def _chunk_full(self, shard: _OpenShard, more: int) -> bool:
        row, start = shard.bounds[-1]
        return len(shard.rows) - row >= self.chunk_records or shard.builder.size - start + more > self.chunk_bytes

    def _close(self) -> None:
        """Write the open shard and its index, under names that carry their content's digest."""
        shard, self._open = self._open, _OpenShard()
        end = shard.builder.size
        data = shard.builder.finish()
        splits = sorted({split for split, _ in self._columns})
        parts = np.full((len(shard.rows), len(splits)), NO_PART, np.int16)
        for row, (record, _) in enumerate(shard.rows):
            for split, part in record.splits.items():
                parts[row, splits.index(split)] = self._columns[split, part]
        digest = hashlib.sha256(data).hexdigest()
        stem = f"shard-{len(self._closed):05d}-{digest[:12]}"
        index = ShardIndex(
            np.array([start for _, start in shard.rows]),
            np.array([len(record.payload) for record, _ in shard.rows]),
            np.array([zlib.crc32(record.payload) for record, _ in shard.rows]),
            [record.key for record, _ in shard.rows],
            parts,
            np.stack([record.lengths_M for record, _ in shard.rows]),
            np.stack([record.objects_M for record, _ in shard.rows]),
            np.array([len(record.targets_KW) for record, _ in shard.rows], np.int32),
            np.concatenate([record.targets_KW for record, _ in shard.rows]),
            np.array([record.group for record, _ in shard.rows], np.int64),
        )
        table = dump_index(index)
        self._guard.confirm()
        self._write(f"{stem}.tar", data)
        self._write(f"{stem}.index", table)
        file = IndexFile(f"{stem}.index", len(table), hashlib.sha256(table).hexdigest())
        chunks = self._chunks(shard, data, end)
        self._closed.append((Shard(f"{stem}.tar", len(data), digest, len(shard.rows), file, chunks), parts))

    def _chunks(self, shard: _OpenShard, data: bytes, end: int) -> tuple[Chunk, ...]:
        chunks = []
        for (row, start), (next_row, stop) in zip(
            shard.bounds, [*shard.bounds[1:], (len(shard.rows), end)], strict=True
        ):
            crc = zlib.crc32(memoryview(data)[start:stop])
            chunks.append(Chunk(start, stop - start, next_row - row, crc, ()))
        return tuple(chunks)

    def _write(self, name: str, data: bytes) -> None:
        self.written.append(name)
        self.storage.write(name, data)

    def finish(self, report: Callable[[Counter[str]], dict[str, Any]]) -> Manifest:
        """Write what is left and return the manifest (not yet written); ``report`` turns the notes into plain data."""
        if self._open.rows:
            self._close()
        if not self._closed:
            raise ValueError(f"source {self.schema.name} gave no record; nothing to pack")
        splits: dict[str, dict[str, int]] = {}
        shards = [_with_parts(shard, parts, len(self._columns)) for shard, parts in self._closed]
        for (split, part), c in sorted(self._columns.items()):
            splits.setdefault(split, {})[part] = sum(chunk.parts[c] for shard in shards for chunk in shard.chunks)
        contents = Contents(
            schema=self.schema,
            source=self._with_lengths(report(self._notes)),
            records=len(self._keys),
            observations=self._observations,
            columns=tuple(self._columns),
            splits=splits,
            shards=tuple(shards),
            statistics={split: a.summary() for split, a in sorted(self._statistics.items()) if a.records},
        )
        return Manifest.of(contents, self.storage)

    def _with_lengths(self, report: dict[str, Any]) -> dict[str, Any]:
        """The report with real lengths of what may be of any length. Raises ValueError: it has such an entry itself."""
        if LENGTHS in report:
            raise ValueError(
                f"source {self.schema.name}: its report has an entry {LENGTHS!r}, which pack writes itself"
            )
        sizes = zip(self.schema.modalities, self._longest.tolist(), self._total.tolist(), strict=True)
        lengths = {
            spec.name: {"longest": longest, "total": total} for spec, longest, total in sizes if spec.kind in RAGGED
        }
        return {**report, LENGTHS: lengths} if lengths else report

    def discard(self, keep: set[str]) -> list[str]:
        """Remove everything that was written, but not files of ``keep``; returns what could not be removed."""
        left = []
        for name in set(self.written) - keep:
            try:
                self.storage.delete(name)
            except OSError:
                left.append(name)
        return sorted(left)


def _with_parts(shard: Shard, parts_nS: np.ndarray, columns: int) -> Shard:
    """The shard with counts per (split, part) column in each chunk; columns are known only at the end."""
    chunks, row = [], 0
    for chunk in shard.chunks:
        own = parts_nS[row : row + chunk.records]
        counts = np.bincount(own[own != NO_PART], minlength=columns)
        chunks.append(replace(chunk, parts=tuple(counts.tolist())))
        row += chunk.records
    return replace(shard, chunks=tuple(chunks))
