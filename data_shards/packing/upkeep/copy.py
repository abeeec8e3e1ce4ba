"""A data set at another place: the same bytes, so the same digest; every file is compared before it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_shards.crew import Buffer, Crew, in_order
from data_shards.errors import ManifestError, ShardError
from data_shards.lease.lease import LEASE_S, take
from data_shards.packing.place import commit, refuse_packed, remove_replaced, writable
from data_shards.shards.manifest import FILE, Manifest, read_table_file
from data_shards.shards.opening import MAX_BYTES, open_manifest
from data_shards.shards.storage import Storage
from data_shards.shards.versions import ancestors_of

COPY = "copy"
Wanted = tuple[str, int, str]
"""Name, length and SHA-256 of a file."""


@dataclass(frozen=True)
class Copier:
    """Copies single files; what a worker does."""

    source: Storage
    target: Storage

    def __call__(self, wanted: Wanted, buffers: Sequence[Buffer] = ()) -> tuple[str, int]:
        """Name of the file, and how many bytes were copied: 0 if it was there already, byte by byte.

        Raises ShardError: the original is damaged, or cannot be read. OSError: the copy could not be stored.
        """
        name, size, sha256 = wanted
        if self.target.exists(name) and self._same(self.target, wanted):
            return name, 0
        try:
            data = self.source.read(name, 0, size)
        except (OSError, EOFError) as error:
            raise ShardError(name, f"cannot be copied: {error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ShardError(name, "has another SHA-256 than the manifest says: it is not copied", reason="checksum")
        self.target.write(name, data)
        if not self._same(self.target, wanted):
            raise OSError(f"{name}: what {self.target.url} gives back is not what was written")
        return name, size

    @staticmethod
    def _same(storage: Storage, wanted: Wanted) -> bool:
        name, size, sha256 = wanted
        if storage.size(name) not in (size, None):
            return False
        return hashlib.sha256(storage.read(name, exact=False)).hexdigest() == sha256


def copy(
    url: str,
    out_url: str,
    crew: Crew,
    *,
    told: Callable[[str, int, int], None] = lambda name, size, total: None,
    storage_options: dict[str, Any] | None = None,
    versions: bool = False,
    overwrite: bool = False,
    lease_s: float = LEASE_S,
) -> dict[str, Any]:
    """Copy a data set, its newest version or the one that the URL names, or all; the manifest is written last.

    Whoever is stopped leaves whole files, and the same call goes on behind those.

    Args:
        told: hears the name of each file, its bytes that were copied, and the bytes of all.
        versions: with all versions that it has grown from and that are kept; what they share is copied once.

    Returns:
        url, digest, version (its number), versions (how many were copied), records, files, bytes, copied (bytes that
        were not there already).

    Raises:
        ValueError: a data set is there, or the place cannot be written to. ShardError, ManifestError: the original is
            damaged. LeaseHeldError, OSError: as `pack`.
    """
    manifest = open_manifest(url, storage_options)
    head = _head(url, manifest.storage, manifest.digest)
    ancestors = ancestors_of(manifest) if versions else {}
    earlier = {place.rsplit("/", 1)[-1]: _head(place, manifest.storage, digest) for digest, place in ancestors.items()}
    target = writable(out_url, storage_options)
    if target.url == manifest.url:
        raise ValueError(f"{target.url} is the data set that is read: give another place")
    refuse_packed(target, overwrite)
    # By name, which carries the content's digest: what versions share is there once.
    wanted: dict[str, Wanted] = {}
    for own in (manifest, *(open_manifest(place, storage_options) for place in ancestors.values())):
        wanted |= {file[0]: file for file in _files(own)}
    total, copied = sum(size for _, size, _ in wanted.values()), 0
    what = f"copying of {manifest.schema.name}"
    with take(target.url, what, "choose another place", lease_s=lease_s, options=storage_options) as lease:
        refuse_packed(target, overwrite)
        with crew.team({COPY: Copier(manifest.storage, target)}) as team:
            for name, size in in_order(team, COPY, wanted.values()):
                copied += size
                told(name, size, total)
        for file in (*manifest.tables, *manifest.vocabularies.values()):
            read_table_file(target, file)
        for name, text in earlier.items():
            target.write(name, text)
        commit(target, head, lease, overwrite)
        remove_replaced(target, set(target.names()), {*wanted, *earlier})
    again = open_manifest(target.url, storage_options)
    return {
        "url": again.url,
        "digest": again.digest,
        "version": 1 if again.lineage is None else again.lineage.number,
        "versions": 1 + len(earlier),
        "records": again.records,
        "files": len(wanted) + len(earlier) + 1,
        "bytes": total + len(head) + sum(map(len, earlier.values())),
        "copied": copied,
    }


def _files(manifest: Manifest) -> Iterator[Wanted]:
    """All files that a version names."""
    for file in (*manifest.tables, *manifest.vocabularies.values()):
        yield file.name, file.bytes, file.sha256
    for shard in manifest.shards:
        yield shard.name, shard.bytes, shard.sha256
        yield shard.index.name, shard.index.bytes, shard.index.sha256


def _head(url: str, storage: Storage, digest: str) -> bytes:
    """Bytes of the manifest that was opened."""
    name = url.rsplit("/", 1)[-1] if url.endswith(".json") else FILE
    text = storage.read(name, 0, storage.size(name) or MAX_BYTES, exact=False)
    again = open_manifest(url, storage.options)
    if again.digest != digest:
        raise ManifestError(f"{storage.url} became another data set while it was read: copy it again")
    return text
