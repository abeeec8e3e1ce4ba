"""The manifest: what a packed data set consists of. It is written last; without it there is no data set.

``manifest.json`` lists shards (bytes, SHA-256), their chunks (byte range, CRC-32, records per split and part) and, for
each shard, an index file with one row per record. A chunk is the unit of reading and of order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_shards.errors import ManifestError
from data_shards.records.schema import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from data_shards.shards.storage import NAME, Storage

FILE = "manifest.json"
FORMAT = "fleximoe-shards"
VERSION = 1
LENGTHS = "lengths"  # entry of `Contents.source`: older readers of this version take any there, and nowhere else
MAX_BYTES = 1 << 28
MAX_CHUNK_BYTES = 1 << 30
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a shard: bytes [offset, offset + length); ``parts`` counts per (split, part) column."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    offset: int
    length: int
    records: int
    crc32: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class IndexFile:
    """The file with one row per record of a shard."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: str
    bytes: int
    sha256: str
    records: int
    index: IndexFile
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Contents:
    """What ``manifest.json`` holds.

    Attributes:
        schema: modalities and tasks.
        source: the source's own report (counts of what was left out, options, best achievable score where known), and
            under ``lengths`` what ``Manifest.lengths`` gives.
        records, observations: totals; an observation is one stored event of a series.
        columns: (split, part) pairs, the columns of ``Chunk.parts`` and, per split, the codes of the index.
        splits: split -> part -> number of records.
        shards: in storage order.
        statistics: split -> statistics of its train part; a split without a train part has none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    schema: DatasetSchema
    source: dict[str, Any]
    records: int
    observations: int
    columns: tuple[tuple[str, str], ...]
    splits: dict[str, dict[str, int]]
    shards: tuple[Shard, ...]
    statistics: dict[str, SplitStatistics]
    format: str = FORMAT
    version: int = VERSION


_ADAPTER = TypeAdapter(Contents)


@dataclass(frozen=True)
class Manifest(Contents):
    """A packed data set that has been opened: the contents of its manifest and where its files are."""

    storage: Storage = field(default_factory=lambda: Storage("."), compare=False, repr=False)

    @staticmethod
    def of(contents: Contents, storage: Storage) -> Manifest:
        """The same contents, opened at ``storage``."""
        return Manifest(**{f.name: getattr(contents, f.name) for f in fields(Contents)}, storage=storage)

    def to_json(self) -> str:
        """Canonical JSON of everything but ``storage``."""
        return json.dumps(_ADAPTER.dump_python(self, mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: names exactly these bytes, in this order."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def url(self) -> str:
        """Where the data set was opened."""
        return self.storage.url

    @property
    def in_memory(self) -> bool:
        """Whether it lives in this process only."""
        return self.storage.scheme == "memory"

    @property
    def lengths(self) -> dict[str, dict[str, int]] | None:
        """Modality of any length -> ``longest`` and ``total`` of all records, in events, samples or bytes.

        None for data packed before lengths were kept; the indices of their shards hold them.
        """
        found: dict[str, dict[str, int]] | None = self.source.get(LENGTHS)
        return found

    def column(self, split: str, part: str) -> int:
        """Number of the (split, part) column; ValueError lists what there is."""
        if split not in self.splits:
            raise ValueError(f"data set {self.url} has no split {split!r}; it has {', '.join(sorted(self.splits))}")
        if part not in self.splits[split]:
            known = ", ".join(f"{name} ({count})" for name, count in sorted(self.splits[split].items()))
            raise ValueError(f"split {split!r} of {self.url} has no part {part!r}; it has {known}")
        return self.columns.index((split, part))

    def counts(self, split: str, part: str | None) -> np.ndarray:
        """int64 [chunks]: records of the part in each chunk, in storage order; part None = all records."""
        if part is None:
            return np.array([chunk.records for shard in self.shards for chunk in shard.chunks], np.int64)
        column = self.column(split, part)
        return np.array([chunk.parts[column] for shard in self.shards for chunk in shard.chunks], np.int64)

    @cached_property
    def chunk_table(self) -> np.ndarray:
        """int64 [chunks, 3]: shard, chunk number in the shard, number of the chunk's first record in the data set."""
        rows, first = [], 0
        for number, shard in enumerate(self.shards):
            for c, chunk in enumerate(shard.chunks):
                rows.append((number, c, first))
                first += chunk.records
        return np.array(rows, np.int64).reshape(-1, 3)

    def check(self) -> None:
        """Raise ManifestError if the numbers contradict each other or a name leaves the folder."""
        if self.format != FORMAT or self.version != VERSION:
            raise ManifestError(
                f"{self.url}: {self.format!r} version {self.version}; this program reads {FORMAT!r} version {VERSION}. "
                "Pack the data set again, or use the version of the program that packed it"
            )
        for shard in self.shards:
            _check_shard(shard, len(self.columns), self.url)
        if self.records != sum(shard.records for shard in self.shards):
            raise ManifestError(f"{self.url}: {self.records} records, but the shards hold another number")
        for c, (split, part) in enumerate(self.columns):
            total = sum(chunk.parts[c] for shard in self.shards for chunk in shard.chunks)
            if self.splits.get(split, {}).get(part) != total:
                raise ManifestError(f"{self.url}: split {split!r} part {part!r} does not add up to {total}")


