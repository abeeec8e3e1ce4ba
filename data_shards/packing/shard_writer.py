"""Cuts encoded records into chunks and shards, writes them, and collects what the manifest says about them.

Shapes: n records of a shard, k chunks of it, C (split, part) columns known so far.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_shards.lease.lease import Guard
from data_shards.packing.encode import Encoded, Unit
from data_shards.records.arrays import Limits
from data_shards.records.schema import RAGGED, DatasetSchema
from data_shards.records.statistics import Accumulator
from data_shards.records.vocabulary import Vocabulary
from data_shards.shards.contents.chunks import ChunkTable
from data_shards.shards.contents.shards import IndexFile, Shard
from data_shards.shards.head import Head, head_bytes, opened, table_file, tables_of
from data_shards.shards.index import NO_PART, ShardIndex, dump_index
from data_shards.shards.manifest import LENGTHS, Lineage, Manifest, TableFile
from data_shards.shards.storage import Storage
from data_shards.shards.tar import ShardBuilder


@dataclass
class _OpenShard:
    builder: ShardBuilder = field(default_factory=ShardBuilder)
    rows: list[tuple[Encoded, int]] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)  # (first row, start byte) of each chunk


@dataclass
class _ClosedShard:
    """A shard that is written: its entry without its chunks, and those."""

    name: str
    bytes: int
    sha256: str
    records: int
    index: IndexFile
    chunks_k5: np.ndarray  # offset, length, records, CRC-32, samples
    parts_kC: np.ndarray
    samples_kC: np.ndarray


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
        self._closed: list[_ClosedShard] = []
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
        parts_nS = np.full((len(shard.rows), len(splits)), NO_PART, np.int16)
        for row, (record, _) in enumerate(shard.rows):
            for split, part in record.splits.items():
                parts_nS[row, splits.index(split)] = self._columns[split, part]
        digest = hashlib.sha256(data).hexdigest()
        stem = f"shard-{len(self._closed):05d}-{digest[:12]}"
        moments_n = np.array([record.samples for record, _ in shard.rows], np.int32)
        index = ShardIndex(
            np.array([start for _, start in shard.rows]),
            np.array([len(record.payload) for record, _ in shard.rows]),
            np.array([zlib.crc32(record.payload) for record, _ in shard.rows]),
            [record.key for record, _ in shard.rows],
            parts_nS,
            np.stack([record.lengths_M for record, _ in shard.rows]),
            np.stack([record.objects_M for record, _ in shard.rows]),
            moments_n,
            np.concatenate([record.targets_KW for record, _ in shard.rows]),
            np.array([record.group for record, _ in shard.rows], np.int64),
            np.concatenate([record.times_K for record, _ in shard.rows]),
            np.concatenate([record.knots_X for record, _ in shard.rows]),
        )
        table = dump_index(index)
        self._guard.confirm()
        self._write(f"{stem}.tar", data)
        self._write(f"{stem}.index", table)
        file = IndexFile(f"{stem}.index", len(table), hashlib.sha256(table).hexdigest())
        chunks = _chunks(shard, data, end, parts_nS, moments_n, len(self._columns))
        self._closed.append(_ClosedShard(f"{stem}.tar", len(data), digest, len(shard.rows), file, *chunks))

    def _write(self, name: str, data: bytes) -> None:
        self.written.append(name)
        self.storage.write(name, data)

    def finish(
        self, report: Callable[[Counter[str]], dict[str, Any]], vocabularies: Mapping[str, Vocabulary]
    ) -> tuple[Manifest, bytes]:
        """Write what is left, tables and vocabularies; return the manifest and the bytes of its head (not yet written).

        Args:
            report: turns the notes into plain data. vocabularies: of each modality of codes.
        """
        if self._open.rows:
            self._close()
        if not self._closed:
            raise ValueError(f"source {self.schema.name} gave no record; nothing to pack")
        shards, chunks = self._tables()
        splits: dict[str, dict[str, int]] = {}
        for (split, part), c in sorted(self._columns.items()):
            splits.setdefault(split, {})[part] = int(chunks.parts_KC[:, c].sum())
        statistics = {split: a for split, a in sorted(self._statistics.items()) if a.records}
        source = self._with_lengths(report(self._notes))
        tables, files = tables_of(shards, chunks, statistics, self.schema.has_moments)
        entries: dict[str, TableFile] = {}
        for name, vocabulary in vocabularies.items():
            data = vocabulary.to_bytes()
            entries[name] = table_file("vocabulary", data, vocabulary.rows)
            files[entries[name].name] = data
        self._guard.confirm()
        for file, data in files.items():
            self._write(file, data)
        head = Head(
            schema=self.schema,
            source=source,
            records=len(self._keys),
            samples=int(chunks.total_K.sum()),
            observations=self._observations,
            columns=tuple(self._columns),
            splits=splits,
            statistics={split: accumulator.summary() for split, accumulator in statistics.items()},
            tables=tables,
            vocabularies=entries,
            lineage=Lineage(),
        )
        text = head_bytes(head)
        return opened(head, hashlib.sha256(text).hexdigest(), shards, chunks, self.storage), text

    def _tables(self) -> tuple[tuple[Shard, ...], ChunkTable]:
        """All shards and chunks; of columns that came up later, early shards hold nothing."""
        width = len(self._columns)

        def whole(pieces: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([np.pad(piece, ((0, 0), (0, width - piece.shape[1]))) for piece in pieces])

        offset_K, length_K, records_K, crc32_K, total_K = np.concatenate([s.chunks_k5 for s in self._closed]).T
        parts_KC = whole([shard.parts_kC for shard in self._closed])
        samples = (whole([shard.samples_kC for shard in self._closed]), total_K) if self.schema.has_moments else None
        counts_S = np.array([len(shard.chunks_k5) for shard in self._closed])
        chunks = ChunkTable.of(counts_S, offset_K, length_K, records_K, crc32_K, parts_KC, samples)
        shards = [
            Shard(own.name, own.bytes, own.sha256, own.records, own.index, chunks.of_shard(number))
            for number, own in enumerate(self._closed)
        ]
        return tuple(shards), chunks

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


def _chunks(
    shard: _OpenShard, data: bytes, end: int, parts_nS: np.ndarray, moments_n: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [k, 5] of a shard's chunks; records and samples [k, C] of each (split, part) column in them."""
    first_k, start_k = np.array(shard.bounds, np.int64).T
    records_k = np.diff(first_k, append=len(shard.rows))
    length_k = np.diff(start_k, append=end)
    view = memoryview(data)
    crc32_k = [zlib.crc32(view[start : start + length]) for start, length in zip(start_k, length_k, strict=True)]
    samples_k = np.add.reduceat(moments_n, first_k, dtype=np.int64)
    chunk_n = np.repeat(np.arange(len(first_k)), records_k)
    parts_kC, samples_kC = (np.zeros((len(first_k), columns), np.int32) for _ in range(2))
    for part_n in parts_nS.T:
        there_n = part_n != NO_PART
        np.add.at(parts_kC, (chunk_n[there_n], part_n[there_n]), 1)
        np.add.at(samples_kC, (chunk_n[there_n], part_n[there_n]), moments_n[there_n])
    return np.stack((start_k, length_k, records_k, crc32_k, samples_k), axis=1).astype(np.int64), parts_kC, samples_kC
