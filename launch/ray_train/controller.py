"""What this project adds to Ray Train's controller: whether to try again after a failure, and with how many workers."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback

from launch.cluster.nodes import Sizes, staying_nodes
from launch.errors import RunFailedError
from launch.ray_train.mailbox import Failure, Line

WAIT_SECONDS = 1.0


class FailurePolicy(UserCallback):
    """Says that workers failed, and ends the run where another attempt is hopeless or none is left.

    Workers that ended in order to start again on other nodes have not failed. Ray ends a run whose callback raises.
    """

    def __init__(self, mailbox: Any, max_failures: int) -> None:
        self._mailbox, self._left = mailbox, max_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self._mailbox.broke.remote()
        # Workers that were asked to start again end with an exception, too: it brings the new group.
        reason: str | None = ray.get(self._mailbox.regrouping.remote())
        if reason is not None:
            self._say(f"workers start again: {reason}")
            return
        failure: Failure | None = ray.get(self._mailbox.worst_failure.remote())
        if failure is not None and failure.hopeless:
            raise RunFailedError(failure.text)
        rank = min(worker_exceptions)
        died = f"died: {first_line(worker_exceptions[rank])}"
        rank, text = (failure.rank, failure.text) if failure is not None else (rank, died)
        if self._left == 0:
            self._say(f"worker failed, no restart is left (cluster.max_failures); rank {rank}: {text}")
            # The driver asks for the worst failure once `fit` has raised: this is it.
            ray.get(self._mailbox.fail.remote(Failure(rank, True, text)))
            raise RunFailedError(text)
        self._left -= 1
        self._say(f"worker failed, starting again; rank {rank}: {text}")

    def _say(self, text: str) -> None:
        self._mailbox.write.remote(Line(0, logging.WARNING, __name__, text, None))


class RightSize(ControllerCallback):
    """Corrects how many workers an elastic run starts to what fits on the nodes that stay, and waits for the fewest.

    Ray's own count still holds nodes that are lost or leaving; a group planned on one waits for it in vain.
    """

    def __init__(self, mailbox: Any, sizes: Sizes) -> None:
        self._mailbox, self._sizes = mailbox, sizes

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Raises RunFailedError if the run is stopped meanwhile."""
        said = False
        while (room := self._sizes.fitting(staying_nodes())) < self._sizes.least:
            if not said:
                text = f"waiting for nodes: room for {room} workers, cluster.min_workers is {self._sizes.least}"
                self._mailbox.write.remote(Line(0, logging.WARNING, __name__, text, None))
                said = True
            # No worker is there to grant this wish.
            if ray.get(self._mailbox.wish.remote()) == "stop":
                raise RunFailedError("stopped while it waited for nodes")
            time.sleep(WAIT_SECONDS)
        # In place: Ray goes on with the object that it has passed in.
        resize_decision.num_workers = room


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, with the last one if it ends in a colon; Ray's go on for pages."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    text = f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return text[:300]
