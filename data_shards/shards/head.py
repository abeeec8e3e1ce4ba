"""Version 2 of the format: a small JSON file, the head, that names tables and vocabularies beside it.

The head is written as canonical JSON (sorted keys, no spaces), and its SHA-256 is the data set's digest: it holds the
digest of every table, those the digest of every shard and index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_shards.errors import ManifestError
from data_shards.records.schema import DatasetSchema
from data_shards.records.statistics import Accumulator, SplitStatistics
from data_shards.shards.contents.chunks import ChunkTable
from data_shards.shards.contents.shards import Shard
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import FORMAT, Manifest, TableFile, damaged
from data_shards.shards.storage import Storage
from data_shards.shards.tables import dump_chunks, dump_shards, dump_sketches, load_shards

VERSION = 2
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Tables:
    """The tables of a data set."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    shards: TableFile
    chunks: TableFile
    sketches: TableFile


@dataclass(frozen=True)
class Head:
    """``manifest.json`` of version 2; what its fields mean is said at `Manifest`."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    schema: DatasetSchema
    source: dict[str, Any]
    records: int
    samples: int
    observations: int
    columns: tuple[tuple[str, str], ...]
    splits: dict[str, dict[str, int]]
    statistics: dict[str, SplitStatistics]
    tables: Tables
    vocabularies: dict[str, TableFile]
    lineage: Lineage
    format: str = FORMAT
    version: int = VERSION


_ADAPTER = TypeAdapter(Head)


def head_bytes(head: Head) -> bytes:
    """Canonical JSON."""
    return json.dumps(_ADAPTER.dump_python(head, mode="json"), sort_keys=True, separators=(",", ":")).encode()


def read_version_two(text: bytes, storage: Storage) -> Manifest:
    """Manifest from the bytes of its head; reads the tables of shards and chunks.

    Raises:
        ManifestError: something is damaged, or numbers contradict each other.
    """
    try:
        head = _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise damaged(error, storage) from error
    tables, moments = head.tables, head.schema.has_moments
    shards, chunks = load_shards(storage, tables.shards, tables.chunks, len(head.columns), moments)
    manifest = opened(head, hashlib.sha256(text).hexdigest(), shards, chunks, storage).check()
    if head.samples != chunks.sums()[-1]:
        raise ManifestError(f"{storage.url}: {head.samples} samples, but the chunks hold another number")
    return manifest


def opened(head: Head, digest: str, shards: Sequence[Shard], chunks: ChunkTable, storage: Storage) -> Manifest:
    """The data set that a head and its tables describe."""
    return Manifest(
        head.version,
        digest,
        head.schema,
        head.source,
        head.records,
        head.observations,
        head.columns,
        head.splits,
        head.statistics,
        shards,
        chunks,
        storage,
        head.vocabularies,
        head.tables.sketches,
        head.lineage,
        (head.tables.shards, head.tables.chunks, head.tables.sketches),
    )


def table_file(what: str, data: bytes, rows: int) -> TableFile:
    """The entry of a table; its name carries the first digits of its SHA-256."""
    sha256 = hashlib.sha256(data).hexdigest()
    return TableFile(f"{what}-{sha256[:12]}.parquet", len(data), sha256, rows)


def tables_of(
    shards: Sequence[Shard], chunks: ChunkTable, statistics: Mapping[str, Accumulator], moments: bool
) -> tuple[Tables, dict[str, bytes]]:
    """Entries of the tables, and the bytes of each file."""
    sketches, entries = dump_sketches(statistics)
    data = {"shards": dump_shards(shards), "chunks": dump_chunks(chunks, moments), "sketches": sketches}
    rows = {"shards": len(shards), "chunks": len(chunks), "sketches": entries}
    files = {what: table_file(what, data[what], rows[what]) for what in data}
    return Tables(**files), {files[what].name: data[what] for what in data}
