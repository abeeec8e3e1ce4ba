"""The index of a shard: one row per record, enough to find, verify and select it, and to summarise a data set unread.

Stored in the safetensors layout next to the shard; its SHA-256 is in the manifest.
Shapes: n records, S splits, M modalities, K samples of all records, W target columns, X kept times of all records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_shards.errors import RecordError
from data_shards.records.arrays import Limits, dump_tensors, load_tensors
from data_shards.records.columns import ABSENT
from data_shards.records.record import sample_name
from data_shards.records.schema import DatasetSchema

FORMATS = ("fleximoe-index/1", "fleximoe-index/2")  # the first one has no columns objects and moments
NO_PART = -1  # of a record that is not in a split


@dataclass
class ShardIndex:
    """Rows of one shard.

    Attributes:
        start_n, size_n: payload bytes in the shard. crc_n: CRC-32 of the payload.
        keys: record keys.
        parts_nS: column number of the record's (split, part) pair in the manifest, -1 where a split leaves it out.
            Columns are numbered over all splits, so the order of S is free.
        lengths_nM: events, codes, bytes or samples of all objects, number of objects of fixed shapes; -1 where absent.
        objects_nM: objects per modality, 1 for what is there and has no objects, 0 where it is there and has none, -1
            where absent.
        moments_n: samples of each record: one a moment, and one if it has none.
        targets_KW: one row a sample, record by record; NaN where unlabelled.
        group_n: int64, a hash of the record's group, 0 where it has none (and in data packed before groups were kept).
        times_K: float32, up to when each sample sees its record; empty where no task has labels at moments.
        knots_X: float32, times of rows of each record (``records/knots.py``), likewise.
    """

    start_n: np.ndarray
    size_n: np.ndarray
    crc_n: np.ndarray
    keys: list[str]
    parts_nS: np.ndarray
    lengths_nM: np.ndarray
    objects_nM: np.ndarray
    moments_n: np.ndarray
    targets_KW: np.ndarray
    group_n: np.ndarray
    times_K: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    knots_X: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, column: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """bool: which of the rows [start, end) belong to one (split, part) column."""
        return (self.parts_nS[start:end] == column).any(axis=1)

    @property
    def record_K(self) -> np.ndarray:  # noqa: N802
        """int64: row of each sample."""
        return np.repeat(np.arange(len(self)), self.moments_n)

    def samples_of(self, rows: np.ndarray) -> np.ndarray:
        """bool [K]: samples of some records: rows by number, or a mask."""
        return np.isin(self.record_K, np.arange(len(self))[rows])

    def names(self, column: int) -> list[str]:
        """Of the samples of one (split, part) column, as ``Batch.names``."""
        keys = [self.keys[row] for row in self.record_K[self.samples_of(self.members(column))].tolist()]
        if not len(self.times_K):
            return keys
        times = self.times_K[self.samples_of(self.members(column))].tolist()
        return [sample_name(key, time) for key, time in zip(keys, times, strict=True)]

    def targets_of(self, rows: np.ndarray) -> np.ndarray:
        """Targets [samples, W] of some records: rows by number, or a mask."""
        return self.targets_KW[self.samples_of(rows)]

    def timed_rows(self, schema: DatasetSchema) -> np.ndarray:
        """int64 [n, M]: events, codes or objects of each modality with times; 0 of the others."""
        objects_M = np.array([spec.has_objects for spec in schema.modalities])
        rows_nM = np.maximum(0, np.where(objects_M, self.objects_nM, self.lengths_nM)).astype(np.int64)
        return rows_nM * np.array([spec.has_times for spec in schema.modalities])

    def largest_targets(self) -> np.ndarray:
        """Targets [n, W] of each record: of those of its samples the largest, NaN where none is known."""
        found: np.ndarray = np.fmax.reduceat(self.targets_KW, np.cumsum(self.moments_n) - self.moments_n)
        return found

    @property
    def present(self) -> np.ndarray:
        """bool [n, M]."""
        return self.lengths_nM != ABSENT


def dump_index(index: ShardIndex) -> bytes:
    """Bytes of the index file."""
    joined = "\n".join(index.keys).encode("ascii")
    tensors: dict[str, np.ndarray] = {
        "start": index.start_n.astype(np.int64),
        "size": index.size_n.astype(np.int64),
        "crc32": index.crc_n.astype(np.uint32),
        "group": index.group_n.astype(np.int64),
        "keys": np.frombuffer(joined, np.uint8),
        "parts": index.parts_nS.astype(np.int16),
        "lengths": index.lengths_nM.astype(np.int32),
        "objects": index.objects_nM.astype(np.int32),
        "moments": index.moments_n.astype(np.int32),
        "targets": index.targets_KW.astype(np.float32),
    }
    if len(index.times_K):
        tensors |= {"times": index.times_K.astype(np.float32), "knots": index.knots_X.astype(np.float32)}
    return dump_tensors(tensors, {"format": FORMATS[-1]})


def load_index(data: bytes, records: int, splits: int, modalities: int, targets: int) -> ShardIndex:
    """Index from its bytes; RecordError unless it has exactly the expected rows and columns."""
    tensors, metadata = load_tensors(data, Limits(member_bytes=1 << 30))
    if metadata.get("format") not in FORMATS:
        raise RecordError(f"index format {metadata.get('format')!r} is unknown")
    if metadata["format"] == FORMATS[0]:
        there = tensors.get("lengths", np.empty((0, 0), np.int32)) != ABSENT
        tensors = {**tensors, "objects": np.where(there, 1, ABSENT), "moments": np.ones(records, np.int32)}
    moments_n = tensors.get("moments", np.empty(0, np.int32))
    if (moments_n < 1).any():
        raise RecordError("index column moments holds a record without samples")
    # Of splits that came up after this shard was closed, it has no column.
    wanted = {
        "start": (records,),
        "size": (records,),
        "crc32": (records,),
        "parts": (records, min(splits, tensors["parts"].shape[-1]) if "parts" in tensors else splits),
        "lengths": (records, modalities),
        "objects": (records, modalities),
        "moments": (records,),
        "targets": (int(moments_n.sum(dtype=np.int64)), targets),
    }
    for name, shape in wanted.items():
        if name not in tensors or tensors[name].shape != shape:
            raise RecordError(f"index column {name} is missing or not of shape {shape}")
    keys = bytes(tensors.get("keys", np.empty(0, np.uint8))).decode("ascii").split("\n")
    if len(keys) != records:
        raise RecordError(f"index holds {len(keys)} keys for {records} records")
    columns: Sequence[np.ndarray] = [tensors[name] for name in wanted]
    start, size, crc, parts, lengths, objects, moments, target = columns
    group = tensors.get("group", np.zeros(records, np.int64))
    if group.shape != (records,):
        raise RecordError(f"index column group is not of shape {(records,)}")
    times, knots = (tensors.get(name, np.empty(0, np.float32)) for name in ("times", "knots"))
    if times.shape not in ((0,), (len(target),)) or knots.ndim != 1:
        raise RecordError(f"index column times is not of shape {(len(target),)}, or knots has not one dimension")
    return ShardIndex(start, size, crc, keys, parts, lengths, objects, moments, target, group, times, knots)


def group_code(group: str | None) -> int:
    """A number that stands for a group: equal names have equal numbers; 0 stands for none."""
    if group is None:
        return 0
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "little", signed=True) or 1
