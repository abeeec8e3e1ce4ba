"""The sink that never makes training wait: operations go on a queue, a thread delivers them to a store.

While the store is away the operations go to a spool on local disk, in order, and are replayed as soon as it is back,
in this process or in the next one that continues the run. A store that takes nothing until a person has done something
is asked once more when the run ends. Nothing here knows which service the store speaks to.
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
from trainer.tracking.failures import BusyError, ClosedError, RefusedError, Remarks, UncertainError
from trainer.tracking.operations import Operation, Restart
from trainer.tracking.spool import Spool

logger = logging.getLogger(__name__)

RETRY_SECONDS = 15.0  # after the first failure; twice as long after each further one
LONGEST_RETRY_SECONDS = 240.0
PAUSES = (0.5, 1.0)  # before an operation that fails is sent a second and a third time
# Kept for later although the store answers: their bytes go elsewhere, and nothing after them builds on them.
PATIENT = ("file", "dataset", "model")


class Store(Protocol):
    """Where operations end up. What both methods raise is told apart in `trainer.tracking.failures`."""

    run_id: str | None
    label: str
    remarks: Remarks

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
        self._retry_at, self._failures = 0.0, 0
        self._failure: Exception | None = None
        self._spool_failure: OSError | None = None
        self._closed = False
        self._deadline = 0.0
        # Taken from the queue, and neither delivered nor in the spool.
        self._pending: list[Operation] = []
        if spool:  # of an earlier process
            self._pending.append(Restart(op="restart", time=int(time.time() * 1000)))
        self._given_up = False
        self._set_aside = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._deliver_forever, name="tracker", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """Known once the run is open."""
        return self._store.run_id

    @property
    def delivery(self) -> str:
        """`complete`, or what the store has not, or has otherwise; to be asked when the sink is finished."""
        parts = []
        if self._pending:
            parts.append(f"{len(self._pending)} entries are lost: {self._spool.folder} {_reason(self._spool_failure)}")
        if self._spool:
            parts.append(f"waiting in {self._spool.folder} ({_reason(self._failure)})")
        if text := str(self._store.remarks):
            parts.append(f"changed or left out: {text}")
        return "; ".join(parts) or "complete"

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
        """The store knows which steps it has, and keeps the first value of each; what it lacks of the others was queued
        in a process that was killed."""
        if step:  # else nothing came before
            self.take({"op": "replay", "step": step, "time": int(time.time() * 1000)})

    def flush(self, timeout_s: float) -> None:
        """Send now what is queued; waits for it at most `timeout_s` seconds."""
        sent = threading.Event()
        self._queue.put(sent)
        sent.wait(timeout_s)

    def finish(self, timeout_s: float) -> None:
        """Send everything, stop the thread. What could not be sent stays in the spool, and is said."""
        if self._closed:
            return
        self._retry_at = 0.0
        self._deadline = time.monotonic() + timeout_s
        self._closed = True
        self.flush(timeout_s)
        self._thread.join(timeout=5.0)
        if self._thread.is_alive():
            self._give_up()
        if self._files is not None:
            self._files.cleanup()
        if self._spool or self._pending:
            logger.warning("%s has not everything of this run: %s", self._store.label, self.delivery)

    def _give_up(self) -> None:
        """The thread is in the middle of something that takes too long: what it holds goes to the spool."""
        with self._lock:
            self._given_up = True
            self._failure = self._failure or TimeoutError("it had not taken everything when the run ended")
            while not self._queue.empty():
                item = self._queue.get_nowait()
                if isinstance(item, dict):
                    self._pending.append(item)
            self._keep(self._pending)

    def _copy(self, path: Path) -> str:
        if self._files is None:  # made late: a killed process leaves nothing behind unless it has logged a file
            self._files = tempfile.TemporaryDirectory(prefix="tracker_files_")
        home = Path(self._files.name) / os.urandom(6).hex()
        home.mkdir()
        return str(shutil.copyfile(path, home / path.name))

    # What follows runs in the delivering thread.

    def _deliver_forever(self) -> None:
        # A run without an id is opened at once; else nothing is urgent, and the first steps are not disturbed.
        due = time.monotonic() + (0.0 if self._store.run_id is None else self._interval)
        while not self._given_up:
            try:
                item = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                item = None
            if isinstance(item, dict):
                self._pending.append(item)
                if time.monotonic() < due:
                    continue
            self._deliver_own()
            while self._closed and isinstance(self._failure, BusyError) and time.monotonic() < self._deadline:
                time.sleep(1.0)
                self._deliver_own()
            due = time.monotonic() + self._interval
            if isinstance(item, threading.Event):
                item.set()
                if self._closed and self._queue.empty():
                    return

    def _deliver_own(self) -> None:
        """Deliver while the name is this process's own; until that is known again, operations wait."""
        try:
            self._guard.confirm() if self._closed else self._guard.check()
        except LeaseLostError as error:
            self._drop(error)
        except LeaseDoubtError as error:
            if self._closed:
                self._drop(error)
        else:
            self._deliver()

    def _drop(self, reason: Exception) -> None:
        """Leave unsent what another process, which owns the run's name by now, has logged or will log again."""
        with self._lock:
            if self._pending:
                logger.warning("%d operations are not sent to %s: %s", len(self._pending), self._store.label, reason)
                self._store.remarks.add(f"not sent: {reason}", len(self._pending))
            self._pending.clear()

    def _deliver(self) -> None:
        """The spool first, as order counts; what cannot be sent now joins its end."""
        if not self._closed and (time.monotonic() < self._retry_at or isinstance(self._failure, ClosedError)):
            with self._lock:
                self._keep(self._pending)
            return
        backlog, new = self._spool.read(), list(self._pending)
        left, error = self._send([*backlog, *new])
        with self._lock:
            if self._given_up:
                return
            if len(left) < len(backlog) + len(new):
                self._settle(left, {id(operation) for operation in new})
            else:
                self._keep(self._pending)
            self._say(error)
            self._failures = 0 if error is None else self._failures + 1
            pause = min(RETRY_SECONDS * 2 ** max(0, self._failures - 1), LONGEST_RETRY_SECONDS)
            self._retry_at = 0.0 if error is None else time.monotonic() + pause

    def _keep(self, operations: list[Operation]) -> None:
        """Move operations to the spool; where that cannot be written they stay, and it is tried again."""
        try:
            self._spool.append(operations)
            operations.clear()
        except OSError as error:
            self._no_spool(error)

    def _settle(self, left: list[Operation], new: set[int]) -> None:
        """Have exactly `left` in the spool, of which `new` have not been there."""
        try:
            self._spool.replace(left)
            self._pending.clear()
        except OSError as error:
            self._pending[:] = [operation for operation in left if id(operation) in new]
            self._no_spool(error)

    def _no_spool(self, error: OSError) -> None:
        if self._spool_failure is None:
            logger.warning(
                "%s cannot be written (%s): what %s does not take waits in memory until the run ends",
                self._spool.folder,
                error.strerror or error,
                self._store.label,
            )
        self._spool_failure = error

    def _send(self, operations: Sequence[Operation]) -> tuple[list[Operation], Exception | None]:
        """Which operations are left for later, and why."""
        later: list[Operation] = []
        done, doubt, self._set_aside = 0, None, False
        try:
            self._store.open()
            while done < len(operations) and not self._given_up:
                batch = operations[done : done + _stretch(operations[done:])]
                failure = self._apply(batch)
                if failure is not None:
                    doubt = failure
                    later += batch
                done += len(batch)
        except Exception as error:  # a service that is away shows up as many types; all mean: keep it for later
            return [*later, *operations[done:]], error
        return later, doubt

    def _apply(self, batch: Sequence[Operation]) -> UncertainError | None:
        """Send operations of which one must not hold up all others for ever; why they are left for later, if so."""
        kind = batch[0]["op"]
        for pause in (*PAUSES, None):
            try:
                self._store.apply(batch)
                return None
            except RefusedError as refusal:
                self._store.remarks.add(f"{kind} refused: {refusal}")
                return None
            except UncertainError as failure:
                if pause is not None:
                    time.sleep(pause)
                elif kind in PATIENT:
                    return failure
                elif len(batch) > 1:  # one of them is guilty; what is sent a second time adds nothing
                    middle = len(batch) // 2
                    return self._apply(batch[:middle]) or self._apply(batch[middle:])
                elif self._set_aside:
                    raise  # two different ones: then it is rather the store
                else:
                    self._set_aside = True
                    self._store.remarks.add(f"{kind} failed {len(PAUSES) + 1} times: {failure}")
        return None

    def _say(self, error: Exception | None) -> None:
        before, self._failure = self._failure, error
        if error is not None and type(error) is not type(before) and (before is None or isinstance(error, ClosedError)):
            logger.warning("%s: training goes on, the record waits in %s", self._sentence(error), self._spool.folder)
        elif error is None and before is not None:
            logger.warning("%s is back: everything that waited was delivered", self._store.label)

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, ClosedError):
            return f"{error}; it is tried once more when the run ends"
        what = "is busy" if isinstance(error, BusyError) else "cannot be reached"
        if isinstance(error, UncertainError):
            what = "answers, but does not take everything"
        return f"{self._store.label} {what} ({_reason(error)})"


def _reason(error: Exception | None) -> str:
    if error is None:
        return "not tried yet"
    first = str(error).strip().split("\n")[0]
    return first if isinstance(error, ClosedError) else first[:120]


def _stretch(operations: Sequence[Operation]) -> int:
    """How many operations from the front can go together: a stretch of metrics, else one."""
    count = 0
    while count < len(operations) and operations[count]["op"] == "metrics":
        count += 1
    return max(1, count)
