"""The driver's desk: one small actor through which driver and workers talk while Ray Train runs.

Workers leave log lines, which the driver prints as its own, so that a run on a cluster reads like a run on a laptop;
the driver leaves the wish to stop, which rank 0 passes on at its next step.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer.logs import LOGGERS

POLL_SECONDS = 0.3


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


class Desk:
    """State of the desk. Runs as an actor without CPUs; see `open_desk`."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._stop: str | None = None
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
        self._failures, self._failed_at = [], None
        return attempt

    def fail(self, failure: Failure) -> None:
        """A worker is about to raise."""
        self._failures.append(failure)
        self.broke()

    def broke(self) -> None:
        """Workers failed: from now on time counts as recovery. The first of several calls matters."""
        self._failed_at = self._failed_at or time.time()

    def worst_failure(self) -> Failure | None:
        """The failure of this attempt that explains it best: peers of a failed rank only see a broken connection."""
        return max(self._failures, key=lambda failure: failure.hopeless, default=None)

    def ask_to_stop(self, reason: str) -> None:
        """The driver wants a checkpoint and an end."""
        self._stop = self._stop or reason

    def stopping(self) -> str | None:
        """Why the run should stop, or None."""
        return self._stop


def open_desk() -> Any:
    """A new desk on the driver's node: it lives and dies with the driver, not with some worker's node."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Desk).options(num_cpus=0, scheduling_strategy=node).remote()


def print_lines(desk: Any) -> None:
    """Driver: print what the workers wrote, through the loggers that they used."""
    for line in ray.get(desk.take.remote()):
        text = line.text if line.rank == 0 else f"rank {line.rank}: {line.text}"
        extra = {"progress": line.progress} if line.progress else None
        logging.getLogger(line.logger).log(line.level, text, extra=extra)


class DeskHandler(logging.Handler):
    """Worker: send log lines to the desk."""

    def __init__(self, desk: Any, rank: int) -> None:
        super().__init__(logging.INFO if rank == 0 else logging.WARNING)
        self._desk, self._rank = desk, rank
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        line = Line(self._rank, record.levelno, record.name, self.format(record), progress)
        self._desk.write.remote(line)

    def settle(self) -> None:
        """Wait until every line has arrived; a worker's last words count most."""
        ray.get(self._desk.settle.remote())


class StopWatch:
    """Rank 0: asks the desk from a thread, so that asking costs a training step nothing."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self.asked = False
        self._done = threading.Event()
        threading.Thread(target=self._watch, name="stop-watch", daemon=True).start()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            try:
                self.asked = ray.get(self._desk.stopping.remote()) is not None
            except ray.exceptions.RayError:
                return  # the driver is gone, and Ray ends this worker with it
            if self.asked:
                return

    def close(self) -> None:
        """End the thread."""
        self._done.set()
