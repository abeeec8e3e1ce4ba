"""Pack a source into shards. Records are read and encoded in parallel, shards are written in order, the manifest last.

The result does not depend on the number of processes: work units are merged in the source's order. On any error the
files written so far are removed, and there is no manifest.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.codec import Columns, Decoder, encode_record
from data_shards.index import ABSENT, ShardIndex, dump_index
from data_shards.layout import Limits
from data_shards.manifest import FILE, Chunk, Contents, IndexFile, Manifest, Shard
from data_shards.schema import DatasetSchema
from data_shards.statistics import TRAIN, Accumulator
from data_shards.storage import Storage
from data_shards.tar import ShardBuilder

if TYPE_CHECKING:
    from data_shards.sources import Source


@dataclass
class Encoded:
    """One record ready to be written."""

    key: str
    payload: bytes
    splits: dict[str, str]
    lengths_M: np.ndarray
    targets_W: np.ndarray
    observations: int


@dataclass
class Unit:
    """What one work unit of a source gives."""

    records: list[Encoded]
    notes: Counter[str]
    statistics: dict[str, Accumulator]


def encode_unit(source: Source, unit: Any) -> Unit:
    """Read, validate and encode the records of one work unit (runs in a worker process)."""
    schema, notes = source.schema, Counter[str]()
    decoder, records, train = Decoder(schema), list[Encoded](), dict[str, list[Columns]]()
    for record in source.read(unit, notes):
        payload = encode_record(record, schema)
        # Reading back what was just written costs little and makes an unreadable shard impossible.
        columns = decoder.columns(payload, record.key)
        for split, part in record.splits.items():
            train.setdefault(split, []).extend([columns] if part == TRAIN else [])
        lengths = columns.lengths(schema)
        records.append(Encoded(record.key, payload, record.splits, lengths, columns.targets_W, len(columns.times_O)))
    statistics = {split: Accumulator(schema) for split in train}
    for split, columns_list in train.items():
        statistics[split].add(columns_list)
    return Unit(records, notes, statistics)


def pack(
    source: Source,
    out_url: str,
    *,
    workers: int = 1,
    shard_bytes: int = 64 << 20,
    chunk_records: int = 64,
    chunk_bytes: int = 8 << 20,
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a data set and return a report.

    Args:
        source: where records come from (``data_shards.sources``).
        out_url: folder of the new data set.
        workers: processes that read and encode; 1 works in this process.
        shard_bytes: a shard is closed once it is at least this large.
        chunk_records, chunk_bytes: a chunk is closed at either limit.
        overwrite: replace a data set that is already there.

    Returns:
        url, records, observations, shards, chunks, bytes, seconds, digest, source (the source's own report).

    Raises:
        ValueError: a record that does not fit the schema, a key twice, no record at all, or a data set that is there.
        OSError: the bytes could not be stored.
    """
    begin = time.perf_counter()
    storage = Storage(out_url, storage_options)
    if not overwrite and storage.size(FILE) is not None:
        raise ValueError(f"{storage.url} already holds a packed data set; choose another folder or ask to overwrite it")
    old = set(storage.names()) if overwrite else set()
    writer = ShardSetWriter(storage, source.schema, shard_bytes, chunk_records, chunk_bytes)
    try:
        for unit in _encoded_units(source, workers):
            writer.add(unit)
        manifest = writer.finish(source)
        storage.write(FILE, manifest.to_json().encode())
    except BaseException as error:
        writer.discard()
        if isinstance(error, OSError):
            raise OSError(f"packing into {storage.url} stopped, nothing was kept: {error}") from error
        raise
    _remove_replaced(storage, old, writer.written)
    return {
        "url": storage.url,
        "records": manifest.records,
        "observations": manifest.observations,
        "shards": len(manifest.shards),
        "chunks": sum(len(shard.chunks) for shard in manifest.shards),
        "bytes": sum(shard.bytes + shard.index.bytes for shard in manifest.shards),
        "seconds": time.perf_counter() - begin,
        "digest": manifest.digest,
        "splits": manifest.splits,
        "source": manifest.source,
    }


def _remove_replaced(storage: Storage, old: set[str], written: list[str]) -> None:
    """Files of the data set that this one replaced; only names that a pack writes."""
    for name in old - set(written):
        if name.startswith("shard-") and name.endswith((".tar", ".index")):
            storage.delete(name)


