"""Whether the owner of a lease is still there, as another process can tell."""

from __future__ import annotations

import logging

from data_shards.errors import LeaseDoubtError, LeaseLostError
from data_shards.lease.clock import Clock
from data_shards.lease.entries import Entries, entries_at
from data_shards.lease.record import Parent, Record

logger = logging.getLogger(__name__)

UNREADABLE_S = 10.0  # an entry that never becomes readable: its owner ended while it was writing it


class Follower:
    """The guard of a process that works on behalf of a lease which another process of the same job holds."""

    def __init__(self, parent: Parent, every_s: float, clock: Clock | None = None) -> None:
        self._parent, self._every_s, self._clock = parent, every_s, clock or Clock()
        self._confirmed = self._clock.now()

    def check(self) -> None:
        """As `Guard.check`, but asks the storage if that was not done for `every_s` seconds."""
        if self._clock.now() - self._confirmed > self._every_s:
            self.confirm()

    def confirm(self) -> None:
        """As `Guard.confirm`."""
        now = self._clock.now()
        try:
            held = holds(self._parent, self._clock)
        except OSError as error:
            raise LeaseDoubtError(f"{self._parent.place}: {error}") from error
        if not held:
            raise LeaseLostError(f"{self._parent.place} belongs to another process by now, or is free")
        self._confirmed = now


class Watch:
    """Looks at an owner again and again. A process of this host is judged at once, any other by its heartbeats."""

    def __init__(self, clock: Clock, what: str, place: str) -> None:
        self._clock, self._name = clock, f"{what} at {place}"
        self._number: int | None = None
        self._since = 0.0
        self._changed = False

    def is_free(self, seen: set[int], head: Record | None) -> bool:
        """Whether nobody owns the place, given its entries and the newest one."""
        if not seen:
            return True
        if head is None:
            return self._silent(max(seen), UNREADABLE_S)
        if head.owner.is_dead():
            return True
        if head.owner.shares_clock() and self._clock.now() - head.clock >= head.lease_s:
            return True
        if head.owner.runs_here():
            return False
        if self._number is None:
            logger.warning("%s was %s: looking for up to %g s whether it still is", self._name, head, head.lease_s)
        return self._silent(max(seen), head.lease_s)

    def is_alive(self, head: Record) -> bool:
        """Whether the owner, which `is_free` was asked about, has certainly given a sign of life."""
        return head.owner.runs_here() or self._changed

    def _silent(self, number: int, seconds: float) -> bool:
        """Whether the newest entry has been the same for so long, as seen from here."""
        if number != self._number:
            self._changed = self._number is not None
            self._number, self._since = number, self._clock.now()
        return self._clock.now() - self._since >= seconds


def head_of(entries: Entries, seen: set[int]) -> Record | None:
    """The newest of these entries; None if it is not there any more, or cannot be read (yet)."""
    data = entries.read(max(seen)) if seen else None
    return None if data is None else Record.from_json(data)


def newest(entries: Entries, clock: Clock) -> Record | None:
    """The newest entry of all, None if there is none.

    Raises OSError: there is one, and for a second it could not be read.
    """
    for _ in range(50):
        seen = entries.numbers()
        record = head_of(entries, seen)
        if record is not None or not seen:
            return record
        clock.sleep(0.02)  # its owner was just replacing it by the next
    raise OSError(f"entry {max(seen)} of a lease cannot be read")


def holds(parent: Parent, clock: Clock) -> bool:
    """Whether a lease is still held by the owner that it names. Raises OSError: the storage is away."""
    head = newest(entries_at(parent.place, parent.stem), clock)
    return head is not None and head.token == parent.token
