"""A data set made from another one, shard by shard: same records, same chunks, and some modalities as vectors.

Each shard is made on its own, so any number of workers may share them, in any order; the result does not depend on who
made what. Whoever is stopped leaves complete shards and the journal of them (`journal.py`), and the same call goes on
behind those. Keys, splits, groups, labels, moments, times and vocabularies stay as they are, bit by bit.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_shards.lease.lease import LEASE_S, Lease, take
from data_shards.packing.journal import Journal, refuse_others
from data_shards.packing.place import commit, refuse_packed, remove_replaced, writable
from data_shards.packing.sealed import Sealed, tables_of_sealed
from data_shards.packing.shard_maker import Remade, Task
from data_shards.records.schema import RAGGED, DatasetSchema
from data_shards.records.statistics import Accumulator
from data_shards.shards.head import Head, head_bytes, opened, tables_of
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import LENGTHS, Manifest, read_table_file
from data_shards.shards.opening import MAX_BYTES
from data_shards.shards.storage import Storage

NOTES = "notes"  # entry of `Manifest.source`


class Made:
    """All shards so far. Their statistics are added up in the order of the shards, and none is kept."""

    def __init__(self, schema: DatasetSchema) -> None:
        self.schema = schema
        self.sealed: dict[int, Sealed] = {}
        self.statistics: dict[str, Accumulator] = {}
        self.notes: Counter[str] = Counter()
        self.fresh = self.again = 0
        self._waiting: dict[int, dict[str, Accumulator]] = {}
        self._next = 0

    def add(self, remade: Remade) -> None:
        """Take in one shard; they come in any order."""
        self.sealed[remade.number] = remade.sealed
        self.notes.update(remade.notes)
        self.fresh += remade.fresh
        self.again += remade.again
        self._waiting[remade.number] = remade.statistics
        while self._next in self._waiting:
            for split, accumulator in self._waiting.pop(self._next).items():
                # Into one that is its own: what has come from another process cannot be written to.
                self.statistics.setdefault(split, Accumulator(self.schema)).merge(accumulator)
            self._next += 1

    def in_order(self) -> list[Sealed]:
        """The shards as they follow each other."""
        return [self.sealed[number] for number in range(len(self.sealed))]


def remake(
    manifest: Manifest,
    out_url: str,
    schema: DatasetSchema,
    lineage: Lineage,
    job: str,
    run: Callable[[Sequence[Task]], Iterable[Remade]],
    what: str,
    *,
    told: Callable[[Remade], None] = lambda remade: None,
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    lease_s: float = LEASE_S,
) -> tuple[Manifest, Made]:
    """Make all shards, write the manifest last; the new data set, and how it was made.

    Args:
        manifest: the data set that it is made from. schema, lineage: of the new one.
        job: SHA-256 of all that decides the bytes of the result.
        run: makes shards with a `ShardMaker` for each worker, and gives them in any order.
        what: is going on ("embedding"), for messages. told: hears of each shard.
        overwrite: replace a data set that is there, or the beginning of another one.

    Raises:
        ValueError: a data set is there, or the place cannot be written to. JobError: the beginning of another one is.
        ShardError: the original is damaged. LeaseHeldError, LeaseLostError, OSError: as `pack`.
    """
    storage = writable(out_url, storage_options)
    if storage.url == manifest.url:
        raise ValueError(f"{storage.url} is the data set that is read: give another place (--out)")
    refuse_packed(storage, overwrite)
    journal = Journal(storage, job)
    name = f"{what} of {manifest.schema.name}"
    with take(storage.url, name, "choose another place (--out)", lease_s=lease_s, options=storage_options) as lease:
        # Again: another one may have finished between the look and the lease.
        refuse_packed(storage, overwrite)
        if not overwrite:
            refuse_others(storage, job, what)
        done = journal.entries(len(manifest.shards))
        made = Made(schema)
        for remade in run([(number, done.get(number)) for number in range(len(manifest.shards))]):
            if remade.fresh:
                # Workers may write shards of equal content under equal names; only the owner says that one counts.
                lease.confirm()
                journal.add(remade.number, remade.sealed, remade.notes)
            made.add(remade)
            told(remade)
        return _write_head(manifest, storage, schema, lineage, made, lease, overwrite), made


def _write_head(
    old: Manifest,
    storage: Storage,
    schema: DatasetSchema,
    lineage: Lineage,
    made: Made,
    lease: Lease,
    overwrite: bool,
) -> Manifest:
    """Tables, vocabularies and manifest; then what nothing names any more is removed."""
    shards, chunks = tables_of_sealed(made.in_order(), len(old.columns), schema.has_moments)
    statistics = {split: own for split, own in sorted(made.statistics.items()) if own.records}
    tables, files = tables_of(shards, chunks, statistics, schema.has_moments)
    for file in old.vocabularies.values():
        files[file.name] = read_table_file(old.storage, file)
    head = Head(
        schema=schema,
        source=_source(old, schema, made.notes),
        records=old.records,
        samples=int(chunks.total_K.sum()),
        observations=old.observations,
        columns=old.columns,
        splits=old.splits,
        statistics={split: accumulator.summary() for split, accumulator in statistics.items()},
        tables=tables,
        vocabularies=old.vocabularies,
        lineage=lineage,
    )
    text = head_bytes(head)
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"{storage.url}: the manifest would have {len(text)} bytes, the limit is {MAX_BYTES}, as it holds "
            "statistics of each feature: ask for fewer tokens"
        )
    lease.confirm()
    for name, data in files.items():
        storage.write(name, data)
    manifest = opened(head, hashlib.sha256(text).hexdigest(), shards, chunks, storage).check()
    commit(storage, text, lease, overwrite)
    names = {name for shard in shards for name in (shard.name, shard.index.name)}
    remove_replaced(storage, set(storage.names()), {*files, *names})
    return manifest


def _source(old: Manifest, schema: DatasetSchema, notes: Counter[str]) -> dict[str, Any]:
    """The report of the original's source, with what was counted here, and lengths of what still has some."""
    ragged = {spec.name for spec in schema.modalities if spec.kind in RAGGED}
    lengths = {name: own for name, own in (old.lengths or {}).items() if name in ragged}
    source = {key: value for key, value in old.source.items() if key != LENGTHS}
    source[NOTES] = {**old.source.get(NOTES, {}), **dict(sorted(notes.items()))}
    return {**source, LENGTHS: lengths} if lengths else source
