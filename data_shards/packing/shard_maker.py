"""One shard of a data set that is made from another one: its records rewritten, its files stored.

Shapes: n records of a shard, k chunks of it.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_shards.errors import RecordError, ShardError
from data_shards.packing.journal import Entry
from data_shards.packing.rewrite import encode_columns
from data_shards.packing.sealed import Sealed, seal
from data_shards.records.arrays import Limits, load_tensors
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.schema import DatasetSchema
from data_shards.records.statistics import TRAIN, Accumulator
from data_shards.shards.contents.chunks import MAX_CHUNK_BYTES
from data_shards.shards.index import ShardIndex, load_index
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import chunk_problem, read_index
from data_shards.shards.storage import Storage
from data_shards.shards.tar import BLOCK, ShardBuilder

logger = logging.getLogger(__name__)

Change = Callable[[Sequence[Columns]], tuple[list[Columns], dict[str, int]]]
"""All records of a shard -> the same as they will be, and what was counted."""
Task = tuple[int, Entry | None]
"""Number of a shard, and what an earlier run has noted of it."""


@dataclass
class Remade:
    """A shard of the new data set.

    Attributes:
        notes: what was counted while it was made.
        fresh: whether it was made now, not found complete.
        again: whether it had been noted as complete, and its files were damaged.
    """

    number: int
    sealed: Sealed
    statistics: dict[str, Accumulator]
    notes: dict[str, int]
    fresh: bool
    again: bool


class ShardMaker:
    """Makes single shards; what a worker does.

    Args:
        manifest: the data set that is read. schema: of the new one. storage: where it is written.
        change: equal records give equal bytes, whoever asks.
    """

    def __init__(self, manifest: Manifest, schema: DatasetSchema, storage: Storage, change: Change) -> None:
        self.manifest, self.schema, self.storage, self.change = manifest, schema, storage, change
        self.decoder = Decoder(schema)

    def __call__(self, task: Task) -> Remade:
        """The shard, complete on the storage. Raises ShardError: the one that it is made from is damaged."""
        number, entry = task
        if entry is not None:
            try:
                data, index = self._stored(number, entry)
                return self._remade(number, data, index, entry.notes, fresh=False, again=False)[0]
            except (OSError, EOFError, RecordError) as error:
                logger.warning("shard %s was complete and is damaged (%s): it is made again", entry.name, error)
        data, index, notes = self._make(number)
        remade, files = self._remade(number, data, index, notes, fresh=True, again=entry is not None)
        for name, content in files.items():
            self.storage.write(name, content)
        return remade

    def _make(self, number: int) -> tuple[bytes, ShardIndex, dict[str, int]]:
        """The archive, its index and what was counted, from the records of the shard that it is made from."""
        old = read_index(self.manifest, number)
        records, metadata = self._records(number, old)
        changed, notes = self.change(records)
        builder, payloads, starts = ShardBuilder(), list[bytes](), list[int]()
        for columns, about in zip(changed, metadata, strict=True):
            payload = encode_columns(columns, self.schema, about)
            if len(payload) > Limits().member_bytes:
                raise ValueError(
                    f"record {columns.key} would have {len(payload)} bytes, at most {Limits().member_bytes}: ask for "
                    "fewer tokens"
                )
            starts.append(builder.add(columns.key, payload)[1])
            payloads.append(payload)
        count = len(self.schema.modalities)
        index = replace(
            old,
            start_n=np.array(starts),
            size_n=np.array([len(payload) for payload in payloads]),
            crc_n=np.array([zlib.crc32(payload) for payload in payloads]),
            lengths_nM=np.stack([columns.lengths(self.schema) for columns in changed]),
            objects_nM=np.stack([columns.objects(count) for columns in changed]),
        )
        return builder.finish(), index, notes

    def _records(self, number: int, index: ShardIndex) -> tuple[list[Columns], list[dict[str, str]]]:
        """All records of a shard, whole, and the metadata of their members. Raises ShardError."""
        shard, decoder = self.manifest.shards[number], Decoder(self.manifest.schema)
        records, metadata, row = list[Columns](), list[dict[str, str]](), 0
        for k, chunk in enumerate(shard.chunks):
            end = chunk.offset + chunk.length
            place: dict[str, Any] = {"chunk": k, "start": chunk.offset, "end": end}
            try:
                data = memoryview(self.manifest.storage.read(shard.name, chunk.offset, end))
            except (OSError, EOFError) as error:
                raise ShardError(shard.name, f"cannot be read: {error}", **place) from error
            if problem := chunk_problem(data, chunk, index, row):
                raise ShardError(shard.name, problem[0], reason=problem[1], **place)
            for n in range(row, row + chunk.records):
                start = int(index.start_n[n]) - chunk.offset
                payload = data[start : start + int(index.size_n[n])]
                try:
                    records.append(decoder.columns(payload, index.keys[n]))
                except RecordError as error:
                    where = f"record {index.keys[n]}: {error}"
                    raise ShardError(shard.name, where, reason=error.reason, **place) from error
                metadata.append(load_tensors(payload)[1])
            row += chunk.records
        return records, metadata

    def _stored(self, number: int, entry: Entry) -> tuple[bytes, ShardIndex]:
        """An archive and its index that were written before; RecordError unless they are what was noted."""
        data = self.storage.read(entry.name, 0, entry.bytes)
        table = self.storage.read(entry.index.name, 0, entry.index.bytes)
        found = (hashlib.sha256(data).hexdigest(), hashlib.sha256(table).hexdigest())
        if found != (entry.sha256, entry.index.sha256):
            raise RecordError("another SHA-256 than was noted")
        sizes = len(self.manifest.splits), len(self.schema.modalities), self.schema.target_offsets[-1]
        return data, load_index(table, self.manifest.shards[number].records, *sizes)

    def _remade(
        self, number: int, data: bytes, index: ShardIndex, notes: dict[str, int], fresh: bool, again: bool
    ) -> tuple[Remade, dict[str, bytes]]:
        """What is known of a shard, from its bytes: the same whether they were just made or found."""
        first_k = np.cumsum([0, *(chunk.records for chunk in self.manifest.shards[number].chunks)])[:-1]
        start_k = index.start_n[first_k] - BLOCK
        end = int(index.start_n[-1]) + -(-int(index.size_n[-1]) // BLOCK) * BLOCK
        longest = int(np.diff(start_k, append=end).max())
        if longest > MAX_CHUNK_BYTES:
            raise ValueError(
                f"a chunk of shard {number} would have {longest} bytes, at most {MAX_CHUNK_BYTES}: ask for fewer "
                "tokens, or pack the original with smaller chunks"
            )
        sealed, files = seal(number, data, end, index, first_k, start_k, len(self.manifest.columns))
        view = memoryview(data)
        records = [
            # Reading back what was just written costs little and makes an unreadable shard impossible.
            self.decoder.columns(view[start : start + size], key)
            for start, size, key in zip(index.start_n.tolist(), index.size_n.tolist(), index.keys, strict=True)
        ]
        return Remade(number, sealed, self._statistics(records, index, first_k), notes, fresh, again), files

    def _statistics(self, records: list[Columns], index: ShardIndex, first_k: np.ndarray) -> dict[str, Accumulator]:
        """Split -> statistics of its training records in this shard, chunk by chunk."""
        found = {split: Accumulator(self.schema) for split, part in self.manifest.columns if part == TRAIN}
        for start, stop in zip(first_k.tolist(), [*first_k[1:].tolist(), len(records)], strict=True):
            for split, accumulator in found.items():
                own_n = index.members(self.manifest.column(split, TRAIN), start, stop)
                accumulator.add([records[start + n] for n in np.flatnonzero(own_n).tolist()])
        return found