def _check_shard(shard: Shard, columns: int, url: str) -> None:
    for name in (shard.name, shard.index.name):
        if not NAME.fullmatch(name) or ".." in name:
            raise ManifestError(f"{url}: file name {name!r} leaves the data set's folder")
    end = 0
    for number, chunk in enumerate(shard.chunks):
        where = f"{url}: shard {shard.name}, chunk {number}"
        if chunk.offset != end or not 0 < chunk.length <= MAX_CHUNK_BYTES or chunk.records < 1:
            raise ManifestError(f"{where}: bytes {chunk.offset}+{chunk.length}, expected to start at {end}")
        if len(chunk.parts) != columns or not all(0 <= count <= chunk.records for count in chunk.parts):
            raise ManifestError(f"{where}: counts per part {chunk.parts} do not fit {chunk.records} records")
        end += chunk.length
    if end > shard.bytes or shard.records != sum(chunk.records for chunk in shard.chunks):
        raise ManifestError(f"{url}: chunks of shard {shard.name} do not fit its {shard.bytes} bytes")
    if not 0 <= shard.index.bytes <= MAX_CHUNK_BYTES:
        raise ManifestError(f"{url}: index of shard {shard.name} claims {shard.index.bytes} bytes")


def open_manifest(
    url: str, storage_options: dict[str, Any] | None = None, retries: int = 4, retry_delay_s: float = 0.2
) -> Manifest:
    """Read and check the manifest of a packed data set.

    Args:
        url: the data set's folder (or its ``manifest.json``).
        storage_options: options of the fsspec file system.

    Raises:
        ValueError: an illegal URL.
        ManifestError: no manifest, a damaged one, or one of another version.
    """
    folder = url[: -len(FILE) - 1] if url.endswith(f"/{FILE}") else url
    storage = Storage(folder, storage_options, retries, retry_delay_s)
    try:
        size = storage.size(FILE)
        if size is not None and size > MAX_BYTES:
            raise ManifestError(f"{storage.url}: {FILE} has {size} bytes, the limit is {MAX_BYTES}")
        text = storage.read(FILE, 0, size or MAX_BYTES, exact=False)
    except (OSError, EOFError) as error:
        raise ManifestError(_missing(storage, error)) from error
    manifest = parse_manifest(text, storage)
    manifest.check()
    return manifest


def _missing(storage: Storage, error: Exception) -> str:
    hint = " (memory:// lives in one process only)" if storage.scheme == "memory" else ""
    return f"{storage.url} is not a packed data set: {FILE} cannot be read: {error}{hint}"


def parse_manifest(text: bytes, storage: Storage) -> Manifest:
    """Manifest from the bytes of its file; ManifestError if it is not one."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{storage.url}: {FILE} is not JSON: {error}") from error
    # The version first: a newer format must not be reported as a damaged one.
    if not isinstance(table, dict) or (table.get("format"), table.get("version")) != (FORMAT, VERSION):
        found = (table.get("format"), table.get("version")) if isinstance(table, dict) else type(table).__name__
        raise ManifestError(
            f"{storage.url}: {FILE} is {found}; this program reads {(FORMAT, VERSION)}. "
            "Pack the data set again, or use the version of the program that packed it"
        )
    try:
        return Manifest.of(_ADAPTER.validate_json(text), storage)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ManifestError(f"{storage.url}: {FILE} is damaged at {place}: {first['msg']}") from error
