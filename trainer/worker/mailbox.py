"""Messages of all ranks to rank 0, from any thread and at any time: no rank waits, and no collective is joined.

They go through the store by which the ranks of a process group have met. A collective would need a group of its own,
beside training, and would end a run whose slowest rank writes longer than its timeout.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

PART = 1 << 20  # bytes of one value; torch's store takes no more than eight times that


class Mailbox:
    """Rank 0 collects what every rank posts under a topic, once.

    Args:
        store: shared by all ranks; safe to use from several threads.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world

    def post(self, topic: str, message: bytes) -> None:
        """Leave this rank's message, which may be empty. Once a topic."""
        key, parts = self._key(topic, self._rank), -(-len(message) // PART)
        for part in range(parts):
            value: Any = message[part * PART : (part + 1) * PART]  # bytes, which torch's types leave out
            self._store.set(f"{key}/{part}", value)
        self._store.set(key, str(parts))
        # Last, as it tells rank 0 that the message is there.
        self._store.add(f"{topic}/posted", 1)

    def collect(self, topic: str) -> list[bytes] | None:
        """All messages, by rank, which are then gone from the store; None while some are not there yet."""
        if self._store.add(f"{topic}/posted", 0) < self._world:
            return None
        messages = [self._take(self._key(topic, rank)) for rank in range(self._world)]
        self._store.delete_key(f"{topic}/posted")
        return messages

    def missing(self, topic: str) -> list[int]:
        """Ranks whose message is not there."""
        return [rank for rank in range(self._world) if not self._store.check([self._key(topic, rank)])]

    def _take(self, key: str) -> bytes:
        keys = [f"{key}/{part}" for part in range(int(self._store.get(key)))]
        message = b"".join(self._store.get(part) for part in keys)
        for part in [key, *keys]:
            self._store.delete_key(part)
        return message

    def _key(self, topic: str, rank: int) -> str:
        return f"{topic}/{rank}"


def own_mailbox(rank: int, world: int) -> Mailbox:
    """Of a process without peers. Raises ValueError: it has some."""
    if world > 1:
        raise ValueError(f"{world} ranks need a mailbox that they share: rank {rank} has none")
    return Mailbox(dist.HashStore(), rank, world)


def job_mailbox() -> Mailbox:
    """Of the ranks of this job; they have a process group."""
    group = dist.group.WORLD
    assert group is not None
    return Mailbox(dist.PrefixStore("mailbox", group.get_group_store()), dist.get_rank(), dist.get_world_size())
