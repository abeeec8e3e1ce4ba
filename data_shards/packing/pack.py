"""Pack a source into shards: encoded and written by any number of workers, the manifest last.

The result does not depend on who worked: where shards and chunks end is decided by the records' sizes in the source's
order (`units/cutter.py`), and all numbers are added up in that order. A pack that is killed leaves complete shards and
how far it was (`units/log.py`), and the same call goes on from there. On any other error what it wrote is removed, and
there is no manifest; but what a log keeps stays when a storage or a worker fails. The place belongs to one pack at a
time (`lease/lease.py`); one that finds that it was followed by another removes nothing, for files of equal content have
equal names.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from data_shards.crew import Crew, Here, Processes, Works
from data_shards.errors import LeaseDoubtError, LeaseLostError
from data_shards.lease.lease import LEASE_S, Lease, take
from data_shards.packing.encode import UnitEncoder
from data_shards.packing.finish import finish
from data_shards.packing.grow import entry_of, next_lineage, refuse_unfit, vocabularies_in
from data_shards.packing.place import commit, is_own, refuse_packed, remove_replaced, writable
from data_shards.packing.units.cutter import Sizes
from data_shards.packing.units.line import ENCODE, KEYS, WRITE, Line, Progress
from data_shards.packing.units.log import EVERY_S, Log
from data_shards.packing.units.shard import ShardWriter, StoredKeys
from data_shards.packing.vocabularies import vocabularies_of, with_vocabularies
from data_shards.records.schema import DatasetSchema
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import FILE, Manifest
from data_shards.shards.opening import open_manifest
from data_shards.shards.storage import Storage
from data_shards.shards.versions import files_of_all, head_name

if TYPE_CHECKING:
    from data_shards.sources.base import Source

Told = Callable[[Progress], None]


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
    append: bool = False,
    lease_s: float = LEASE_S,
    crew: Crew | None = None,
    told: Told = lambda progress: None,
    log_s: float = EVERY_S,
) -> dict[str, Any]:
    """Write a data set and return a report.

    Args:
        source: where records come from (``data_shards.sources``).
        out_url: folder of the new data set.
        workers: processes that read and encode; 1 works in this process.
        shard_bytes: a shard is closed once it is at least this large.
        chunk_records, chunk_bytes: a chunk is closed at either limit.
        overwrite: replace a data set that is already there.
        append: make a new version of a data set that is there: its shards, and new ones with this source's records.
        lease_s: seconds after which a pack that gives no sign of life may be followed by another one.
        crew: who works, in place of processes of this machine. told: hears how far it is.
        log_s: seconds after which what is complete is noted, for whoever goes on after a kill.

    Returns:
        url, version (1 unless appended), records, samples, observations, shards, shards_before (complete from an
        earlier attempt), chunks, bytes, seconds, digest, splits, vocabularies (modality -> codes with a number of their
        own), source (the source's own report).

    Raises:
        ValueError: a record that does not fit the schema, a key twice, no record at all, or a data set that is there.
        JobError: the beginning of another pack is there, of other data or with other settings.
        LeaseHeldError: another pack is at work there. LeaseLostError: it has taken over.
        OSError: the bytes could not be stored.
    """
    begin = time.perf_counter()
    storage = writable(out_url, storage_options)
    if append and overwrite:
        raise ValueError("append to what is there, or overwrite it, not both")
    refuse_packed(storage, overwrite or append)
    what, advice = f"packing of {source.schema.name}", "pack into another place (--out)"
    with take(storage.url, what, advice, lease_s=lease_s, options=storage_options) as lease:
        # Again: another one may have finished between the look and the lease.
        refuse_packed(storage, overwrite or append)
        base = open_manifest(storage.url, storage_options) if append else None
        own = crew or (Processes(workers) if workers > 1 else Here())
        sizes = Sizes(shard_bytes, chunk_records, chunk_bytes)
        packing = _Packing(source, storage, lease, overwrite, sizes, own, base)
        manifest, before = packing.run(told, log_s)
    return {
        "url": storage.url,
        "version": 1 if manifest.lineage is None else manifest.lineage.number,
        "records": manifest.records,
        "samples": int(manifest.chunks.total_K.sum()),
        "observations": manifest.observations,
        "shards": len(manifest.shards),
        "shards_before": before,
        "chunks": len(manifest.chunks),
        "bytes": sum(shard.bytes + shard.index.bytes for shard in manifest.shards),
        "seconds": time.perf_counter() - begin,
        "digest": manifest.digest,
        "splits": manifest.splits,
        "vocabularies": {m.name: m.codes for m in manifest.schema.modalities if m.kind == "codes"},
        "source": manifest.source,
    }


def _learn_schema(source: Source, crew: Crew) -> None:
    """Let a source learn its schema from all of its data; ValueError for a series that no model could be trained on."""
    source.prepare(crew)
    source.units()
    for modality in source.schema.modalities:
        if modality.kind == "series" and modality.horizon is None:
            raise ValueError(
                f"series {modality.name} has no horizon, the length of its observation window; no model can be trained "
                "without one: give it in the schema"
            )


@dataclass(frozen=True)
class _Packing:
    """A pack into a place that is this process's own.

    Attributes:
        base: the data set that grows, if one does.
    """

    source: Source
    storage: Storage
    lease: Lease
    overwrite: bool
    sizes: Sizes
    crew: Crew
    base: Manifest | None = None

    def run(self, told: Told, log_s: float) -> tuple[Manifest, int]:
        """The data set, and how many of its shards an earlier attempt had made."""
        source, storage = self.source, self.storage
        _learn_schema(source, self.crew)
        base = self.base
        if base is not None:
            refuse_unfit(base, source)
        vocabularies = vocabularies_in(base) if base else vocabularies_of(source, self.crew)
        schema = base.schema if base else with_vocabularies(source.schema, vocabularies)
        log = Log(storage, schema, lambda: _job(source, schema, self.sizes, base), log_s)
        there = {name for name in storage.names() if not name.startswith("done-")}
        old = there if storage.exists(FILE) else set[str]()
        if self.overwrite:
            self._without_beginning()
        begin = log.last()
        if begin is None and base is not None:
            begin = entry_of(base)
        works: Works = {
            ENCODE: UnitEncoder(source, schema, vocabularies),
            WRITE: ShardWriter(storage),
            KEYS: StoredKeys(storage, schema),
        }
        try:
            with self.crew.team(works) as team:
                line = Line(team, storage, schema, self.sizes, self.lease, log, told, base is not None)
                line.run(source.units(), begin)
            lineage = next_lineage(base) if base else Lineage()
            report = source.report(line.totals.notes)
            manifest, head, files = finish(storage, line.totals, line.sealed, report, vocabularies, lineage)
            self.lease.confirm()
            if base is not None:
                files[head_name(base)] = storage.read(FILE)
            for name, data in files.items():
                storage.write(name, data)
            # The manifest last: until it is there, readers see the old data set, or none.
            commit(storage, head, self.lease, self.overwrite or base is not None)
        except BaseException as error:
            self._give_up(error, old, log)
            raise
        # Nothing names any other file any more.
        names = {name for own in line.sealed for name in (own.name, own.index.name)}
        if base is not None:
            names |= files_of_all(storage.url, storage.options)
        remove_replaced(storage, set(storage.names()), {*files, *names})
        return manifest, line.before - (len(base.shards) if base else 0)

    def _without_beginning(self) -> None:
        """Remove what an earlier attempt has noted, for everything is made anew."""
        for name in self.storage.names():
            if name.startswith("done-") and is_own(name):
                self.storage.delete(name)

    def _give_up(self, error: BaseException, old: set[str], log: Log) -> None:
        """Remove what was written and is worth nothing. Raises OSError, with what is left, for an OSError."""
        # A record that is wrong will be packed from data that are no longer the same.
        keep = log.files() if not isinstance(error, ValueError) else set()
        left = self._discard(old | keep)
        if isinstance(error, OSError):
            kept = f"could not be removed: {', '.join(left)}" if left else "nothing was kept"
            if keep:
                kept = f"{log.kept} shards are kept, and the same command goes on behind them"
            raise OSError(f"packing into {self.storage.url} stopped, {kept}: {error}") from error

    def _discard(self, keep: set[str]) -> list[str]:
        """Remove all files of a pack but some, unless they may be another's by now; returns what is left."""
        try:
            names = {name for name in self.storage.names() if name not in keep and is_own(name)}
            self.lease.confirm()
        except OSError:
            return ["its files"]
        except (LeaseLostError, LeaseDoubtError):
            return sorted(names)
        left = []
        for name in sorted(names):
            try:
                self.storage.delete(name)
            except OSError:
                left.append(name)
        return left


def _job(source: Source, schema: DatasetSchema, sizes: Sizes, base: Manifest | None) -> str | None:
    """SHA-256 of what decides every byte of the result; None if nobody can tell."""
    about = source.fingerprint()
    if about is None:
        return None
    facts = [about, schema.digest(), asdict(sizes), len(source.units()), base and base.digest]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
