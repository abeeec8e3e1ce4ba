"""Whether a data set is what its manifest says: every file, or (deep) every byte and record, shard by shard.

Shapes: n records of a shard.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_shards.crew import Buffer, Team, in_order
from data_shards.errors import ManifestError, RecordError, ShardError
from data_shards.records.decoder import Decoder
from data_shards.shards.index import ShardIndex
from data_shards.shards.manifest import Manifest, read_table_file
from data_shards.shards.opening import open_manifest
from data_shards.shards.reader import chunk_problem, read_index

VERIFY = "verify"
NAMED = 20  # keys of a damage that are said


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        file: name. chunk: number in the shard; None: the whole file. what: is wrong with it.
        records: that cannot be read because of it; ``keys``: the first of them, where they are known.
    """

    file: str
    chunk: int | None
    what: str
    records: int
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Of one shard.

    Attributes:
        bytes: that were read.
    """

    shard: int
    damages: tuple[Damage, ...]
    bytes: int

    def as_table(self) -> dict[str, Any]:
        """Plain data, for `of_table`."""
        return asdict(self)

    @staticmethod
    def of_table(table: Mapping[str, Any]) -> Finding:
        """Inverse of `as_table`. Raises TypeError, KeyError: it is none."""
        damages = tuple(Damage(**{**each, "keys": tuple(each["keys"])}) for each in table["damages"])
        return Finding(table["shard"], damages, table["bytes"])


@dataclass(frozen=True)
class Verifier:
    """Looks at single shards; what a worker does.

    Attributes:
        digest: of the data set that is meant. deep: read all bytes.
    """

    url: str
    digest: str
    deep: bool
    options: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "manifest"}

    @cached_property
    def manifest(self) -> Manifest:
        """Opened once in each process. Raises ManifestError: another data set is there by now."""
        found = open_manifest(self.url, self.options)
        if found.digest != self.digest:
            raise ManifestError(f"{self.url} is another data set by now: verify it anew")
        return found

    def __call__(self, number: int, buffers: Sequence[Buffer] = ()) -> Finding:
        """What is wrong with a shard and its index."""
        shard, damages = self.manifest.shards[number], list[Damage]()
        index, read = None, shard.index.bytes
        try:
            index = read_index(self.manifest, number)
        except ShardError as error:
            damages.append(Damage(shard.index.name, None, error.cause, shard.records))
        if not self.deep:
            damages += self._length(number, index)
            return Finding(number, tuple(damages), read)
        data, problem = self._bytes(number)
        if problem:
            damages.append(Damage(shard.name, None, problem, *_lost(index, self._bad(data, index))))
        elif hashlib.sha256(data).hexdigest() != shard.sha256:
            # Where, if it is inside a chunk; else behind the last one, and no record is lost
            found = list(self._chunks(number, data, index))
            damages += found or [Damage(shard.name, None, "another SHA-256 than the manifest says", 0)]
        elif index is not None:
            # The bytes are those that were packed: do they hold records of this schema?
            damages += self._chunks(number, data, index)
        return Finding(number, tuple(damages), read + len(data))

    def _length(self, number: int, index: ShardIndex | None) -> Iterator[Damage]:
        shard = self.manifest.shards[number]
        keys = () if index is None else tuple(index.keys[:NAMED])
        try:
            size = self.manifest.storage.size(shard.name)
        except (OSError, EOFError) as error:
            yield Damage(shard.name, None, f"cannot be read: {error}", shard.records, keys)
            return
        if size is not None and size < shard.bytes:
            gone = (
                range(shard.records) if index is None else np.flatnonzero(index.start_n + index.size_n > size).tolist()
            )
            yield Damage(shard.name, None, f"has {size} bytes of {shard.bytes}", *_lost(index, gone))
        elif size is not None and size > shard.bytes:
            yield Damage(shard.name, None, f"has {size} bytes, the manifest says {shard.bytes}", 0)

    def _bytes(self, number: int) -> tuple[bytes, str | None]:
        """Bytes of a shard, as many as there are, and why they are not all."""
        shard, storage = self.manifest.shards[number], self.manifest.storage
        try:
            data = storage.read(shard.name, exact=False)
        except (OSError, EOFError) as error:
            return b"", f"cannot be read: {error}"
        if len(data) != shard.bytes:
            return data, f"has {len(data)} bytes, the manifest says {shard.bytes}"
        return data, None

    def _bad(self, data: bytes, index: ShardIndex | None) -> list[int]:
        """Rows of the records that are not there, or not what was packed."""
        if index is None:
            return []
        return [row for row in range(len(index)) if self._record(memoryview(data), index, row)]

    def _record(self, data: memoryview, index: ShardIndex, row: int) -> str | None:
        """What is wrong with a record."""
        start, size = int(index.start_n[row]), int(index.size_n[row])
        payload = data[start : start + size]
        if len(payload) != size or zlib.crc32(payload) != int(index.crc_n[row]):
            return "its CRC-32 is another one"
        try:
            Decoder(self.manifest.schema).columns(payload, index.keys[row])
        except RecordError as error:
            return str(error)
        return None

    def _chunks(self, number: int, data: bytes, index: ShardIndex | None) -> Iterator[Damage]:
        shard, row, view = self.manifest.shards[number], 0, memoryview(data)
        for k, chunk in enumerate(shard.chunks):
            own = view[chunk.offset : chunk.offset + chunk.length]
            if index is None:
                if zlib.crc32(own) != chunk.crc32:
                    yield Damage(shard.name, k, "wrong CRC-32", chunk.records)
                continue
            problem = chunk_problem(own, chunk, index, row)
            rows = range(row, row + chunk.records)
            bad = {n: why for n in rows if (why := self._record(view, index, n))}
            if problem:
                yield Damage(shard.name, k, problem[0], *_lost(index, list(bad)))
            elif bad:
                first = next(iter(bad))
                yield Damage(shard.name, k, f"record {index.keys[first]}: {bad[first]}", *_lost(index, list(bad)))
            row += chunk.records


def _lost(index: ShardIndex | None, rows: Iterable[int]) -> tuple[int, tuple[str, ...]]:
    found = list(rows)
    keys = () if index is None else tuple(index.keys[row] for row in found[:NAMED])
    return len(found), keys


def verify(
    manifest: Manifest,
    team: Team,
    before: Mapping[int, Finding],
    told: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Findings of all shards, by number. The team knows a `Verifier` as the work `VERIFY`.

    Args:
        before: what an earlier attempt has found. told: hears of each shard that is looked at now.
    """
    found, wanted = dict(before), [number for number in range(len(manifest.shards)) if number not in before]
    for finding in in_order(team, VERIFY, wanted):
        found[finding.shard] = finding
        told(finding)
    return [found[number] for number in range(len(manifest.shards))]


def damaged_tables(manifest: Manifest) -> list[Damage]:
    """Tables that are not what the head says; those of shards and chunks were read when it was opened."""
    found = []
    files = [*([manifest.sketches] if manifest.sketches else []), *manifest.vocabularies.values()]
    for file in files:
        try:
            read_table_file(manifest.storage, file)
        except ManifestError as error:
            found.append(Damage(file.name, None, str(error), 0))
    return found
