"""The driver's mailbox: one small actor through which driver and workers talk while Ray Train runs.

Workers leave log lines, which the driver prints as its own, so that a run on a cluster reads like a run on a laptop;
the driver leaves its wishes, which rank 0 passes on at its next step.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Literal, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer.worker.console import LOGGERS

POLL_SECONDS = 0.3

Wish = Literal["save", "regroup", "stop"]
"""A checkpoint; a checkpoint and a new start with as many workers as fit; a checkpoint and the end."""
WISHES: tuple[Wish, ...] = ("save", "regroup", "stop")


class Line(NamedTuple):
    """One log line of a worker; `progress` is (step, total) if it carried one."""

    rank: int
    level: int
    logger: str
    text: str
    progress: tuple[int, int] | None


class Failure(NamedTuple):
    """What a worker says before it raises; `hopeless` if another attempt would end the same way."""

    rank: int
    hopeless: bool
    text: str


class Attempt(NamedTuple):
    """How often workers have been started, and when the ones before failed (seconds since the epoch)."""

    number: int
    failed_at: float | None


class Seats(NamedTuple):
    """All workers of an attempt: how many, and on which nodes."""

    world: int
    nodes: set[str]


class Mailbox:
    """State of the mailbox. Runs as an actor without CPUs; see `open_mailbox`."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._wish: Wish | None = None
        self._reason = ""
        self._ending: Wish | None = None
        self._nodes: dict[int, str] = {}
        self._world = 0
        self._attempts = 0
        self._failures: list[Failure] = []
        self._failed_at: float | None = None

    def write(self, line: Line) -> None:
        """A worker's log line."""
        self._lines.append(line)

    def take(self) -> list[Line]:
        """All lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def settle(self) -> None:
        """Returns when everything that the caller sent before has arrived, for calls of one caller keep their order."""

    def begin_attempt(self) -> Attempt:
        """Rank 0 starts (again)."""
        self._attempts += 1
        attempt = Attempt(self._attempts, self._failed_at)
        self._failures, self._failed_at, self._ending = [], None, None
        # Wishes were for the attempt that has ended; only the end is still wanted.
        if self._wish != "stop":
            self._wish = None
        return attempt

    def arrive(self, rank: int, world: int, node: str) -> None:
        """A worker has started."""
        self._world, self._nodes[rank] = world, node
        # Ranks of a larger group that was here before are gone.
        self._nodes = {rank: node for rank, node in self._nodes.items() if rank < world}

    def seats(self) -> Seats | None:
        """Where the workers are, once all of them are."""
        return Seats(self._world, set(self._nodes.values())) if self._nodes and self._settled() else None

    def _settled(self) -> bool:
        return len(self._nodes) == self._world and self._failed_at is None and self._ending is None

    def fail(self, failure: Failure) -> None:
        """A worker is about to raise."""
        self._failures.append(failure)
        self.broke()

    def broke(self) -> None:
        """Workers failed: from now on time counts as recovery. The first of several calls matters."""
        self._failed_at = self._failed_at or time.time()
        # Nobody is at work until the next attempt's workers say where they are.
        self._nodes = {}

    def worst_failure(self) -> Failure | None:
        """The failure of this attempt that explains it best: peers of a failed rank only see a broken connection."""
        return max(self._failures, key=lambda failure: failure.hopeless, default=None)

    def ask(self, wish: Wish, reason: str) -> None:
        """The driver wants something of the workers. A lesser wish than the last is dropped."""
        if self._wish is None or WISHES.index(wish) > WISHES.index(self._wish):
            self._wish, self._reason = wish, reason

    def wish(self) -> Wish | None:
        """What the driver wants."""
        return self._wish

    def granted(self) -> None:
        """A checkpoint that was asked for is being written."""
        if self._wish == "save":
            self._wish = None

    def end(self) -> Wish | None:
        """Why a worker that ended early did: to stop, or to start again. All of an attempt get the same answer."""
        self._ending = self._ending or self._wish
        return self._ending

    def regrouping(self) -> str | None:
        """Why workers have ended in order to start again; None if they have not."""
        return self._reason if self._ending == "regroup" else None


def open_mailbox() -> Any:
    """A new mailbox on the driver's node: it lives and dies with the driver, not with some worker's node."""
    # Not soft: Ray takes a soft wish for a head without CPUs as none at all.
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=node).remote()


def print_lines(mailbox: Any) -> None:
    """Driver: print what the workers wrote, through the loggers that they used."""
    for line in ray.get(mailbox.take.remote()):
        text = line.text if line.rank == 0 else f"rank {line.rank}: {line.text}"
        extra = {"progress": line.progress} if line.progress else None
        logging.getLogger(line.logger).log(line.level, text, extra=extra)


class MailboxHandler(logging.Handler):
    """Worker: send log lines to the mailbox."""

    def __init__(self, mailbox: Any, rank: int) -> None:
        # Other ranks see the same run; they speak up when something is wrong.
        super().__init__(logging.INFO if rank == 0 else logging.WARNING)
        self._mailbox, self._rank = mailbox, rank
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        line = Line(self._rank, record.levelno, record.name, self.format(record), progress)
        # Not waited for: a line costs a training step nothing.
        self._mailbox.write.remote(line)

    def settle(self) -> None:
        """Wait until every line has arrived; a worker's last words count most."""
        ray.get(self._mailbox.settle.remote())


class WishWatch:
    """Rank 0: looks into the mailbox from a thread, so that looking costs a training step nothing."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._wish: Wish | None = None
        self._done = threading.Event()
        threading.Thread(target=self._watch, name="wish-watch", daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            try:
                self._wish = ray.get(self._mailbox.wish.remote())
            except ray.exceptions.RayError:
                return  # the driver is gone, and Ray ends this worker with it

    def should_end(self) -> bool:
        """Whether the workers should write a checkpoint and end."""
        return self._wish in ("regroup", "stop")

    def should_save(self) -> bool:
        """Whether a checkpoint is wanted now; the wish is granted by asking."""
        if self._wish != "save":
            return False
        ray.get(self._mailbox.granted.remote())
        self._wish = None
        return True

    def close(self) -> None:
        """End the thread."""
        self._done.set()
