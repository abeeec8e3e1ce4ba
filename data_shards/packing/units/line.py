"""The line of a pack: units go to whoever encodes them, shards to whoever writes them, and all is counted in order.

Only sizes, hashes of keys and statistics come by here. A few units are under way at a time, and as many shards as there
are workers; what more there is waits.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_shards.crew import Kept, Team, Ticket, in_order
from data_shards.errors import RecordError
from data_shards.lease.lease import Guard
from data_shards.packing.sealed import Sealed
from data_shards.packing.units.cutter import Cut, Cutter, Sizes
from data_shards.packing.units.encoded import Pair, Summary
from data_shards.packing.units.keys import KeyCheck
from data_shards.packing.units.log import Entry, Log
from data_shards.packing.units.shard import ShardPlan, stored_keys
from data_shards.packing.units.totals import Totals
from data_shards.records.schema import DatasetSchema
from data_shards.shards.storage import Storage

logger = logging.getLogger(__name__)

ENCODE, WRITE, KEYS = "encode", "write", "keys"


@dataclass(frozen=True)
class Progress:
    """How far a pack is.

    Attributes:
        records, bytes: in complete shards, with those of an earlier attempt. units: taken in, of ``all_units``.
        seconds: since this attempt began; ``before`` of the units were taken in by an earlier one.
    """

    records: int
    bytes: int
    units: int
    all_units: int
    before: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """As long for each unit as so far; None before the first."""
        done = self.units - self.before
        return self.seconds * (self.all_units - self.units) / done if done > 0 else None


class Line:
    """One pack.

    Attributes:
        totals, sealed: of all that is complete; final after `run`.
        before: shards that an earlier attempt had made.
    """

    def __init__(
        self,
        team: Team,
        storage: Storage,
        schema: DatasetSchema,
        sizes: Sizes,
        guard: Guard,
        log: Log,
        told: Callable[[Progress], None],
        grows: bool = False,
    ) -> None:
        self.team, self.storage, self.schema, self.sizes = team, storage, schema, sizes
        self.guard, self.log, self.told = guard, log, told
        self.grows = grows  # a data set that is there: its shards are not made again
        self.totals = Totals(schema)
        self.sealed: list[Sealed] = []
        self.before = 0
        self._cutter = Cutter(sizes)
        self._units: dict[int, Kept] = {}  # of which not all records are written
        self._writing: deque[tuple[Cut, Ticket]] = deque()
        self._note: tuple[int, int, int, bytes] | None = None  # shards, unit, row and totals of the next entry
        self._records = self._bytes = 0

    def run(self, units: Sequence[Any], entry: Entry | None = None) -> None:
        """Pack all units, or those behind what an entry of the log says. Raises ValueError: a key twice; and what
        workers raise."""
        started = time.monotonic()
        with KeyCheck() as keys:
            unit, row = self._begin(keys, entry)
            first = unit
            for summary, kept in self._encoded(units, unit):
                self._units[unit] = kept
                self._cut(keys, unit, row, summary)
                unit, row = unit + 1, 0
                self.told(Progress(self._records, self._bytes, unit, len(units), first, time.monotonic() - started))
            for cut in self._cutter.close():
                self._write(cut, tuple(self.totals.columns))
            self._drain(0)
            self.told(Progress(self._records, self._bytes, unit, len(units), first, time.monotonic() - started))
            twice = keys.twice(lambda shard: stored_keys(self.storage, self.schema, self.sealed[shard]))
        if twice is not None:
            key, first, second = twice
            raise ValueError(
                f"record key {key!r} occurs twice (shards {first} and {second}); keys must be unique in the data set"
            )

    def _begin(self, keys: KeyCheck, entry: Entry | None) -> tuple[int, int]:
        """(unit, row) of the first record that is not packed yet."""
        if entry is None:
            return 0, 0
        try:
            for number, hash_n in enumerate(in_order(self.team, KEYS, entry.shards)):
                keys.add(hash_n, number)
        except (OSError, EOFError, RecordError) as error:
            if self.grows:
                raise
            logger.warning("what an earlier pack left at %s is damaged (%s): begun anew", self.storage.url, error)
            self.log.forget()
            keys.forget()
            return 0, 0
        for sealed in entry.shards:
            self._count(sealed)
        self.totals, self.before = entry.totals, len(entry.shards)
        self._cutter = Cutter(self.sizes, self.before)
        logger.info("%d shards with %d records are complete from before", self.before, self._records)
        return entry.unit, entry.row

    def _encoded(self, units: Sequence[Any], first: int) -> Iterator[tuple[Summary, Kept]]:
        """Every unit from one on, in order, a few of them ahead."""
        ahead: deque[Ticket] = deque()
        number = first
        while ahead or number < len(units):
            while number < len(units) and len(ahead) < max(1, 2 * self.team.size - 1):
                ahead.append(self.team.ask(ENCODE, units[number], keep=True))
                number += 1
            self._drain(self.team.size)
            yield ahead.popleft().get()

    def _cut(self, keys: KeyCheck, unit: int, row: int, summary: Summary) -> None:
        """Take in a unit from a row on; have every shard written that it fills."""
        start = row
        for cut in self._cutter.add(unit, summary.size_n, row):
            stop = cut.pieces[-1].stop
            keys.add(summary.hash_n[start:stop], cut.number)
            start = stop
            if self._note is None and self.log.due:
                # The totals are those before this unit, of which some records may be in the next shard.
                self._note = cut.number + 1, unit, stop, self.totals.to_bytes()
            self._write(cut, self.totals.columns_until(summary, stop))
        keys.add(summary.hash_n[start:], self._cutter.number)
        self.totals.add(summary)

    def _write(self, cut: Cut, columns: tuple[Pair, ...]) -> None:
        self.guard.confirm()
        kept = [self._units[piece.unit] for piece in cut.pieces]
        self._writing.append((cut, self.team.ask(WRITE, ShardPlan(cut, columns), kept)))

    def _drain(self, most: int) -> None:
        """Take in shards that are written, in order, until no more than ``most`` are not."""
        while self._writing and (len(self._writing) > most or self._writing[0][1].done()):
            cut, ticket = self._writing.popleft()
            sealed = ticket.get()
            self._look(sealed)
            self._count(sealed)
            self._free(cut)
            if self._note is not None and self._note[0] == len(self.sealed):
                self.guard.confirm()
                self.log.add(self.sealed, *self._note[1:])
                self._note = None

    def _free(self, cut: Cut) -> None:
        """Buffers of units that lie before the shard's last one are needed no more."""
        last = cut.pieces[-1].unit
        for unit in [number for number in self._units if number < last]:
            self._units.pop(unit).free()

    def _look(self, sealed: Sealed) -> None:
        """Raise OSError if a shard is not where this process would read it."""
        if not self.team.apart or self.storage.scheme not in ("file", "memory"):
            return
        if not all(self.storage.exists(name) for name in (sealed.name, sealed.index.name)):
            raise OSError(
                f"{sealed.name} was written on another machine and is not at {self.storage.url} on this one: give a "
                "folder that all machines share, or an object store (--out)"
            )

    def _count(self, sealed: Sealed) -> None:
        self.sealed.append(sealed)
        self._records += sealed.records
        self._bytes += sealed.bytes + sealed.index.bytes
