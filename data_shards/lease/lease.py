"""One owner at a time for a name on a storage: taken before the first write, looked at before every commit.

The owner's newest entry (`entries.py`) is the lease. A heartbeat creates the entry with the next number and removes the
one before; a take-over creates that very number as well. As a number can be created once, either the owner goes on or
another one takes over, never both, and no clocks of two hosts are compared.

What holds:

- Of several who take a free name, or that of a dead owner, at the same time, one gets it.
- A dead process of this host is followed at once (`owner.py`). Any other owner keeps the name until `lease_s` seconds
  have passed without a heartbeat: by the machine's own clock where both run on one, else by watching that long.
- `check` lets an owner go on for three quarters of `lease_s` after its last confirmed heartbeat began; the clock does
  not stop with the process or the machine. `confirm` makes a heartbeat first. So whoever was frozen or cut off finds
  out before it writes: what it begins to write within a quarter of `lease_s` (15 s) after a look is its own.

What does not: a process that is frozen exactly between its look and the write that follows, for longer than that
quarter, and then woken, does that one write. Those that commit something therefore do it by creating a file that must
not be there yet (COMMIT, a new manifest), under names that the next owner has cleared.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import uuid
from typing import Any, Protocol

from data_shards.errors import LeaseDoubtError, LeaseHeldError, LeaseLostError
from data_shards.lease.clock import Clock
from data_shards.lease.entries import SETTLE_S, Entries, entries_at
from data_shards.lease.owner import this_process
from data_shards.lease.record import Parent, Record
from data_shards.lease.watch import Watch, head_of, holds, newest

logger = logging.getLogger(__name__)

LEASE_S = 60.0
BEATS = 6  # heartbeats in one lease
SAFE = 0.75  # of a lease, in which its owner may write
TRIES = 3
RETRY_S = 0.2


class Guard(Protocol):
    """What stands before every write under a name."""

    def check(self) -> None:
        """Whether the name is still one's own, without asking the storage.

        Raises LeaseLostError: no. LeaseDoubtError: nothing was heard from the storage for too long.
        """

    def confirm(self) -> None:
        """The same, right before a commit: the storage is asked. Raises the same."""


class Unowned:
    """For those who write under nobody's name, or whose rank 0 looks for all."""

    def check(self) -> None:
        """Nothing to lose."""

    def confirm(self) -> None:
        """Nothing to lose."""


