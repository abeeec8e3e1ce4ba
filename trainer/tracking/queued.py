"""The sink that never makes training wait: operations go on a queue, a thread delivers them to a store.

While the store is away the operations go to a spool on local disk, in order, and are replayed as soon as it is back,
in this process or in the next one that continues the run. Nothing here knows which service the store speaks to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_shards.errors import LeaseDoubtError, LeaseLostError
from data_shards.lease.lease import Guard, Unowned
from trainer.tracking.operations import Operation
from trainer.tracking.spool import Spool

logger = logging.getLogger(__name__)

RETRY_SECONDS = 15.0


class RefusedError(Exception):
    """The store understood an operation and will never accept it."""


class Store(Protocol):
    """Where operations end up. Both methods raise when the service cannot be reached."""

    run_id: str | None
    label: str

    def open(self) -> str:
        """Connect, make or reopen the run, return its id. Cheap when already open."""

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply one operation, or a stretch of metrics; raises RefusedError for what will never be accepted."""


class QueuedSink:
    """Keeps operations in a `Store`, and in a `Spool` while that is away.

    What is queued when the run's name turns out to be another process's is dropped: that one has logged it again.
    """

    def __init__(self, store: Store, spool: Spool, flush_seconds: float, guard: Guard | None = None) -> None:
        self._guard = guard or Unowned()
        self._store, self._spool, self._interval = store, spool, flush_seconds
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._queue: queue.Queue[Operation | threading.Event] = queue.Queue()
        self._retry_at = 0.0
        self._away = False
        self._closed = False
        self._thread = threading.Thread(target=self._deliver_forever, name="tracker", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """Known once the run is open."""
        return self._store.run_id

    def take(self, operation: Operation) -> None:
        """Queue what no later change can reach: numbers as floats, a file as a copy. Raises LeaseLostError."""
        with contextlib.suppress(LeaseDoubtError):
            self._guard.check()
        match operation["op"]:
            case "metrics":
                numbers = {key: float(value) for key, value in operation["values"].items()}
                self._queue.put({**operation, "values": numbers})
            case "file":
                self._queue.put({**operation, "path": self._copy(Path(operation["path"]))})
            case _:
                self._queue.put(operation)

    def rewind(self, step: int) -> None:
        """The store knows which steps it has, and keeps the first value of each."""

    def flush(self, timeout_s: float) -> None:
        """Send now what is queued; waits for it at most `timeout_s` seconds."""
        sent = threading.Event()
        self._queue.put(sent)
        sent.wait(timeout_s)

    def finish(self) -> None:
        """Send everything, stop the thread. What could not be sent stays in the spool."""
        if self._closed:
            return
        self._retry_at = 0.0
        self._closed = True
        self.flush(timeout_s=60.0)
        self._thread.join(timeout=5.0)
        if self._files is not None:
            self._files.cleanup()

    def _copy(self, path: Path) -> str:
        if self._files is None:  # made late: a killed process leaves nothing behind unless it has logged a file
            self._files = tempfile.TemporaryDirectory(prefix="tracker_files_")
        home = Path(self._files.name) / os.urandom(6).hex()
        home.mkdir()
        return str(shutil.copyfile(path, home / path.name))

    # What follows runs in the delivering thread.

    def _deliver_forever(self) -> None:
        pending: list[Operation] = []
        # A run without an id is opened at once; else nothing is urgent, and the first steps are not disturbed.
        due = time.monotonic() + (0.0 if self._store.run_id is None else self._interval)
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                item = None
            if isinstance(item, dict):
                pending.append(item)
                if time.monotonic() < due:
                    continue
            pending, due = self._deliver_own(pending), time.monotonic() + self._interval
            if isinstance(item, threading.Event):
                item.set()
                if self._closed and self._queue.empty():
                    return

    def _deliver_own(self, operations: list[Operation]) -> list[Operation]:
        """Deliver while the name is this process's own; returns what has to wait until that is known again."""
        try:
            self._guard.confirm() if self._closed else self._guard.check()
        except LeaseLostError as error:
            if operations:
                logger.warning("%d operations are not sent to %s: %s", len(operations), self._store.label, error)
            return []
        except LeaseDoubtError as error:
            if not self._closed:
                return operations
            logger.warning("%d operations are not sent to %s: %s", len(operations), self._store.label, error)
            return []
        self._deliver(operations)
        return []

    def _deliver(self, operations: list[Operation]) -> None:
        """The spool first, as order counts; what cannot be sent now joins its end."""
        if time.monotonic() < self._retry_at:
            self._spool.append(operations)
            return
        backlog = self._spool.read()
        everything = backlog + operations
        done, error = self._send(everything)
        if backlog and done:
            self._spool.replace(everything[done : len(backlog)])
        self._spool.append(everything[max(done, len(backlog)) :])
        self._say(error)
        if error is not None:
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def _send(self, operations: Sequence[Operation]) -> tuple[int, Exception | None]:
        """How many operations from the front are done, and what stopped the rest."""
        done = 0
        try:
            self._store.open()
            while done < len(operations):
                batch = operations[done : done + _stretch(operations[done:])]
                try:
                    self._store.apply(batch)
                except RefusedError as refusal:
                    logger.warning("%s refused %s: %s", self._store.label, batch[0]["op"], refusal)
                done += len(batch)
        except Exception as error:  # a service that is away shows up as many types; all mean: keep it for later
            return done, error
        return done, None

    def _say(self, error: Exception | None) -> None:
        if error is not None and not self._away:
            reason = str(error).strip().split("\n")[0][:120]
            logger.warning(
                "%s cannot be reached (%s): training goes on, the record waits in %s",
                self._store.label, reason, self._spool.folder,
            )  # fmt: skip
        elif error is None and self._away:
            logger.warning("%s is back: everything that waited was delivered", self._store.label)
        self._away = error is not None


def _stretch(operations: Sequence[Operation]) -> int:
    """How many operations from the front can go together: a stretch of metrics, else one."""
    count = 0
    while count < len(operations) and operations[count]["op"] == "metrics":
        count += 1
    return max(1, count)
