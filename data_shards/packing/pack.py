"""Pack a source into shards. Records are read and encoded in parallel, shards are written in order, the manifest last.

The result does not depend on the number of processes: work units are merged in the source's order. On any error the
files written so far are removed, and there is no manifest. The place belongs to one pack at a time (`lease/lease.py`);
one that finds that it was followed by another removes nothing, for files of equal content have equal names.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from data_shards.errors import LeaseDoubtError, LeaseLostError
from data_shards.lease.lease import LEASE_S, Lease, take
from data_shards.packing.encode import UnitEncoder
from data_shards.packing.shard_writer import ShardSetWriter
from data_shards.packing.vocabularies import vocabularies_of, with_vocabularies
from data_shards.packing.workers import in_order
from data_shards.shards.manifest import FILE, Manifest
from data_shards.shards.storage import Storage

if TYPE_CHECKING:
    from data_shards.sources.base import Source

# What is written beside a manifest, `done` while it is not there yet
_OWN = re.compile(
    r"shard-\d+-[0-9a-f]{12}\.(tar|index)|(shards|chunks|sketches|vocabulary)-[0-9a-f]{12}\.parquet"
    r"|(manifest|done)-\d+-[0-9a-f]{12}\.json"
)


def pack(
    source: Source,
    out_url: str,
    *,
    workers: int = 1,
    shard_bytes: int = 64 << 20,
    chunk_records: int = 64,
    chunk_bytes: int = 8 << 20,
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    lease_s: float = LEASE_S,
) -> dict[str, Any]:
    """Write a data set and return a report.

    Args:
        source: where records come from (``data_shards.sources``).
        out_url: folder of the new data set.
        workers: processes that read and encode; 1 works in this process.
        shard_bytes: a shard is closed once it is at least this large.
        chunk_records, chunk_bytes: a chunk is closed at either limit.
        overwrite: replace a data set that is already there.
        lease_s: seconds after which a pack that gives no sign of life may be followed by another one.

    Returns:
        url, records, samples, observations, shards, chunks, bytes, seconds, digest, splits, vocabularies (modality ->
        codes with a number of their own), source (the source's own report).

    Raises:
        ValueError: a record that does not fit the schema, a key twice, no record at all, or a data set that is there.
        LeaseHeldError: another pack is at work there. LeaseLostError: it has taken over.
        OSError: the bytes could not be stored.
    """
    begin = time.perf_counter()
    storage = writable(out_url, storage_options)
    refuse_packed(storage, overwrite)
    what, advice = f"packing of {source.schema.name}", "pack into another place (--out)"
    with take(storage.url, what, advice, lease_s=lease_s, options=storage_options) as lease:
        # Again: another one may have finished between the look and the lease.
        refuse_packed(storage, overwrite)
        manifest = _write(source, storage, lease, workers, overwrite, (shard_bytes, chunk_records, chunk_bytes))
    return {
        "url": storage.url,
        "records": manifest.records,
        "samples": int(manifest.chunks.total_K.sum()),
        "observations": manifest.observations,
        "shards": len(manifest.shards),
        "chunks": len(manifest.chunks),
        "bytes": sum(shard.bytes + shard.index.bytes for shard in manifest.shards),
        "seconds": time.perf_counter() - begin,
        "digest": manifest.digest,
        "splits": manifest.splits,
        "vocabularies": {m.name: m.codes for m in manifest.schema.modalities if m.kind == "codes"},
        "source": manifest.source,
    }


def writable(out_url: str, options: dict[str, Any] | None) -> Storage:
    """The folder of a new data set; ValueError if nothing can be written there."""
    storage = Storage(out_url, options)
    if storage.scheme in ("http", "https"):
        raise ValueError(f"{storage.url} can only be read; pack into a folder or an object store")
    return storage


def refuse_packed(storage: Storage, overwrite: bool) -> None:
    """Raise ValueError if a data set is there that is not to be replaced."""
    if not overwrite and storage.exists(FILE):
        raise ValueError(
            f"{storage.url} already holds a packed data set; choose another folder, or overwrite it (--overwrite)"
        )


def _learn_schema(source: Source) -> None:
    """Let a source learn its schema from all of its data; ValueError for a series that no model could be trained on."""
    source.units()
    for modality in source.schema.modalities:
        if modality.kind == "series" and modality.horizon is None:
            raise ValueError(
                f"series {modality.name} has no horizon, the length of its observation window; no model can be trained "
                "without one: give it in the schema"
            )


def _write(
    source: Source, storage: Storage, lease: Lease, workers: int, overwrite: bool, sizes: tuple[int, int, int]
) -> Manifest:
    """Shards and manifest of a place that is this process's own; sizes as the arguments of `pack`."""
    _learn_schema(source)
    vocabularies = vocabularies_of(source, workers)
    schema = with_vocabularies(source.schema, vocabularies)
    old = set(storage.names()) if overwrite else set()
    writer = ShardSetWriter(storage, schema, *sizes, lease)
    try:
        for unit in in_order(UnitEncoder(source, schema, vocabularies), source.units(), workers):
            writer.add(unit)
        # The manifest last: until it is there, readers see the old data set, or none.
        manifest, head = writer.finish(source.report, vocabularies)
        commit(storage, head, lease, overwrite)
    except BaseException as error:
        left = _discard(writer, lease, old)
        if isinstance(error, OSError):
            kept = f"could not be removed: {', '.join(left)}" if left else "nothing was kept"
            raise OSError(f"packing into {storage.url} stopped, {kept}: {error}") from error
        raise
    # Nothing names these files any more.
    remove_replaced(storage, old, writer.written)
    return manifest


def commit(storage: Storage, head: bytes, lease: Lease, overwrite: bool) -> None:
    """Write the manifest: from now on there is a data set."""
    lease.confirm()
    if overwrite:
        storage.write(FILE, head)
    else:
        storage.create(FILE, head)


def _discard(writer: ShardSetWriter, lease: Lease, keep: set[str]) -> list[str]:
    """Remove what was written, unless it may be another's by now; returns what is left."""
    try:
        lease.confirm()
    except (LeaseLostError, LeaseDoubtError):
        return sorted(set(writer.written) - keep)
    return writer.discard(keep)


def remove_replaced(storage: Storage, old: set[str], written: Collection[str]) -> None:
    """Remove files of the data set that this one replaced; only names that a pack writes."""
    for name in old - set(written):
        if _OWN.fullmatch(name):
            storage.delete(name)