def _encoded_units(source: Source, workers: int) -> Iterator[Unit]:
    """Encoded units in the source's order, at most a few in flight."""
    if workers <= 1:
        yield from (encode_unit(source, unit) for unit in source.units())
        return
    units = iter(source.units())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            waiting: list[Future[Unit]] = [pool.submit(encode_unit, source, unit) for unit in islice(units, 2 * workers)]
            while waiting:
                result = waiting.pop(0).result()
                waiting += [pool.submit(encode_unit, source, unit) for unit in islice(units, 1)]
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _OpenShard:
    builder: ShardBuilder = field(default_factory=ShardBuilder)
    rows: list[tuple[Encoded, int]] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)  # (first row, start byte) of each chunk


class ShardSetWriter:
    """Cuts encoded records into chunks and shards, and remembers what it wrote."""

    def __init__(
        self, storage: Storage, schema: DatasetSchema, shard_bytes: int, chunk_records: int, chunk_bytes: int
    ) -> None:
        if min(shard_bytes, chunk_records, chunk_bytes) < 1:
            raise ValueError(f"shard_bytes {shard_bytes}, chunk_records {chunk_records}, chunk_bytes {chunk_bytes}: all >= 1")
        self.storage, self.schema = storage, schema
        self.shard_bytes, self.chunk_records, self.chunk_bytes = shard_bytes, chunk_records, chunk_bytes
        self.written: list[str] = []
        self._open = _OpenShard()
        self._closed: list[tuple[Shard, np.ndarray]] = []
        self._columns: dict[tuple[str, str], int] = {}
        self._statistics: dict[str, Accumulator] = {}
        self._notes: Counter[str] = Counter()
        self._keys: set[str] = set()
        self._observations = 0

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
        parts = np.full((len(shard.rows), len(splits)), ABSENT, np.int16)
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
            np.stack([record.targets_W for record, _ in shard.rows]),
        )
        table = dump_index(index)
        self._write(f"{stem}.tar", data)
        self._write(f"{stem}.index", table)
        file = IndexFile(f"{stem}.index", len(table), hashlib.sha256(table).hexdigest())
        chunks = self._chunks(shard, data, end)
        self._closed.append((Shard(f"{stem}.tar", len(data), digest, len(shard.rows), file, chunks), parts))

    def _chunks(self, shard: _OpenShard, data: bytes, end: int) -> tuple[Chunk, ...]:
        chunks = []
        for (row, start), (next_row, stop) in zip(shard.bounds, [*shard.bounds[1:], (len(shard.rows), end)], strict=True):
            crc = zlib.crc32(memoryview(data)[start:stop])
            chunks.append(Chunk(start, stop - start, next_row - row, crc, ()))
        return tuple(chunks)

    def _write(self, name: str, data: bytes) -> None:
        self.written.append(name)
        self.storage.write(name, data)

    def finish(self, source: Source) -> Manifest:
        """Write what is left and return the manifest (not yet written)."""
        if self._open.rows:
            self._close()
        if not self._closed:
            raise ValueError(f"source {source.schema.name} gave no record; nothing to pack")
        splits: dict[str, dict[str, int]] = {}
        shards = [_with_parts(shard, parts, len(self._columns)) for shard, parts in self._closed]
        for (split, part), c in sorted(self._columns.items()):
            splits.setdefault(split, {})[part] = sum(chunk.parts[c] for shard in shards for chunk in shard.chunks)
        contents = Contents(
            schema=self.schema,
            source=source.report(self._notes),
            records=len(self._keys),
            observations=self._observations,
            columns=tuple(self._columns),
            splits=splits,
            shards=tuple(shards),
            statistics={split: a.summary() for split, a in sorted(self._statistics.items()) if a.records},
        )
        return Manifest.of(contents, self.storage)

    def discard(self) -> None:
        """Remove everything that was written."""
        for name in self.written:
            self.storage.delete(name)


def _with_parts(shard: Shard, parts_nS: np.ndarray, columns: int) -> Shard:
    """The shard with counts per (split, part) column in each chunk; columns are known only at the end."""
    from dataclasses import replace

    chunks, row = [], 0
    for chunk in shard.chunks:
        own = parts_nS[row : row + chunk.records]
        counts = np.bincount(own[own != ABSENT], minlength=columns)
        chunks.append(replace(chunk, parts=tuple(counts.tolist())))
        row += chunk.records
    return replace(shard, chunks=tuple(chunks))
