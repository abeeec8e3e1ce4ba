"""The driver's eye on the nodes: workers write a checkpoint before a node leaves, and make room for one that came.

Ray resizes a group by killing it. Here the workers are asked first: they finish their step, write a checkpoint of it
and end; the controller then starts as many as fit. No step is lost.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

from launch.cluster.nodes import Sizes, leaving_nodes, staying_nodes
from launch.ray_train.mailbox import Seats

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
LOOKS_BEFORE_GROWTH = 3  # nodes come in groups: wait for a moment without change


class NodeWatch:
    """Looks at the nodes now and then, and leaves in the mailbox what the workers should do.

    `sizes` says how many workers the run may have.
    """

    def __init__(self, mailbox: Any, sizes: Sizes) -> None:
        self._mailbox, self._sizes = mailbox, sizes
        self._next = 0.0
        self._told: set[str] = set()
        self._seen: list[int] = []

    def look(self) -> None:
        """Call often; looks every LOOK_SECONDS, and only while all workers of an attempt are at work."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        seats: Seats | None = ray.get(self._mailbox.seats.remote())
        if seats is None:  # between two attempts, or some workers have not come yet
            self._seen = []
            return
        # Only the run's own nodes; each of them is a reason once.
        leaving = leaving_nodes() & seats.nodes
        if leaving - self._told:
            self._told |= leaving
            self._make_safe(len(leaving))
        elif not leaving and seats.world < self._sizes.most:
            self._grow(seats.world)

    def _make_safe(self, leaving: int) -> None:
        text = f"{leaving} of the run's nodes {'is' if leaving == 1 else 'are'} about to leave"
        if self._sizes.elastic and self._sizes.fitting(staying_nodes()) >= self._sizes.least:
            self._ask("regroup", f"{text}; the run continues on the others")
        else:
            # No group to go on with elsewhere: workers stay, and what was trained is safe.
            self._ask("save", f"{text}; a checkpoint is written")

    def _grow(self, world: int) -> None:
        # A new start costs a checkpoint and the workers' imports: grow once, when no more nodes seem to come.
        self._seen = [*self._seen, self._sizes.fitting(staying_nodes())]
        recent = self._seen[-LOOKS_BEFORE_GROWTH:]
        if len(recent) == LOOKS_BEFORE_GROWTH and min(recent) == max(recent) > world:
            self._seen = []
            self._ask("regroup", f"there is room for {recent[-1]} workers instead of {world}")

    def _ask(self, wish: str, reason: str) -> None:
        logger.warning("%s", reason)
        ray.get(self._mailbox.ask.remote(wish, reason))
