"""What encoding one work unit gives: the records as one buffer, for whoever writes them, and a summary for the cutter.

The buffer stays where it was made until its shards are written; the summary is small and travels.
Shapes: n records of a unit, K samples of them, M modalities, S splits of the unit, W target columns.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_shards.records.arrays import Limits, dump_tensors, load_tensors
from data_shards.records.statistics import Accumulator
from data_shards.shards.index import NO_PART

ANY_SIZE = Limits(header_bytes=1 << 30, member_bytes=1 << 62)
"""Of buffers that this program has just made itself."""
Pair = tuple[str, str]  # (split, part)


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
    times_K: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    knots_X: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass
class Summary:
    """What is known of a unit without its records.

    Attributes:
        size_n: int64, payload bytes of each record. hash_n: uint64, of its key.
        pairs: (row, pair) where a (split, part) pair occurs first in the unit, in order.
        notes: what the source counted. statistics: split -> of its training part.
        observations: stored events. longest_M, total_M: int64, largest and total length of each modality.
    """

    size_n: np.ndarray
    hash_n: np.ndarray
    pairs: list[tuple[int, Pair]]
    notes: Counter[str]
    statistics: dict[str, Accumulator]
    observations: int
    longest_M: np.ndarray
    total_M: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Some records of a unit, as columns.

    Attributes:
        payloads: of each record. keys: likewise. parts_nS: int16, numbers of `pairs`, -1 where there is none.
        lengths_nM, objects_nM, moments_n, targets_KW, group_n, times_K, knots_X: as in `ShardIndex`.
    """

    payloads: list[memoryview]
    keys: list[str]
    pairs: list[Pair]
    parts_nS: np.ndarray
    lengths_nM: np.ndarray
    objects_nM: np.ndarray
    moments_n: np.ndarray
    targets_KW: np.ndarray
    group_n: np.ndarray
    times_K: np.ndarray
    knots_X: np.ndarray


def key_hashes(keys: Sequence[str]) -> np.ndarray:
    """uint64 [n]: BLAKE2b-64 of each key."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, "<u8")


def summary_of(
    records: Sequence[Encoded], modalities: int, notes: Counter[str], statistics: dict[str, Accumulator]
) -> Summary:
    """The summary of a unit's records."""
    lengths_nM = np.array([record.lengths_M for record in records], np.int64).reshape(-1, modalities)
    lengths_nM = np.maximum(lengths_nM, 0)  # nothing where a modality is absent
    first: dict[Pair, int] = {}
    for row, record in enumerate(records):
        for pair in sorted(record.splits.items()):
            first.setdefault(pair, row)
    return Summary(
        np.array([len(record.payload) for record in records], np.int64),
        key_hashes([record.key for record in records]),
        [(row, pair) for pair, row in first.items()],
        notes,
        statistics,
        sum(record.observations for record in records),
        lengths_nM.max(axis=0, initial=0),
        lengths_nM.sum(axis=0),
    )


def dump_records(records: Sequence[Encoded]) -> bytes:
    """One buffer; without records an empty one."""
    if not records:
        return b""
    pairs = sorted({pair for record in records for pair in record.splits.items()})
    splits = sorted({split for split, _ in pairs})
    parts_nS = np.full((len(records), len(splits)), NO_PART, np.int16)
    for row, record in enumerate(records):
        for pair in record.splits.items():
            parts_nS[row, splits.index(pair[0])] = pairs.index(pair)
    tensors: dict[str, np.ndarray] = {
        "payload": np.frombuffer(b"".join(record.payload for record in records), np.uint8),
        "size": np.array([len(record.payload) for record in records], np.int64),
        "keys": np.frombuffer("\n".join(record.key for record in records).encode("ascii"), np.uint8),
        "parts": parts_nS,
        "lengths": np.stack([record.lengths_M for record in records]).astype(np.int32),
        "objects": np.stack([record.objects_M for record in records]).astype(np.int32),
        "moments": np.array([len(record.targets_KW) for record in records], np.int32),
        "targets": np.concatenate([record.targets_KW for record in records]).astype(np.float32),
        "group": np.array([record.group for record in records], np.int64),
        "times": np.concatenate([record.times_K for record in records]).astype(np.float32),
        "time_count": np.array([len(record.times_K) for record in records], np.int64),
        "knots": np.concatenate([record.knots_X for record in records]).astype(np.float32),
        "knot_count": np.array([len(record.knots_X) for record in records], np.int64),
    }
    return dump_tensors(tensors, {"pairs": json.dumps(pairs)})


def load_rows(buffer: bytes | memoryview, start: int, stop: int) -> Rows:
    """Records [start, stop) of a buffer, without a copy of their bytes."""
    own, metadata = load_tensors(buffer, ANY_SIZE)
    cut = slice(start, stop)
    begin_n = _begins(own["size"])
    payload = memoryview(own["payload"])  # type: ignore[arg-type]
    samples = _stretch(own["moments"], start, stop)
    return Rows(
        [payload[begin_n[n] : begin_n[n + 1]] for n in range(start, stop)],
        bytes(own["keys"]).decode("ascii").split("\n")[cut],
        [(split, part) for split, part in json.loads(metadata["pairs"])],
        own["parts"][cut],
        own["lengths"][cut],
        own["objects"][cut],
        own["moments"][cut],
        own["targets"][samples],
        own["group"][cut],
        own["times"][_stretch(own["time_count"], start, stop)],
        own["knots"][_stretch(own["knot_count"], start, stop)],
    )


def _begins(count_n: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(count_n, dtype=np.int64)))


def _stretch(count_n: np.ndarray, start: int, stop: int) -> slice:
    """What belongs to some records, in an array that has so many entries of each."""
    begin_n = _begins(count_n)
    return slice(int(begin_n[start]), int(begin_n[stop]))
