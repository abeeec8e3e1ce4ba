"""The tables of a packed data set, from and to Parquet: shards, chunks, and sketches of the statistics.

Columns are those of docs/format.md, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from data_shards.errors import ManifestError, TableError
from data_shards.node_arrays import node_arrays
from data_shards.parquet import NOWHERE, Column, dump_table, load_table
from data_shards.records.distributions.distribution import Distribution
from data_shards.records.distributions.sketch import Sketch
from data_shards.records.statistics import DISTRIBUTIONS, Accumulator
from data_shards.shards.contents.chunks import ChunkTable
from data_shards.shards.contents.shards import Shard, ShardList
from data_shards.shards.manifest import Manifest, TableFile, check_shards, read_table_file
from data_shards.shards.storage import Storage

SHARED_ABOVE = 1 << 18
"""Chunks above which the processes of a node share them: below, they are some ten megabytes a process."""
MAX_ROWS = {"shards": 1 << 22, "chunks": 1 << 27, "sketches": 1 << 27}
_SHARDS = {
    "name": "string",
    "bytes": "int64",
    "sha256": "sha256",
    "records": "int64",
    "chunks": "int32",
    "index_name": "string",
    "index_bytes": "int64",
    "index_sha256": "sha256",
}
_CHUNKS = {"offset": "int64", "length": "int32", "records": "int32", "crc32": "uint32"}
_SKETCHES = {"split": "int16", "of": "int8", "channel": "int32", "level": "int8", "key": "uint32", "count": "int64"}


def dump_shards(shards: Sequence[Shard]) -> bytes:
    """Parquet bytes."""
    columns: dict[str, Column] = {
        "name": [shard.name for shard in shards],
        "bytes": np.array([shard.bytes for shard in shards], np.int64),
        "sha256": [shard.sha256 for shard in shards],
        "records": np.array([shard.records for shard in shards], np.int64),
        "chunks": np.array([len(shard.chunks) for shard in shards], np.int32),
        "index_name": [shard.index.name for shard in shards],
        "index_bytes": np.array([shard.index.bytes for shard in shards], np.int64),
        "index_sha256": [shard.index.sha256 for shard in shards],
    }
    return dump_table(columns, _SHARDS)


def _chunk_types(columns: int, moments: bool) -> dict[str, str]:
    types = _CHUNKS | {f"part.{number}": "int32" for number in range(columns)}
    if moments:
        types |= {"samples": "int64"} | {f"samples.{number}": "int32" for number in range(columns)}
    return types


def dump_chunks(chunks: ChunkTable, moments: bool) -> bytes:
    """Parquet bytes; samples only where records have moments."""
    width = chunks.parts_KC.shape[1]
    columns: dict[str, Column] = {
        "offset": chunks.offset_K,
        "length": chunks.length_K,
        "records": chunks.records_K,
        "crc32": chunks.crc32_K,
        "samples": chunks.total_K,
    }
    columns |= {f"part.{number}": chunks.parts_KC[:, number] for number in range(width)}
    columns |= {f"samples.{number}": chunks.samples_KC[:, number] for number in range(width)}
    return dump_table(columns, _chunk_types(width, moments))


def load_shards(
    storage: Storage, shards: TableFile, chunks: TableFile, columns: int, moments: bool
) -> tuple[ShardList, ChunkTable]:
    """Both tables of a data set with so many (split, part) columns, checked.

    Of very many chunks they are unpacked and checked by one process of a node, for all of them.

    Raises:
        ManifestError: a table is damaged, or numbers contradict each other.
    """
    if chunks.rows <= SHARED_ABOVE:
        arrays, table = _load(storage, shards, chunks, columns, moments)
        return ShardList(arrays, table), table

    def make() -> dict[str, np.ndarray]:
        import pyarrow

        arrays, table = _load(storage, shards, chunks, columns, moments)
        # What unpacking took and gave back, Arrow keeps for later; nothing of this size comes later.
        pyarrow.default_memory_pool().release_unused()
        return arrays | table.arrays()

    shared = node_arrays(f"tables 1 {shards.sha256} {chunks.sha256} {columns} {moments}", make)
    table = ChunkTable.of_arrays(shared)
    return ShardList(shared, table), table


def _load(
    storage: Storage, shards: TableFile, chunks: TableFile, columns: int, moments: bool
) -> tuple[dict[str, np.ndarray], ChunkTable]:
    own = read_table(storage, shards, "shards", _SHARDS)
    _check_rows(storage, chunks, "chunks")
    # By column: one (split, part) is read at a time, and each is unpacked to its place.
    names = ("part", "samples")[: 1 + moments]
    beside = {name: np.empty((chunks.rows, columns), np.int32, order="F") for name in names}
    into = {f"{name}.{number}": beside[name][:, number] for name in names for number in range(columns)}
    types = _chunk_types(columns, moments)
    rows = cast("dict[str, np.ndarray]", read_table(storage, chunks, "chunks", types, into))
    counts_S = cast(np.ndarray, own["chunks"])
    if (counts_S < 0).any() or counts_S.sum(dtype=np.int64) != chunks.rows:
        raise ManifestError(
            f"{storage.url}: table {shards.name} counts {counts_S.sum(dtype=np.int64)} chunks, table {chunks.name} has "
            f"{chunks.rows}"
        )
    samples = (beside["samples"], rows["samples"]) if moments else None
    offset_K, length_K, records_K, crc32_K = (rows[name] for name in ("offset", "length", "records", "crc32"))
    table = ChunkTable.of(counts_S, offset_K, length_K, records_K, crc32_K, beside["part"], samples)
    own_names, sha256, index_names, index_sha256 = (
        cast(list[str], own[name]) for name in ("name", "sha256", "index_name", "index_sha256")
    )
    numbers = {name: cast(np.ndarray, own[name]) for name in ("bytes", "records", "index_bytes")}
    arrays = ShardList.arrays_of(own_names, sha256, index_names, index_sha256, numbers)
    check_shards(ShardList(arrays, table), table, storage.url)
    return arrays, table


def _check_rows(storage: Storage, file: TableFile, what: str) -> None:
    if not 0 <= file.rows <= MAX_ROWS[what]:
        raise ManifestError(f"{storage.url}: table {file.name} claims {file.rows} rows, the limit is {MAX_ROWS[what]}")


def read_table(
    storage: Storage,
    file: TableFile,
    what: str,
    types: Mapping[str, str],
    into: Mapping[str, np.ndarray] = NOWHERE,
) -> dict[str, Column]:
    """Columns of a table, as `load_table`; ManifestError if it is not what the manifest says, or over the limits."""
    _check_rows(storage, file, what)
    try:
        return load_table(read_table_file(storage, file), types, file.rows, into)
    except TableError as error:
        raise ManifestError(f"{storage.url}: table {file.name}: {error}") from error


def dump_sketches(statistics: Mapping[str, Accumulator]) -> tuple[bytes, int]:
    """Parquet bytes and rows of all sketches; splits are numbered in alphabetical order."""
    pieces = list[list[np.ndarray]]()
    for split, (_, accumulator) in enumerate(sorted(statistics.items())):
        for of, distribution in enumerate(accumulator.distributions):
            columns = distribution.sketch.columns()
            rows = len(columns[0])
            pieces.append([np.full(rows, split, np.int16), np.full(rows, of, np.int8), *columns])
    empty = [np.empty(0, kind) for kind in _SKETCHES.values()]
    joined = [np.concatenate(column) for column in zip(empty, *pieces, strict=True)]
    return dump_table(dict(zip(_SKETCHES, joined, strict=True)), _SKETCHES), len(joined[0])


def load_sketches(manifest: Manifest) -> dict[str, dict[str, Sketch]]:
    """Split -> what (`DISTRIBUTIONS`) -> its sketch, as it was when the data were packed.

    Raises:
        ManifestError: there are none (version 1), or they are damaged.
    """
    if manifest.sketches is None:
        raise ManifestError(f"{manifest.url} was packed before sketches of values were kept: pack it again")
    columns = cast("dict[str, np.ndarray]", read_table(manifest.storage, manifest.sketches, "sketches", _SKETCHES))
    found: dict[str, dict[str, Sketch]] = {}
    for split, name in enumerate(sorted(manifest.statistics)):
        found[name] = {}
        for of, (what, distribution) in enumerate(zip(DISTRIBUTIONS, _empty(manifest), strict=True)):
            own = (columns["split"] == split) & (columns["of"] == of)
            entries = [columns[key][own] for key in ("channel", "level", "key", "count")]
            sketch = distribution.sketch
            try:
                found[name][what] = Sketch.of_columns(sketch.channels, sketch.limit, *entries)
            except ValueError as error:
                raise ManifestError(f"{manifest.url}: table {manifest.sketches.name}: {error}") from error
    return found


def _empty(manifest: Manifest) -> tuple[Distribution, ...]:
    return Accumulator(manifest.schema).distributions
