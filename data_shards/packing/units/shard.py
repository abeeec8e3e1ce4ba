"""One shard from pieces of encoded units: what a worker of a pack writes, straight to where it belongs.

Shapes: n records of a shard, k chunks of it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.errors import RecordError
from data_shards.packing.sealed import Sealed, seal
from data_shards.packing.units.cutter import Cut
from data_shards.packing.units.encoded import Pair, Rows, key_hashes, load_rows
from data_shards.records.schema import DatasetSchema
from data_shards.shards.index import NO_PART, ShardIndex, load_index
from data_shards.shards.storage import Storage
from data_shards.shards.tar import BLOCK, ShardBuilder


@dataclass(frozen=True)
class ShardPlan:
    """What is to be written.

    Attributes:
        columns: all (split, part) pairs up to the last record of the shard, by number.
    """

    cut: Cut
    columns: tuple[Pair, ...]


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards under names that carry their content's digest; equal plans give equal files, whoever works."""

    storage: Storage

    def __call__(self, plan: ShardPlan, buffers: Sequence[bytes | memoryview]) -> Sealed:
        """A shard and its index, stored.

        Args:
            buffers: of the unit of each piece.
        """
        pieces = [
            load_rows(buffer, piece.start, piece.stop) for piece, buffer in zip(plan.cut.pieces, buffers, strict=True)
        ]
        builder, starts, crcs = ShardBuilder(), list[int](), list[int]()
        for rows in pieces:
            for key, payload in zip(rows.keys, rows.payloads, strict=True):
                starts.append(builder.add(key, payload)[1])
                crcs.append(zlib.crc32(payload))
        first_k = np.array(plan.cut.first_k, np.int64)
        start_n, end = np.array(starts, np.int64), builder.size
        data = builder.finish()
        index = _index(pieces, start_n, np.array(crcs), plan.columns)
        start_k = start_n[first_k] - BLOCK
        sealed, files = seal(plan.cut.number, data, end, index, first_k, start_k, len(plan.columns))
        for name, content in files.items():
            self.storage.write(name, content)
        return sealed


def _index(pieces: Sequence[Rows], start_n: np.ndarray, crc_n: np.ndarray, columns: tuple[Pair, ...]) -> ShardIndex:
    splits = sorted({split for split, _ in columns})

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(rows, name) for rows in pieces])

    return ShardIndex(
        start_n,
        np.array([len(payload) for rows in pieces for payload in rows.payloads], np.int64),
        crc_n,
        [key for rows in pieces for key in rows.keys],
        np.concatenate([_parts(rows, splits, columns) for rows in pieces]),
        joined("lengths_nM"),
        joined("objects_nM"),
        joined("moments_n"),
        joined("targets_KW"),
        joined("group_n"),
        joined("times_K"),
        joined("knots_X"),
    )


def _parts(rows: Rows, splits: list[str], columns: tuple[Pair, ...]) -> np.ndarray:
    """int16 [n, S]: numbers of the unit's own pairs as those of the data set."""
    parts_nS = np.full((len(rows.keys), len(splits)), NO_PART, np.int16)
    for number, pair in enumerate(rows.pairs):
        n, _ = np.nonzero(rows.parts_nS == number)
        if len(n):
            parts_nS[n, splits.index(pair[0])] = columns.index(pair)
    return parts_nS


@dataclass(frozen=True)
class StoredKeys:
    """Looks at shards that somebody has written before: hashes of their keys."""

    storage: Storage
    schema: DatasetSchema

    def __call__(self, sealed: Sealed, buffers: Sequence[bytes | memoryview] = ()) -> np.ndarray:
        """uint64 [n]. Raises RecordError, OSError or EOFError: the shard is not as it was noted."""
        return key_hashes(stored_keys(self.storage, self.schema, sealed))


def stored_keys(storage: Storage, schema: DatasetSchema, sealed: Sealed) -> list[str]:
    """Keys of a shard that is stored. Raises as `StoredKeys`."""
    if storage.size(sealed.name) != sealed.bytes:
        raise RecordError(f"shard {sealed.name} has another length than was noted")
    table = storage.read(sealed.index.name, 0, sealed.index.bytes)
    if hashlib.sha256(table).hexdigest() != sealed.index.sha256:
        raise RecordError(f"index {sealed.index.name} has another SHA-256 than was noted")
    splits = np.iinfo(np.int16).max
    return load_index(table, sealed.records, splits, len(schema.modalities), schema.target_offsets[-1]).keys
