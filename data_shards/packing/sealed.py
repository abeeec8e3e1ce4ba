"""A shard that is complete: its files, and what the tables of the data set say about it.

Shapes: n records of a shard, k chunks of it, K chunks of all, C (split, part) columns known so far.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.shards.contents.chunks import ChunkTable
from data_shards.shards.contents.shards import IndexFile, Shard
from data_shards.shards.index import NO_PART, ShardIndex, dump_index


@dataclass
class Sealed:
    """The entry of a shard without its chunks, and those."""

    name: str
    bytes: int
    sha256: str
    records: int
    index: IndexFile
    chunks_k5: np.ndarray  # offset, length, records, CRC-32, samples
    parts_kC: np.ndarray
    samples_kC: np.ndarray


def seal(
    number: int, data: bytes, end: int, index: ShardIndex, first_k: np.ndarray, start_k: np.ndarray, columns: int
) -> tuple[Sealed, dict[str, bytes]]:
    """A shard and its files, under names that carry their content's digest.

    Args:
        number: of the shard. data: its archive. end: bytes of it that are records. columns: (split, part) pairs so far.
        first_k, start_k: int64, first row and first byte of each chunk.
    """
    digest = hashlib.sha256(data).hexdigest()
    stem = f"shard-{number:05d}-{digest[:12]}"
    table = dump_index(index)
    file = IndexFile(f"{stem}.index", len(table), hashlib.sha256(table).hexdigest())
    chunks = _chunks(data, end, index, first_k, start_k, columns)
    sealed = Sealed(f"{stem}.tar", len(data), digest, len(index), file, *chunks)
    return sealed, {f"{stem}.tar": data, f"{stem}.index": table}


def _chunks(
    data: bytes, end: int, index: ShardIndex, first_k: np.ndarray, start_k: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [k, 5] of a shard's chunks; records and samples [k, C] of each (split, part) column in them."""
    records_k = np.diff(first_k, append=len(index))
    length_k = np.diff(start_k, append=end)
    view = memoryview(data)
    crc32_k = [zlib.crc32(view[start : start + length]) for start, length in zip(start_k, length_k, strict=True)]
    samples_k = np.add.reduceat(index.moments_n, first_k, dtype=np.int64)
    chunk_n = np.repeat(np.arange(len(first_k)), records_k)
    parts_kC = np.zeros((len(first_k), columns), np.int32)
    # Kept by the packer for every chunk of the data set, so one array where a record is one sample.
    samples_kC = parts_kC if (index.moments_n == 1).all() else np.zeros_like(parts_kC)
    for part_n in index.parts_nS.T:
        there_n = part_n != NO_PART
        np.add.at(parts_kC, (chunk_n[there_n], part_n[there_n]), 1)
        if samples_kC is not parts_kC:
            np.add.at(samples_kC, (chunk_n[there_n], part_n[there_n]), index.moments_n[there_n])
    return np.stack((start_k, length_k, records_k, crc32_k, samples_k), axis=1).astype(np.int64), parts_kC, samples_kC


def tables_of_sealed(sealed: Sequence[Sealed], columns: int, has_moments: bool) -> tuple[tuple[Shard, ...], ChunkTable]:
    """All shards and chunks; of columns that came up later, early shards hold nothing.

    Columns are those that the table of chunks is written from, of its types, so that they are in memory once.
    """
    counts_S = np.array([len(own.chunks_k5) for own in sealed])
    first_S = np.cumsum(counts_S) - counts_S

    def whole(pieces: Iterable[np.ndarray]) -> np.ndarray:
        found = np.zeros((int(counts_S.sum()), columns), np.int32, order="F")
        for first, piece in zip(first_S.tolist(), pieces, strict=True):
            found[first : first + len(piece), : piece.shape[1]] = piece
        return found

    def column(number: int, kind: type[np.integer[Any]]) -> np.ndarray:
        pieces = [own.chunks_k5[:, number] for own in sealed]
        most, limit = max(int(piece.max(initial=0)) for piece in pieces), np.iinfo(kind).max
        if most > limit:
            raise ValueError(f"a chunk has {most} bytes or records, the limit is {limit}: choose smaller chunks")
        return np.concatenate(pieces, dtype=kind, casting="unsafe")

    offset_K, length_K = column(0, np.int64), column(1, np.int32)
    records_K, crc32_K = column(2, np.int32), column(3, np.uint32)
    parts_KC = whole(own.parts_kC for own in sealed)
    samples = (whole(own.samples_kC for own in sealed), column(4, np.int64)) if has_moments else None
    chunks = ChunkTable.of(counts_S, offset_K, length_K, records_K, crc32_K, parts_KC, samples)
    shards = [
        Shard(own.name, own.bytes, own.sha256, own.records, own.index, chunks.of_shard(number))
        for number, own in enumerate(sealed)
    ]
    return tuple(shards), chunks
