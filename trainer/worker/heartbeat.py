"""Who lives: every rank says so in the job's store once in a while, and others wait as long as it does.

A rank that works long, on a commit, on a metric or for its data, holds the others up; a rank that is gone holds them
up, too, and only the second is a reason to end. An exchange cannot tell them apart, and under NCCL it cannot even
speak: its watchdog aborts the process. So each rank has a thread that writes a beat with what the rank is doing. The
first rank reads all beats, the others read the first one's and what it has found: no request grows with the square of
the ranks. Silence counts on the reader's clock, and hardly while the reader itself was stopped.

A rank is gone when it has been silent for two thirds of `parallel.timeout_s`, which is before an exchange of payload
gives up, or for a few beats once an exchange has failed; or when it has ended its job with an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from parallel.control import control_group

logger = logging.getLogger(__name__)

PATIENCE = 2 / 3
"""Silence of a rank that is gone, in parts of `parallel.timeout_s`."""
LONGEST_INTERVAL_S = 1.0
BEATS_AFTER_ALARM = 4
NAMES_SHOWN = 8


class Beat(NamedTuple):
    """What a rank last said."""

    number: int
    exchanges: int
    """Exchanges of control that it has entered: who has entered fewer is waited for."""
    doing: str
    host: str
    ended: str | None
    """None while it is at work, then the error that it ended with, or nothing."""


UNHEARD = Beat(-1, 0, "the start", "", None)


@dataclass
class _Rank:
    """A rank, as another one sees it."""

    beat: Beat = UNHEARD
    silent_s: float = 0.0


@dataclass
class Heartbeat:
    """This rank's beat, and its view of the others. Two threads, which sleep nearly always.

    Args:
        store: the job's, for this alone, so that nobody else's request is waited for.
        timeout_s: patience of an exchange of payload.
    """

    store: dist.Store
    rank: int
    world: int
    timeout_s: float
    doing: str = "the start"
    exchanges: int = 0
    verdict: str | None = None
    """Which rank is gone, in words; once there is one it stays."""
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _alarm: bool = False
    _answered: int = 0
    _reachable: bool = True
    """Whether the store still answers: one that is frozen with its process would hold whoever asks it."""
    _number: int = 0
    _ended: str | None = None

    def __post_init__(self) -> None:
        self.interval_s = min(LONGEST_INTERVAL_S, self.timeout_s / 20)
        # The first rank listens to all, the others to the first.
        self._ranks = {rank: _Rank() for rank in (range(1, self.world) if self.rank == 0 else (0,))}
        self._host = socket.gethostname()
        self._end = threading.Event()
        self.store.set_timeout(timedelta(seconds=self.timeout_s))
        self._say()
        if self.rank == 0:
            self.store.set("alarm", "")
            self.store.set("verdict", "")
        self._threads = [
            threading.Thread(target=turn, name=turn.__name__.strip("_"), daemon=True)
            for turn in (self._heartbeat, self._heartbeat_watch)
        ]

    def start(self) -> None:
        """Begin to beat and to listen. By now every rank has said something."""
        for thread in self._threads:
            thread.start()

    def leave(self, error: BaseException | None) -> None:
        """The job ends here; with an error the others are told of it. What follows is not silence."""
        self._ended = " ".join(f"{type(error).__name__}: {error}".split())[:300] if error is not None else ""
        if self.verdict is not None:
            self._ended = ""  # another one ended the job
        if self._reachable:
            with contextlib.suppress(RuntimeError):
                self._say()
        self._end.set()

    def raise_alarm(self) -> None:
        """An exchange has failed: whoever is silent from now on is gone."""
        self._alarm = True
        if not self._reachable:
            return
        with contextlib.suppress(RuntimeError):  # the store may be what is gone
            self.store.set("alarm", "1")

    def find_gone(self) -> str | None:
        """After a failed exchange: which rank is gone, in words, or None when all of them live."""
        self.raise_alarm()
        deadline = time.monotonic() + self._patience_s() + 3 * self.interval_s
        while self.verdict is None and time.monotonic() < deadline:
            time.sleep(self.interval_s / 4)
        return self.verdict

    def awaited(self) -> str:
        """On the first rank: who lives and has not come to the exchange that this one is in, and what it does."""
        late = {rank: seen.beat for rank, seen in self._ranks.items() if seen.beat.exchanges < self.exchanges}
        return _listed([f"{_named(rank, beat)}, which is at {beat.doing}" for rank, beat in late.items()])

    def _say(self) -> None:
        self._number += 1
        beat = Beat(self._number, self.exchanges, self.doing, self._host, self._ended)
        self.store.set(f"beat/{self.rank}", json.dumps(beat))

    def _heartbeat(self) -> None:
        last = time.monotonic()
        while not self._end.wait(self.interval_s):
            try:
                if self._ended is None:
                    self._say()
                keys = [f"beat/{rank}" for rank in self._ranks]
                alarm, verdict, *beats = (data.decode() for data in self.store.multi_get(["alarm", "verdict", *keys]))
            except RuntimeError:  # of the store, which then does not answer: `_heartbeat_watch` counts that
                continue
            self._answered += 1
            self._alarm = self._alarm or bool(alarm)
            now = time.monotonic()
            self._listen(beats, min(now - last, 2 * self.interval_s))
            last = now
            if verdict:
                self._conclude(verdict)

    def _listen(self, beats: list[str], passed_s: float) -> None:
        for seen, text in zip(self._ranks.values(), beats, strict=True):
            beat = Beat(*json.loads(text))
            seen.silent_s = 0.0 if beat.number != seen.beat.number else seen.silent_s + passed_s
            seen.beat = beat
        failed = {rank: seen.beat for rank, seen in self._ranks.items() if seen.beat.ended}
        silent = {rank: seen.beat for rank, seen in self._ranks.items() if self._gone(seen)}
        if failed:
            self._conclude(
                _listed([f"{_named(r, beat)} ended at {beat.doing}: {beat.ended}" for r, beat in failed.items()])
            )
        elif silent:
            self._conclude(
                _listed([f"{_named(r, beat)} is gone, last heard of at {beat.doing}" for r, beat in silent.items()])
            )

    def _gone(self, seen: _Rank) -> bool:
        return seen.beat.ended is None and seen.silent_s > self._patience_s()

    def _heartbeat_watch(self) -> None:
        """Apart from the other thread, which a store that does not answer may hold for ever."""
        last, answered, silent_s = time.monotonic(), 0, 0.0
        while not self._end.wait(self.interval_s):
            now = time.monotonic()
            silent_s = silent_s + min(now - last, 2 * self.interval_s) if self._answered == answered else 0.0
            last, answered = now, self._answered
            if silent_s > self._patience_s() + self.interval_s and self._ended is None:
                self._reachable = False
                first = self._ranks.get(0, _Rank()).beat
                gone = f"{_named(0, first)} is gone, last heard of at {first.doing}"
                self._conclude(f"{gone}; or the launcher is, if that holds the job's store")

    def _patience_s(self) -> float:
        whole = PATIENCE * self.timeout_s
        return min(whole, BEATS_AFTER_ALARM * self.interval_s) if self._alarm else whole

    def _conclude(self, verdict: str) -> None:
        if self.verdict is not None or self._ended is not None:
            return
        self.verdict = verdict
        # Under NCCL the last word of this process: its watchdog aborts it in the exchange that it waits in.
        logger.error("rank %d at %s: %s", self.rank, self.doing, verdict)
        if self._reachable:
            with contextlib.suppress(RuntimeError):
                self.store.compare_set("verdict", "", verdict)


def _named(rank: int, beat: Beat) -> str:
    return f"rank {rank} ({beat.host or 'host unknown'})"


def _listed(words: list[str]) -> str:
    left = len(words) - NAMES_SHOWN
    return "; ".join(words if left <= 0 else [*words[:NAMES_SHOWN], f"and {left} more"])


class _Current:
    """The job that this process takes part in."""

    heartbeat: Heartbeat | None = None
    jobs: int = 0


def current() -> Heartbeat | None:
    """The heartbeat of the job that this process takes part in, if ranks of one are watched."""
    return _Current.heartbeat


def doing(what: str) -> None:
    """Tell the other ranks what this one is at, in the words of a sentence: `step 7`."""
    if _Current.heartbeat is not None:
        _Current.heartbeat.doing = what


@contextlib.contextmanager
def beating(timeout_s: float) -> Iterator[None]:
    """This rank is watched, and watches, until the job ends. Collective at its beginning."""
    if not dist.is_initialized() or dist.get_world_size() == 1 or dist.get_backend() == "fake":
        yield
        return
    _Current.jobs += 1
    # A client of its own: one request at a time goes through each, and others wait for minutes in theirs.
    own: dist.Store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    store = dist.PrefixStore(f"heartbeat/{_Current.jobs}", own)
    heartbeat = Heartbeat(store, dist.get_rank(), dist.get_world_size(), timeout_s)
    error: BaseException | None = None
    try:
        # All have said something, so there is something to read.
        dist.all_reduce(torch.zeros(1), group=control_group())
        heartbeat.start()
        _Current.heartbeat = heartbeat
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        _Current.heartbeat = None
        heartbeat.leave(error)