class Lease:
    """A name that this process owns; made by `take`. A context manager: it is released at the end.

    `parent` is this lease as others know it who work, or take their own, on its behalf.
    """

    def __init__(self, entries: Entries, first: Record, parent: Parent, clock: Clock) -> None:
        self.parent = parent
        self.place, self.token, self._what = parent.place, first.token, first.what
        self._entries, self._first, self._clock = entries, first, clock
        self._mine: set[int] = set()
        self._confirmed = first.clock
        self._lost: LeaseLostError | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether somebody else has it by now, as far as is known here."""
        return self._lost is not None

    def check(self) -> None:
        """As `Guard.check`."""
        if self._lost is not None:
            raise self._lost
        silent = self._clock.now() - self._confirmed
        if silent > SAFE * self._first.lease_s:
            raise LeaseDoubtError(
                f"{self._what} at {self.place}: no heartbeat could be stored for {silent:.0f} s, so nothing is written "
                "until one is, for another process may have taken over: is the storage away?"
            )

    def confirm(self) -> None:
        """As `Guard.confirm`. A storage that is away is no reason to stop while `check` allows to go on."""
        for attempt in range(TRIES):
            try:
                self.beat()
            except OSError as error:
                logger.debug("heartbeat of %s at %s: %s", self._what, self.place, error)
                if attempt + 1 < TRIES:
                    self._clock.sleep(RETRY_S)
            else:
                break
        self.check()

    def beat(self) -> None:
        """Store a heartbeat. Raises LeaseLostError; OSError: it could not be stored, and nothing is known."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            begun = self._clock.now()
            number = max(self._mine) + 1
            created = self._entries.create(number, self._record().to_json())
            self._look(number, created)
            # From before the heartbeat was there: others count from after that.
            self._confirmed = begun
            self._forget(number)

    def _record(self) -> Record:
        first = self._first
        return Record(**{**first.__dict__, "beat": time.time(), "clock": self._clock.now()})

    def _look(self, number: int, created: bool) -> None:
        """After a heartbeat: is the name still this one's? Whoever creates an entry sees all earlier ones."""
        there = self._entries.numbers()
        for other in there - self._mine:
            if other < number or (other == number and created):
                continue
            record = self._read(other)
            if record is not None and record.after == self.token:
                self._lose(number, created, record)
            if other == number and (record is None or record.token != self.token):
                # A stranger with an old view of this place; it takes its entry back.
                raise OSError(f"another process is looking at {self.place}")
        if not self._mine & there:
            self._lose(number, created, head_of(self._entries, there - {number}))
        under = self._first.under
        if under is not None and not holds(under, self._clock):
            self._lose(number, created, newest(entries_at(under.place, under.stem), self._clock), under.place)

    def _read(self, number: int) -> Record | None:
        data = self._entries.read(number)
        return None if data is None else Record.from_json(data)

    def _lose(self, number: int, created: bool, winner: Record | None, place: str | None = None) -> None:
        who = f"belongs to {winner} by now" if winner is not None else "was taken over, or removed, and is free by now"
        self._lost = LeaseLostError(
            f"{place or self.place} {who}: this process ({self._what}) was out of touch for longer than "
            f"{self._first.lease_s:g} s; it writes nothing more there"
        )
        self._ended.set()
        # Nothing is in the way of the next one.
        for own in self._mine | ({number} if created else set()):
            self._entries.remove(own)
        self._entries.leave()
        raise self._lost

    def _forget(self, number: int) -> None:
        self._mine.add(number)
        for old in sorted(self._mine - {number}):
            self._entries.remove(old)
            self._mine.discard(old)

    def claim(self, seen: set[int]) -> bool:
        """Make this process the owner, after the entries `seen`; False if others were faster. For `take`."""
        # Numbers of a place that was free begin with the time, so that an old view of it never fits again.
        number = max(seen, default=time.time_ns() // 1000) + 1
        data = self._record().to_json()
        if not self._entries.create(number, data):
            return False
        if self._entries.settle_s or self._entries.create(number, data):  # the store overwrites what is there
            self._clock.sleep(self._entries.settle_s or SETTLE_S)
        try:
            record, there = self._read(number), self._entries.numbers()
        except OSError:
            with contextlib.suppress(OSError):
                self._entries.remove(number)
            raise
        own = record is not None and record.token == self.token
        if not own or there - seen != {number} or (seen and max(seen) not in there):
            if own:
                self._entries.remove(number)
            return False
        self._mine = {number}
        for old in seen:
            # One that stays is lower than this one's, and means nothing.
            with contextlib.suppress(OSError):
                self._entries.remove(old)
        return True

    def keep(self) -> None:
        """Let a thread store heartbeats from now on."""
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)
        self._thread.start()

    def _beat_on(self) -> None:
        failing = False
        while not self._clock.wait(self._ended, self._first.lease_s / BEATS):
            try:
                self.beat()
                if failing:
                    logger.warning("heartbeats of %s are stored again", self._what)
                failing = False
            except LeaseLostError as error:
                logger.warning("%s", error)
                return
            except OSError as error:
                if not failing:
                    logger.warning("a heartbeat of %s could not be stored (%s); tried again", self._what, error)
                failing = True

    def release(self) -> None:
        """Give the name back. Nothing happens if it is lost, or was given back before."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            try:
                for number in () if self.lost else sorted(self._mine):
                    self._entries.remove(number)
                self._entries.leave()
            except OSError as error:
                logger.warning("the lease of %s at %s stays behind: %s", self._what, self.place, error)
            self._mine = set()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def take(
    place: str,
    what: str,
    advice: str,
    *,
    lease_s: float = LEASE_S,
    stem: str = "owner",
    under: Parent | None = None,
    options: dict[str, Any] | None = None,
    clock: Clock | None = None,
    heartbeat: bool = True,
) -> Lease:
    """Own a name from now on, or raise and have written nothing.

    Args:
        place: folder or URL that is the name. what: what is written there ("run digits"), for messages.
        advice: what somebody who meets a live owner can do instead ("give this run another name=").
        lease_s: seconds after which an owner that gives no sign of life is followed by another.
        stem: "owner"; other words are for leases below it, of those who share the work.
        under: the lease on whose behalf this one is taken: it is lost with that one, and whoever holds this one on
            behalf of the same place, from before, is waited for instead of being met with an error.
        options: of the fsspec file system. heartbeat: whether a thread keeps it; else call `beat`.

    Raises:
        LeaseHeldError: somebody is at work there; says who, since when, and what to do.
        LeaseLostError: `under` is not held any more.
        OSError: the storage cannot be reached.
    """
    clock = clock or Clock()
    entries = entries_at(place, stem, options)
    watch = Watch(clock, what, place)
    give_up: float | None = None
    while True:
        if under is not None and not holds(under, clock):
            raise LeaseLostError(f"{under.place} belongs to another process by now, so {what} does not start")
        seen = entries.numbers()
        head = head_of(entries, seen)
        if watch.is_free(seen, head):
            first = _first(what, head, lease_s, under, clock)
            lease = Lease(entries, first, Parent(place, first.token, stem), clock)
            if lease.claim(seen):
                if heartbeat:
                    lease.keep()
                return lease
            clock.sleep(random.uniform(0.01, 0.1))
        elif head is not None and watch.is_alive(head):
            # Left over from an earlier owner of the lease above: it loses its own at its next heartbeat.
            orphan = under is not None and head.under is not None and head.under.place == under.place
            give_up = give_up or clock.now() + 3 * head.lease_s
            if not orphan or clock.now() > give_up:
                raise LeaseHeldError(
                    f"{what} at {place} belongs to {head}: {advice}, stop that process, or wait until it has ended "
                    f"(one that gives no sign of life is followed after {head.lease_s:g} s)"
                )
            clock.sleep(min(0.5, head.lease_s / 100))
        else:
            clock.sleep(min(5.0, head.lease_s / 20) if head is not None else 0.02)


def _first(what: str, head: Record | None, lease_s: float, under: Parent | None, clock: Clock) -> Record:
    now, after = time.time(), head.token if head is not None else None
    return Record(uuid.uuid4().hex, after, what, this_process(), now, now, clock.now(), lease_s, under)
