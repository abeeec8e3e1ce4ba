"""Version 1 of the format: all shards and chunks in one JSON file. It is read, and never written.

The digest of such a data set is the SHA-256 of its contents as canonical JSON: sorted keys, no spaces.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_shards.errors import ManifestError
from data_shards.records.schema import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from data_shards.shards.contents.chunks import ChunkTable
from data_shards.shards.contents.shards import IndexFile, Shard
from data_shards.shards.manifest import FILE, FORMAT, Manifest, check_shards, damaged
from data_shards.shards.storage import Storage

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class _Chunk:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    offset: int
    length: int
    records: int
    crc32: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class _Shard:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: str
    bytes: int
    sha256: str
    records: int
    index: IndexFile
    chunks: tuple[_Chunk, ...]


@dataclass(frozen=True)
class _Contents:
    """``manifest.json`` of version 1."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    schema: DatasetSchema
    source: dict[str, Any]
    records: int
    observations: int
    columns: tuple[tuple[str, str], ...]
    splits: dict[str, dict[str, int]]
    shards: tuple[_Shard, ...]
    statistics: dict[str, SplitStatistics]
    format: str = FORMAT
    version: int = 1


_ADAPTER = TypeAdapter(_Contents)


def read_version_one(text: bytes, storage: Storage) -> Manifest:
    """Manifest from the bytes of its file.

    Raises:
        ManifestError: it is damaged, or its numbers contradict each other.
    """
    try:
        found = _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise damaged(error, storage) from error
    chunks = _table(found, storage.url)
    shards = tuple(
        Shard(shard.name, shard.bytes, shard.sha256, shard.records, shard.index, chunks.of_shard(number))
        for number, shard in enumerate(found.shards)
    )
    check_shards(shards, chunks, storage.url)
    return Manifest(
        1,
        hashlib.sha256(_canonical(found).encode()).hexdigest(),
        found.schema,
        found.source,
        found.records,
        found.observations,
        found.columns,
        found.splits,
        found.statistics,
        shards,
        chunks,
        storage,
    ).check()


def _canonical(contents: _Contents) -> str:
    # What later versions added is left out where it says nothing, by the types themselves.
    return json.dumps(_ADAPTER.dump_python(contents, mode="json"), sort_keys=True, separators=(",", ":"))


def _table(contents: _Contents, url: str) -> ChunkTable:
    width = len(contents.columns)
    for shard in contents.shards:
        for number, chunk in enumerate(shard.chunks):
            if len(chunk.parts) != width:
                where = f"{url}: shard {shard.name}, chunk {number}"
                raise ManifestError(f"{where}: counts per part {chunk.parts} do not fit {chunk.records} records")
    every = [chunk for shard in contents.shards for chunk in shard.chunks]
    counts_S = np.array([len(shard.chunks) for shard in contents.shards], np.int64)
    try:
        offset_K, length_K, records_K, crc32_K = (
            np.array([getattr(chunk, name) for chunk in every], np.int64)
            for name in ("offset", "length", "records", "crc32")
        )
        parts_KC = np.array([chunk.parts for chunk in every], np.int32).reshape(len(every), width)
    except OverflowError as error:
        raise ManifestError(f"{url}: {FILE} is damaged: a number of a chunk is out of range: {error}") from error
    return ChunkTable.of(counts_S, offset_K, length_K, records_K, crc32_K, parts_KC)
