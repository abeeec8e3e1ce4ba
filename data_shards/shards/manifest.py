"""A packed data set that has been opened: what it consists of and where its files are.

How that is stored is said in `head` (version 2: a small JSON file and tables) and `version_one` (one JSON file); all of
it byte by byte in docs/format.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, ValidationError

from data_shards.errors import ManifestError, TableError
from data_shards.records.schema import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from data_shards.records.vocabulary import Vocabulary
from data_shards.shards.contents.chunks import MAX_CHUNK_BYTES, ChunkTable
from data_shards.shards.contents.shards import Shard, ShardList
from data_shards.shards.lineage import Embedded, Lineage
from data_shards.shards.storage import NAME, Storage

FILE = "manifest.json"
FORMAT = "fleximoe-shards"
LENGTHS = "lengths"  # entry of `Manifest.source`
MAX_TABLE_BYTES = 1 << 31
_STRICT = ConfigDict(extra="forbid")


def damaged(error: ValidationError, storage: Storage) -> ManifestError:
    """What is said of a manifest that does not have the form of its version: the first place where it differs."""
    first = error.errors()[0]
    return ManifestError(f"{storage.url}: {FILE} is damaged at {'.'.join(map(str, first['loc']))}: {first['msg']}")


@dataclass(frozen=True)
class TableFile:
    """A table beside the manifest, in Parquet; its name carries the first digits of its SHA-256."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, eq=False)
class Manifest:
    """A packed data set.

    Attributes:
        version: of the format. digest: SHA-256 that names exactly these records, in this order.
        schema: modalities and tasks.
        source: the source's own report (counts of what was left out, options, best achievable score where known), and
            under ``lengths`` what ``Manifest.lengths`` gives.
        records, observations: totals; an observation is one stored event of a series.
        columns: (split, part) pairs, the columns of ``Chunk.parts`` and, per split, the codes of the index.
        splits: split -> part -> number of records.
        statistics: split -> statistics of its train part; a split without a train part has none.
        shards: in storage order. chunks: of all of them.
        vocabularies: modality of codes -> the file of its vocabulary. sketches: the file of the statistics' sketches.
        tables: files of shards, chunks and sketches; none in version 1.
        lineage: None for version 1.
        storage: where its files are.
    """

    version: int
    digest: str
    schema: DatasetSchema
    source: dict[str, Any]
    records: int
    observations: int
    columns: tuple[tuple[str, str], ...]
    splits: dict[str, dict[str, int]]
    statistics: dict[str, SplitStatistics]
    shards: Sequence[Shard]
    chunks: ChunkTable
    storage: Storage = field(repr=False)
    vocabularies: dict[str, TableFile] = field(default_factory=dict)
    sketches: TableFile | None = None
    lineage: Lineage | None = None
    tables: tuple[TableFile, ...] = ()

    @property
    def url(self) -> str:
        """Where the data set was opened."""
        return self.storage.url

    @property
    def embedded(self) -> dict[str, Embedded]:
        """Modality -> what it was, of the vectors that pretrained encoders have made."""
        return {} if self.lineage is None else self.lineage.embedded

    @property
    def in_memory(self) -> bool:
        """Whether it lives in this process only."""
        return self.storage.scheme == "memory"

    @property
    def largest_chunk(self) -> int:
        """Bytes of it."""
        return int(self.chunks.length_K.max(initial=0))

    @property
    def lengths(self) -> dict[str, dict[str, int]] | None:
        """Modality of any length -> ``longest`` and ``total`` of all records, in events, samples or bytes.

        None for data packed before lengths were kept; the indices of their shards hold them.
        """
        found: dict[str, dict[str, int]] | None = self.source.get(LENGTHS)
        return found

    def vocabulary(self, modality: str) -> Vocabulary:
        """The vocabulary of a modality of codes.

        Raises:
            ValueError: there is no such modality. ManifestError: the file is damaged, or is another vocabulary's.
        """
        if modality not in self.vocabularies:
            known = ", ".join(sorted(self.vocabularies)) or "none"
            raise ValueError(f"data set {self.url} has no vocabulary of {modality!r}; it has {known}")
        file = self.vocabularies[modality]
        try:
            found = Vocabulary.from_bytes(read_table_file(self.storage, file), file.rows)
        except TableError as error:
            raise ManifestError(f"{self.url}: table {file.name}: {error}") from error
        spec = self.schema.modalities[self.schema.numbers[modality]]
        if (found.size, found.digest) != (spec.codes, spec.vocabulary):
            raise ManifestError(f"{self.url}: table {file.name} is not the vocabulary that modality {modality} names")
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
        """Integers [chunks]: samples of the part in each chunk, in storage order; part None = of all records."""
        if part is None:
            return self.chunks.total_K
        counts_K: np.ndarray = self.chunks.samples_KC[:, self.column(split, part)]
        return counts_K

    def check(self) -> Manifest:
        """Itself; ManifestError if numbers contradict each other or a name leaves the folder."""
        tables = [*self.vocabularies.values(), *([self.sketches] if self.sketches else [])]
        check_names((table.name for table in tables), self.url)
        sums = self.chunks.sums()
        if self.records != sums[0]:
            raise ManifestError(f"{self.url}: {self.records} records, but the shards hold another number")
        for (split, part), total in zip(self.columns, sums[1:-1], strict=True):
            if self.splits.get(split, {}).get(part) != total:
                raise ManifestError(f"{self.url}: split {split!r} part {part!r} does not add up to {total}")
        return self


def check_shards(shards: Sequence[Shard] | ShardList, chunks: ChunkTable, url: str) -> None:
    """Raise ManifestError if shards and chunks contradict each other, or a name leaves the folder."""
    if isinstance(shards, ShardList):  # a hundred thousand of them are not made one by one for this
        names, sizes = shards.names(), shards.index_bytes_S.tolist()
        bytes_S, records_S = shards.bytes_S, shards.records_S
    else:
        names, sizes = (n for s in shards for n in (s.name, s.index.name)), [shard.index.bytes for shard in shards]
        bytes_S, records_S = (np.array([getattr(s, name) for s in shards], np.int64) for name in ("bytes", "records"))
    check_names(names, url)
    for number, size in enumerate(sizes):
        if not 0 <= size <= MAX_CHUNK_BYTES:
            raise ManifestError(f"{url}: index of shard {shards[number].name} claims {size} bytes")
    problem = chunks.problem(bytes_S, records_S)
    if problem:
        raise ManifestError(f"{url}: shard {shards[problem[0]].name}, {problem[1]}")


def check_names(names: Iterable[str], url: str) -> None:
    """Raise ManifestError for the first name that is none of a file of this folder."""
    for name in names:
        if not NAME.fullmatch(name) or ".." in name:
            raise ManifestError(f"{url}: file name {name!r} leaves the data set's folder")


def read_table_file(storage: Storage, file: TableFile) -> bytes:
    """Bytes of a table; ManifestError unless they are those that the manifest names."""
    check_names([file.name], storage.url)
    if not 0 < file.bytes <= MAX_TABLE_BYTES:
        raise ManifestError(
            f"{storage.url}: table {file.name} claims {file.bytes} bytes, the limit is {MAX_TABLE_BYTES}"
        )
    try:
        data = storage.read(file.name, 0, file.bytes)
    except EOFError as error:
        raise ManifestError(f"{storage.url}: table {file.name} is cut short: {error}") from error
    except OSError as error:
        raise ManifestError(f"{storage.url}: table {file.name} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise ManifestError(f"{storage.url}: table {file.name} has another SHA-256 than {FILE} says")
    return data
