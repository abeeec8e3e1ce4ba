"""Cuts encoded records into chunks and shards, writes them, and collects what the manifest says about them.

Shapes: n records of a shard, k chunks of it, M modalities.
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
from data_shards.packing.sealed import Sealed, seal, tables_of_sealed
from data_shards.records.arrays import Limits
from data_shards.records.schema import RAGGED, DatasetSchema
from data_shards.records.statistics import Accumulator
from data_shards.records.vocabulary import Vocabulary
from data_shards.shards.head import Head, head_bytes, opened, table_file, tables_of
from data_shards.shards.index import NO_PART, ShardIndex
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import LENGTHS, Manifest, TableFile
from data_shards.shards.storage import Storage
from data_shards.shards.tar import ShardBuilder


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
        self._closed: list[Sealed] = []
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
        first_k, start_k = np.array(shard.bounds, np.int64).T
        sealed, files = seal(len(self._closed), data, end, index, first_k, start_k, len(self._columns))
        self._guard.confirm()
        for name, content in files.items():
            self._write(name, content)
        self._closed.append(sealed)

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
        shards, chunks = tables_of_sealed(self._closed, len(self._columns), self.schema.has_moments)
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
