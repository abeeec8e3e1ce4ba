"""One owner at a time: who gets a name, who is told what, what becomes of owners that die, freeze or are cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_shards.errors import LeaseDoubtError, LeaseHeldError, LeaseLostError
from data_shards.lease import lease as lease_module
from data_shards.lease.clock import Clock
from data_shards.lease.entries import Entries, entries_at
from data_shards.lease.lease import Lease, take
from data_shards.lease.owner import Owner, this_process
from data_shards.lease.record import Parent
from data_shards.lease.watch import Follower, newest
from tests.data_shards.lease.racer import race
from tests.object_store import local_s3

LEASE_S = 60.0


class Hands(Clock):
    """A clock that is moved by hand, and by those who sleep; `then` is done after each sleep."""

    def __init__(self) -> None:
        self.time, self.then = 1000.0, lambda: None
        self.slept = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, event: threading.Event, seconds: float) -> bool:
        raise AssertionError("heartbeats are made by hand here")

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.slept += seconds
        self.then()


EVERYWHERE = pytest.mark.parametrize("place", ["files", "memory", "s3"], indirect=True)


@pytest.fixture(params=["files"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "files":
        yield str(tmp_path / "name")
    elif request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        yield "memory://name"
    else:
        with local_s3(monkeypatch) as url:
            yield f"{url}/name"


def own(place: str, clock: Clock, **options: Any) -> Lease:
    options = {"lease_s": LEASE_S, **options}
    return take(place, "run x", "give this run another name=", clock=clock, heartbeat=False, **options)


def as_owner(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Callable[..., Lease]:
    """`own` of a process that differs from this one in some respect."""

    def elsewhere(place: str, clock: Clock, **options: Any) -> Lease:
        with monkeypatch.context() as patch:
            patch.setattr(lease_module, "this_process", lambda: replace(this_process(), **changes))
            return own(place, clock, **options)

    return elsewhere


def files(place: str) -> dict[str, bytes]:
    """Everything at a place."""
    fs, root = fsspec.url_to_fs(place)
    fs.invalidate_cache()
    return {path: fs.cat_file(path) for path in fs.find(root)}


# --- one at a time


@EVERYWHERE
def test_the_second_is_told_who_is_there_and_writes_nothing(place: str) -> None:
    clock = Hands()
    first = own(place, clock)
    before = files(place)
    with pytest.raises(LeaseHeldError) as refusal:
        own(place, clock)
    me = this_process()
    text = str(refusal.value)
    assert text.startswith(f"run x at {place} belongs to {me.user}@{me.host} (pid {os.getpid()}), at work since 20")
    assert "last heartbeat 20" in text and "\n" not in text
    assert text.endswith(
        ": give this run another name=, stop that process, or wait until it has ended "
        "(one that gives no sign of life is followed after 60 s)"
    )
    assert files(place) == before and clock.slept == 0
    first.confirm()


@EVERYWHERE
def test_a_name_that_was_given_back_is_free_and_nothing_is_left(place: str) -> None:
    clock = Hands()
    with own(place, clock) as first:
        first.beat()
        assert len(files(place)) == 1
    assert files(place) == {}
    assert not place.startswith("/") or not Path(place).exists()
    own(place, clock).confirm()


def test_other_words_are_other_leases(place: str) -> None:
    clock = Hands()
    owner, results = own(place, clock), own(place, clock, stem="results")
    owner.confirm()
    results.confirm()
    with pytest.raises(LeaseHeldError):
        own(place, clock, stem="results")


def test_of_many_that_start_at_once_one_gets_it(tmp_path: Path) -> None:
    """Processes at a barrier: free names, and names whose owner was killed."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    places = [str(tmp_path / f"{kind}{number}") for number in range(12) for kind in ("free", "dead")]
    for name in places:
        if "dead" in name:
            _leave_behind(name, ended.pid)
    assert race(places) == dict.fromkeys(places, 1)


def test_of_many_that_start_at_once_one_gets_it_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_s3(monkeypatch) as url:
        places = [f"{url}/{number}" for number in range(3)]
        assert race(places) == dict.fromkeys(places, 1)


