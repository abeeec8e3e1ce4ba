"""Samples by (chunk, number): ranged reads of whole chunks, every byte checked, every loss counted.

A chunk is read with one request and its CRC-32 compared with the manifest; then tar headers, names and sizes are
compared with the shard's index and each record is decoded under the schema. With ``on_error: skip`` a damaged chunk
loses only the records whose own CRC-32 is wrong.

A sample is a record, or where tasks have labels at moments one moment of it: the record is then decoded once while its
chunk is in memory, and cut at each moment.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from data_shards.config import DataConfig
from data_shards.errors import RecordError, ShardError
from data_shards.records.codec import SUFFIX
from data_shards.records.columns import Columns, cut, samples_of
from data_shards.records.decoder import Decoder
from data_shards.records.knots import KNOTS
from data_shards.records.schema import DatasetSchema
from data_shards.shards.cache import ShardCache
from data_shards.shards.contents.chunks import Chunk
from data_shards.shards.contents.shards import Shard
from data_shards.shards.index import ShardIndex, load_index
from data_shards.shards.manifest import Manifest
from data_shards.shards.storage import Storage
from data_shards.shards.tar import BLOCK, members

logger = logging.getLogger(__name__)
_INDEXES = 64  # shard indexes kept in memory
_REQUESTS = 32  # to a storage that is not on this machine, at the same time


@dataclass
class LoadedChunk:
    """A chunk in memory.

    Attributes:
        data: its bytes, None if they could not be read.
        damage: what is wrong with it, None for nothing.
        index: of its shard, None if that could not be read.
        rows, moments: index row, and number of the moment, of the part's samples in this chunk.
        base: number in the data set of the index's row 0.
        decoded: records by index row, kept where they have several moments; views of ``data``.
    """

    data: memoryview | None
    damage: ShardError | None
    index: ShardIndex | None
    rows: list[int]
    moments: list[int]
    base: int
    decoded: dict[int, Columns] = field(default_factory=dict)


class Reader:
    """Reads samples of one (split, part) of a data set, or all of them.

    Args:
        manifest: an opened data set. config: limits, retries, what to do on damage. part: e.g. ``train``; None = every
            record, whatever the split says of it.
    """

    def __init__(self, manifest: Manifest, config: DataConfig, part: str | None) -> None:
        self.manifest, self.config = manifest, config
        self.storage = manifest.storage.with_retries(config.retries, config.retry_delay_s)
        self.column = None if part is None else manifest.column(config.split, part)
        self.decoder = Decoder(manifest.schema)
        self.cache = ShardCache(config.cache_dir, config.cache_bytes) if config.cache_dir else None
        self._place = lru_cache(maxsize=1024)(self._find)
        self._chunks: OrderedDict[int, LoadedChunk] = OrderedDict()
        self.held_bytes = 0  # of chunks in memory
        self._indexes: OrderedDict[int, ShardIndex | ShardError] = OrderedDict()

    @property
    def io(self) -> Counter[str]:
        """Reads, bytes and retries of storage so far."""
        return self.storage.counts

    def read(self, chunk_N: np.ndarray, ordinal_N: np.ndarray) -> tuple[list[Columns], np.ndarray, Counter[str]]:
        """Samples of the entries, in their order: records, as they are known at their moments.

        Returns:
            samples, the numbers of their records in the data set (int64), and the samples skipped per reason.

        Raises:
            ShardError: damage, if ``on_error`` is ``raise``.
        """
        records, numbers, skipped = [], [], Counter[str]()
        self._load_together(np.unique(chunk_N).tolist())
        for chunk, ordinal in zip(chunk_N.tolist(), ordinal_N.tolist(), strict=True):
            try:
                record, number = self._record(chunk, ordinal)
            except ShardError as error:
                if self.config.on_error == "raise":
                    raise
                logger.warning("skipped a record: %s", error)
                skipped[error.reason] += 1
                continue
            records.append(record)
            numbers.append(number)
        return records, np.array(numbers, np.int64), skipped

    def _record(self, chunk: int, ordinal: int) -> tuple[Columns, int]:
        loaded = self._load(chunk)
        index, data, damage = loaded.index, loaded.data, loaded.damage
        # With on_error=skip a damaged chunk is read on record by record: most of them may be whole.
        if damage is not None and (index is None or data is None or self.config.on_error == "raise"):
            raise damage
        assert index is not None and data is not None, "a chunk without damage has both"
        row = loaded.rows[ordinal]
        record = loaded.decoded.get(row)
        if record is None:
            record = self._decode(chunk, loaded, row)
            if int(index.moments_n[row]) > 1:
                loaded.decoded[row] = record
        return cut(record, self.manifest.schema, loaded.moments[ordinal]), loaded.base + row

    def _decode(self, chunk: int, loaded: LoadedChunk, row: int) -> Columns:
        index, data = loaded.index, loaded.data
        assert index is not None and data is not None, "only what was read is decoded"
        shard, number, entry = self._place(chunk)
        start, size, key = int(index.start_n[row]), int(index.size_n[row]), index.keys[row]
        # A view, like the arrays decoded from it: bytes are copied when a batch is packed.
        payload = data[start - entry.offset : start - entry.offset + size]
        # The chunk's CRC-32 covers all of it; only where that was wrong has each record to prove itself.
        if loaded.damage is not None and zlib.crc32(payload) != int(index.crc_n[row]):
            raise ShardError(
                shard.name,
                f"record {key}: wrong CRC-32",
                chunk=number,
                start=start,
                end=start + size,
                reason="checksum",
            )
        try:
            record = self.decoder.columns(payload, key)
            if samples_of(record) != int(index.moments_n[row]):
                raise RecordError(f"holds {samples_of(record)} moments, the index says {int(index.moments_n[row])}")
            return record
        except RecordError as error:
            raise ShardError(
                shard.name, f"record {key}: {error}", chunk=number, start=start, end=start + size, reason=error.reason
            ) from error

    def _find(self, chunk: int) -> tuple[Shard, int, Chunk]:
        shard_number, number = self.manifest.chunks.place(chunk)
        return self.manifest.shards[shard_number], number, self.manifest.chunks.chunk(chunk)

    def _load_together(self, chunks: list[int]) -> None:
        """What is not in memory of a step's chunks, asked for at once: far away each request waits, however small."""
        missing = [chunk for chunk in chunks if chunk not in self._chunks]
        if len(missing) < 2 or self.storage.scheme in ("file", "memory"):
            return
        for chunk in chunks:
            if chunk in self._chunks:
                self._chunks.move_to_end(chunk)
        sizes = self.manifest.chunks.length_K[missing].astype(np.int64).cumsum()
        missing = missing[: int(np.searchsorted(sizes, self.config.memory_bytes, side="right"))]
        shards = [self.manifest.chunks.place(chunk)[0] for chunk in missing]
        wanted = [number for number in dict.fromkeys(shards) if number not in self._indexes]
        with ThreadPoolExecutor(_REQUESTS) as threads:
            self._indexes.update(zip(wanted, threads.map(self._read_index, wanted), strict=True))
            indexes = [self._indexes[number] for number in shards]
            for chunk, loaded in zip(missing, threads.map(self._fetch, missing, indexes), strict=True):
                self._keep(chunk, loaded)
        while len(self._indexes) > _INDEXES:
            self._indexes.popitem(last=False)

    def _load(self, chunk: int) -> LoadedChunk:
        """The chunk from memory, or read and checked."""
        if chunk in self._chunks:
            self._chunks.move_to_end(chunk)
            return self._chunks[chunk]
        loaded = self._fetch(chunk, self._index(self.manifest.chunks.place(chunk)[0]))
        self._keep(chunk, loaded)
        return loaded

    def _keep(self, chunk: int, loaded: LoadedChunk) -> None:
        """Also if it could not be read: its other records do not ask storage again. Those unused for long make room."""
        self._chunks[chunk] = loaded
        self.held_bytes += len(loaded.data or b"")
        # One chunk stays, however large: the next record is likely to be in it.
        while self.held_bytes > self.config.memory_bytes and len(self._chunks) > 1:
            _, oldest = self._chunks.popitem(last=False)
            self.held_bytes -= len(oldest.data or b"")

    def _fetch(self, chunk: int, index: ShardIndex | ShardError) -> LoadedChunk:
        shard, number, entry = self._place(chunk)
        if isinstance(index, ShardError):
            # Without its index nobody knows the chunk's records: each of them reports this damage.
            return LoadedChunk(None, index, None, [], [], 0)
        start_K = self.manifest.chunks.start_K
        first = int(start_K[chunk] - start_K[chunk - number])
        row_X = np.arange(first, first + entry.records)
        if self.column is not None:
            row_X = row_X[index.members(self.column, first, first + entry.records)]
        rows, moments = (column.tolist() for column in _samples(row_X, index.moments_n[row_X]))
        # Rows count within the shard, numbers within the data set.
        base = int(start_K[chunk]) - first
        end = entry.offset + entry.length
        place: dict[str, int] = {"chunk": number, "start": entry.offset, "end": end}
        try:
            data = memoryview(self._bytes(shard, entry))
        except EOFError as error:
            damage = ShardError(shard.name, f"cut short: {error}", reason="truncated", **place)  # type: ignore[arg-type]
            return LoadedChunk(None, damage, index, rows, moments, base)
        except OSError as error:
            damage = ShardError(shard.name, f"cannot be read: {error}", reason="unreadable", **place)  # type: ignore[arg-type]
            return LoadedChunk(None, damage, index, rows, moments, base)
        problem = chunk_problem(data, entry, index, first)
        found = ShardError(shard.name, problem[0], reason=problem[1], **place) if problem else None  # type: ignore[arg-type]
        return LoadedChunk(data, found, index, rows, moments, base)

    def _bytes(self, shard: Shard, entry: Chunk) -> bytes:
        """The chunk's bytes; a wrong CRC-32 is read once more, from the origin, before it is believed."""
        end = entry.offset + entry.length
        # A copy of a file on this machine would be no nearer than the file.
        if self.cache is not None and self.storage.scheme != "file":
            data = self.cache.read(self.storage, shard, entry.offset, end)
            if data is not None and zlib.crc32(data) == entry.crc32:
                return data
            # The copy on this disk is wrong, or not there: the origin decides.
            self.cache.drop(shard)
        data = self.storage.read(shard.name, entry.offset, end)
        if zlib.crc32(data) != entry.crc32:
            # Bytes may have been hurt on the way; what is damaged at the origin looks the same twice.
            data = self.storage.read(shard.name, entry.offset, end)
        return data

    def _read_index(self, shard_number: int) -> ShardIndex | ShardError:
        try:
            return read_index(self.manifest, shard_number, self.storage)
        except ShardError as error:
            return error

    def _index(self, shard_number: int) -> ShardIndex | ShardError:
        """The shard's index; a failure is remembered, so that it is not tried again for every record."""
        found = self._indexes.get(shard_number)
        if found is None:
            found = self._indexes[shard_number] = self._read_index(shard_number)
        self._indexes.move_to_end(shard_number)
        while len(self._indexes) > _INDEXES:
            self._indexes.popitem(last=False)
        return found