def _leave_behind(place: str, pid: int) -> None:
    """The lease of a process that has ended."""
    lease = own(place, Clock(), lease_s=1e6)
    record = replace(lease._first, owner=replace(lease._first.owner, pid=pid, started=1))
    entries = entries_at(place, "owner")
    for number in entries.numbers():
        entries.remove(number)
        assert entries.create(number, record.to_json())


# --- owners that are gone


@pytest.mark.parametrize("gone", ["killed", "number given away again", "zombie"])
def test_a_dead_owner_of_this_host_is_followed_at_once(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, clock = str(tmp_path), Hands()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    if gone == "number given away again":
        started -= 1
    dead = as_owner(monkeypatch, pid=process.pid, started=started)
    first = dead(place, clock)
    if gone != "number given away again":
        with pytest.raises(LeaseHeldError):
            own(place, clock)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if gone == "killed":
        process.wait()
    second = own(place, clock)
    assert clock.slept == 0, "nobody waited"
    with pytest.raises(LeaseLostError, match=r"belongs to .* by now"):
        first.confirm()
    second.confirm()
    process.communicate()


ELSEWHERE = {
    "another host": {"host": "other"},
    "after a reboot": {"boot": "b"},
    "another container": {"pids": "pid:[1]"},
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_process_number_of_another_place_says_nothing(where: str) -> None:
    gone = replace(this_process(), started=1)
    assert gone.is_dead()
    assert not replace(gone, **ELSEWHERE[where]).is_dead()
    unknown: dict[str, Any] = {"boot": None, "pids": None}
    assert not replace(gone, **unknown).is_dead()


def test_an_owner_elsewhere_is_watched_for_the_time_of_its_lease(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clocks are not compared: the owner's says something else altogether."""
    theirs, ours = Hands(), Hands()
    theirs.time = 5e6
    other = as_owner(monkeypatch, host="other", boot="another")
    first = other(place, theirs)
    second = own(place, ours)
    assert LEASE_S <= ours.slept < LEASE_S * 1.2
    second.confirm()
    with pytest.raises(LeaseLostError):
        first.confirm()


def test_an_owner_in_another_container_of_this_machine_is_judged_by_their_common_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is started again has no view of its former self, which may be dead or alive."""
    clock = Hands()
    first = as_owner(monkeypatch, host="pod-1", pids="pid:[1]")(str(tmp_path), clock)
    clock.time += 50
    own(str(tmp_path), clock).release()
    assert 10 <= clock.slept < 15, "50 s of its 60 had passed"
    with pytest.raises(LeaseLostError):
        first.confirm()


@EVERYWHERE
def test_an_owner_elsewhere_that_gives_a_sign_of_life_keeps_its_name(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = Hands(), Hands()
    first = as_owner(monkeypatch, host="other", boot="another")(place, theirs)

    def later() -> None:
        if ours.slept > 50:
            first.beat()

    ours.then = later
    with pytest.raises(LeaseHeldError, match=r"belongs to .*@other \(pid "):
        own(place, ours)
    assert 50 < ours.slept < LEASE_S
    first.confirm()


@EVERYWHERE
def test_a_frozen_owner_of_this_machine_is_followed_after_its_lease_and_finds_out(place: str) -> None:
    clock = Hands()
    first = own(place, clock)
    clock.time += LEASE_S - 1
    with pytest.raises(LeaseHeldError):
        own(place, clock)
    clock.time += 1
    second = own(place, clock)
    after = files(place)
    with pytest.raises(LeaseDoubtError, match="no heartbeat could be stored for 60 s"):
        first.check()  # without asking anybody
    with pytest.raises(LeaseLostError, match="it writes nothing more there"):
        first.confirm()
    with pytest.raises(LeaseLostError):
        first.check()
    first.release()
    assert files(place) == after, "what the late one leaves is what it found"
    second.confirm()


def test_an_owner_that_two_have_followed_finds_out_too(place: str) -> None:
    clock = Hands()
    first = own(place, clock)
    for _ in range(2):
        clock.time += LEASE_S
        last = own(place, clock)
    with pytest.raises(LeaseLostError):
        first.confirm()
    last.release()
    clock.time += LEASE_S
    third = own(place, clock)
    clock.time += LEASE_S
    own(place, clock).release()
    with pytest.raises(LeaseLostError, match="is free by now"):
        third.confirm()
    assert files(place) == {}


def test_a_machine_that_slept_goes_on_if_nobody_came(place: str) -> None:
    clock = Hands()
    lease = own(place, clock)
    clock.time += 10 * LEASE_S
    with pytest.raises(LeaseDoubtError):
        lease.check()
    lease.beat()
    lease.check()


# --- storage that is away


class Away(Entries):
    """Entries whose storage can be away, before or after it has done what was asked."""

    settle_s = 0.0

    def __init__(self, inner: Entries) -> None:
        self.inner, self.away, self.answer_lost = inner, False, False

    def numbers(self) -> set[int]:
        self._answer()
        return self.inner.numbers()

    def create(self, number: int, data: bytes) -> bool:
        self._answer()
        made = self.inner.create(number, data)
        if self.answer_lost:
            self.answer_lost = False
            raise OSError("connection reset")
        return made

    def read(self, number: int) -> bytes | None:
        self._answer()
        return self.inner.read(number)

    def remove(self, number: int) -> None:
        self._answer()
        self.inner.remove(number)

    def leave(self) -> None:
        self.inner.leave()

    def _answer(self) -> None:
        if self.away:
            raise OSError("no route to host")


def test_a_storage_that_is_away_is_borne_for_three_quarters_of_the_lease(place: str) -> None:
    clock = Hands()
    lease = own(place, clock)
    lease._entries = storage = Away(lease._entries)
    storage.away = True
    clock.time += 44
    lease.confirm()
    clock.time += 1
    with pytest.raises(LeaseDoubtError, match="is the storage away"):
        lease.confirm()
    assert not lease.lost
    storage.away = False
    lease.confirm()
    lease.check()


def test_a_heartbeat_whose_answer_was_lost_is_no_loss(place: str) -> None:
    clock = Hands()
    lease = own(place, clock)
    lease._entries = storage = Away(lease._entries)
    storage.answer_lost = True
    with pytest.raises(OSError, match="connection reset"):
        lease.beat()
    lease.beat()
    assert len(files(place)) == 1


def test_heartbeats_are_made_by_a_thread_that_survives_failures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beats = threading.Semaphore(0)

    class Fast(Clock):
        def wait(self, event: threading.Event, seconds: float) -> bool:
            assert seconds == 10.0, "six in a lease of 60 s"
            beats.release()
            return event.wait(0.001)

    lease = take(str(tmp_path), "run x", "-", lease_s=60, clock=Fast())
    lease._entries = storage = Away(lease._entries)
    (first,) = entries_at(str(tmp_path), "owner").numbers()
    storage.away = True
    for _ in range(5):
        beats.acquire(timeout=10)
    storage.away = False
    while "are stored again" not in caplog.text:
        assert beats.acquire(timeout=10)
    lease.release()
    assert max(lease._mine, default=0) == 0 and list(tmp_path.iterdir()) == []
    assert caplog.text.count("could not be stored (no route to host)") == 1
    assert first > 0


# --- views that are old


@EVERYWHERE
def test_an_old_view_of_the_place_does_not_get_it(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer that has seen an owner's last entry, and then slept while that one left and others came."""
    clock = Hands()
    gone = own(place, clock)
    seen = set(gone._mine)
    gone.release()
    now = own(place, clock)
    late = Lease(entries_at(place, "owner"), replace(now._first, token="late"), Parent(place, "late"), clock)
    assert not late.claim(seen)
    assert not late.claim(set())
    now.beat()
    assert not late.claim(seen)
    now.confirm()
    assert len(files(place)) == 1


def test_a_strangers_entry_above_the_owners_is_not_the_end_of_the_owner(place: str) -> None:
    """It has not been made after the owner's, so it is taken back; until then the owner looks again."""
    clock = Hands()
    lease = own(place, clock)
    entries = entries_at(place, "owner")
    stranger, number = replace(lease._first, token="s", after="somebody else"), max(lease._mine)
    assert entries.create(number + 5, stranger.to_json())
    lease.confirm()
    assert entries.create(number + 2, stranger.to_json())
    clock.then = lambda: entries.remove(number + 2)
    lease.confirm()
    assert not lease.lost


class Careless(Entries):
    """A store that overwrites whatever is there."""

    settle_s = 0.0

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}

    def numbers(self) -> set[int]:
        return set(self.held)

    def create(self, number: int, data: bytes) -> bool:
        self.held[number] = data
        return True

    def read(self, number: int) -> bytes | None:
        return self.held.get(number)

    def remove(self, number: int) -> None:
        self.held.pop(number, None)

    def leave(self) -> None:
        pass


def test_a_store_that_overwrites_is_read_again_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = Careless(), Hands()
    monkeypatch.setattr(lease_module.time, "time_ns", lambda: 1_700_000_000_000_000_000)  # both choose the same number
    sample = own("memory://sample", clock)._first
    one, two = (Lease(store, replace(sample, token=name), Parent("p", name), clock) for name in "ab")
    outcome: list[bool] = []

    def second() -> None:
        clock.then = lambda: None
        outcome.append(two.claim(set()))

    clock.then = second
    outcome.insert(0, one.claim(set()))
    assert outcome == [False, True] and clock.slept == 4.0


# --- leases below others


@EVERYWHERE
def test_a_lease_below_another_is_lost_with_it(place: str) -> None:
    """A driver's workers: once another driver has the run, they lose what they hold, and the new ones need not wait."""
    clock = Hands()
    driver = own(place, clock)
    worker = own(place, clock, stem="writer", under=driver.parent)
    follower = Follower(worker.parent, 10.0, clock)
    worker.confirm()
    follower.confirm()
    clock.time += LEASE_S
    worker.beat()
    follower.confirm()
    successor = own(place, clock)
    with pytest.raises(LeaseLostError, match="belongs to"):
        worker.beat()
    with pytest.raises(LeaseLostError):
        follower.confirm()
    with pytest.raises(LeaseLostError, match="so run x does not start"):
        own(place, clock, stem="writer", under=driver.parent)
    clock.slept = 0.0
    own(place, clock, stem="writer", under=successor.parent).confirm()
    assert clock.slept == 0


def test_workers_of_an_earlier_start_are_waited_for(tmp_path: Path) -> None:
    place, clock = str(tmp_path), Hands()
    driver = own(place, clock)
    old = own(place, clock, stem="writer", under=driver.parent)
    clock.then = lambda: old.release() if clock.slept > 5 else None
    new = own(place, clock, stem="writer", under=driver.parent)
    assert 5 < clock.slept < 7
    new.confirm()
    clock.then = new.beat
    with pytest.raises(LeaseHeldError):
        own(place, clock, stem="writer", under=driver.parent)
    assert clock.slept > 3 * LEASE_S, "one that never ends is not waited for without end"


def test_a_follower_asks_the_storage_now_and_then(place: str) -> None:
    clock = Hands()
    lease = own(place, clock)
    follower = Follower(Parent.from_json(lease.parent.to_json()), 10.0, clock)
    lease.release()
    follower.check()
    clock.time += 10.5
    with pytest.raises(LeaseLostError, match="or is free"):
        follower.check()


def test_an_entry_that_is_still_being_written_is_read_again(tmp_path: Path) -> None:
    clock = Hands()
    entries = entries_at(str(tmp_path), "owner")
    lease = own(str(tmp_path / "sample"), clock)
    entries.create(7, b"{")
    path = tmp_path / "lease" / "owner-000000000000007.json"
    clock.then = lambda: path.write_bytes(lease._first.to_json()) and None
    found = newest(entries, clock)
    assert found is not None and found.token == lease.token
    path.write_bytes(b"{")
    clock.then = lambda: None
    with pytest.raises(OSError, match="cannot be read"):
        newest(entries, clock)


def test_this_process_is_not_dead() -> None:
    me = this_process()
    assert isinstance(me, Owner) and not me.is_dead() and me.shares_clock()
    assert me.started is not None and me.pid == os.getpid()