def _samples(row_X: np.ndarray, moments_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, number of the moment) of each sample of some rows."""
    start_X = np.cumsum(moments_X, dtype=np.int64) - moments_X
    return np.repeat(row_X, moments_X), np.arange(int(moments_X.sum())) - np.repeat(start_X, moments_X)


def chunk_problem(data: memoryview, entry: Chunk, index: ShardIndex, row: int) -> tuple[str, str] | None:
    """(what, reason) if a chunk is not exactly what manifest and index say; ``row`` is its first index row."""
    crc, end = zlib.crc32(data), row + entry.records
    # Members before the CRC-32: they say where it is wrong.
    try:
        for name, start, size in members(data):
            if row == end:  # the index's next row is another chunk's
                raise RecordError(f"holds more than the {entry.records} records of the manifest", "tar")
            wanted = (index.keys[row] + SUFFIX, int(index.start_n[row]), int(index.size_n[row]))
            if (name, entry.offset + start, size) != wanted:
                raise RecordError(f"member {name} ({size} bytes) where the index has {wanted[0]} ({wanted[2]})", "tar")
            row += 1
    except RecordError as error:
        return str(error) + ("" if crc == entry.crc32 else "; the CRC-32 is wrong too"), error.reason
    if row != end:
        return f"holds {entry.records - end + row} records, the manifest says {entry.records}", "tar"
    if crc != entry.crc32:
        return f"CRC-32 {crc:#010x}, the manifest says {entry.crc32:#010x}", "checksum"
    return None


def read_index(manifest: Manifest, shard_number: int, storage: Storage | None = None) -> ShardIndex:
    """Load and verify the index of one shard.

    Raises:
        ShardError: it cannot be read, or is not the file that the manifest names.
    """
    shard = manifest.shards[shard_number]
    file, schema = shard.index, manifest.schema
    try:
        data = (storage or manifest.storage).read(file.name, 0, file.bytes)
    except EOFError as error:
        raise ShardError(file.name, f"the index is cut short: {error}", reason="truncated") from error
    except OSError as error:
        raise ShardError(file.name, f"the index cannot be read: {error}") from error
    # Before it is parsed: everything below trusts these rows.
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise ShardError(file.name, "the index has another SHA-256 than the manifest says", reason="checksum")
    width = schema.target_offsets[-1]
    try:
        index = load_index(data, shard.records, len(manifest.splits), len(schema.modalities), width)
    except (RecordError, ValueError) as error:
        raise ShardError(file.name, f"the index is malformed: {error}", reason="layout") from error
    _check_ranges(index, shard)
    _check_moments(index, schema, file.name)
    return index


def _check_moments(index: ShardIndex, schema: DatasetSchema, name: str) -> None:
    """Without labels at moments a record is one sample; with them everything is there that says what a moment sees."""
    problem = None
    if not schema.has_moments and (index.moments_n != 1).any():
        problem = "a record has several samples, and no task has labels at moments"
    elif schema.has_moments and len(index.times_K) != len(index.targets_KW):
        problem = f"{len(index.times_K)} times for {len(index.targets_KW)} samples"
    elif schema.has_moments and len(index.knots_X) != int(np.minimum(index.timed_rows(schema), KNOTS).sum()):
        problem = f"{len(index.knots_X)} times of rows do not fit the records' lengths"
    if problem:
        raise ShardError(name, f"the index contradicts itself: {problem}", reason="layout")


def _check_ranges(index: ShardIndex, shard: Shard) -> None:
    """Records must lie inside their chunks and parts must add up; otherwise slices would silently be short."""
    row = 0
    for number, chunk in enumerate(shard.chunks):
        cut = slice(row, row + chunk.records)
        start, size = index.start_n[cut], index.size_n[cut]
        if (
            (size < 0).any()
            or (start < chunk.offset + BLOCK).any()  # a header stands before each payload
            or (start + size > chunk.offset + chunk.length).any()
        ):
            raise ShardError(shard.index.name, "a record lies outside its chunk", chunk=number, reason="layout")
        # Columns are numbered over all splits, so all of them are counted at once; -1 is none.
        own = index.parts_nS[cut]
        samples = np.broadcast_to(index.moments_n[cut, None], own.shape)[own >= 0]
        found = (np.bincount(own[own >= 0], weights, len(chunk.parts)) for weights in (None, samples))
        total = int(index.moments_n[cut].sum(dtype=np.int64))
        if not all(map(np.array_equal, found, (chunk.parts, chunk.samples))) or total != chunk.total_samples:
            raise ShardError(
                shard.index.name, "counts per part differ from the manifest", chunk=number, reason="layout"
            )
        row += chunk.records
