"""Messages to rank 0 over a store, in one process and over TCP, while ranks do something else."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from trainer.worker.mailbox import PART, Mailbox, own_mailbox


def test_rank_0_gets_all_messages_once_and_they_are_gone() -> None:
    store = dist.HashStore()
    first, second = Mailbox(store, 0, 2), Mailbox(store, 1, 2)
    first.post("a", b"")
    assert first.collect("a") is None and first.missing("a") == [1]
    second.post("a", b"\x00\xff")
    second.post("b", b"other")
    assert first.collect("a") == [b"", b"\x00\xff"]
    assert first.missing("b") == [0]
    first.post("b", b"own")
    assert first.collect("b") == [b"own", b"other"]
    assert store.num_keys() == 0
    assert first.collect("a") is None


def test_long_messages_from_threads_over_tcp() -> None:
    """Longer than a value may be; ranks are slow, and rank 0 does other things on its store meanwhile."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    messages = [bytes([rank]) * size for rank, size in enumerate((3, 2 * PART + 1, PART, 9 * PART))]

    def rank(number: int) -> None:
        client = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=20))
        Mailbox(client, number, 4).post("topic", messages[number])

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    box = Mailbox(server, 0, 4)
    box.post("topic", messages[0])
    while (found := box.collect("topic")) is None:
        server.set("something", "else")
    for thread in threads:
        thread.join()
    assert found == messages


def test_ranks_do_not_write_to_themselves() -> None:
    with pytest.raises(ValueError, match="2 ranks need a mailbox that they share: rank 1 has none"):
        own_mailbox(1, 2)
    own = own_mailbox(0, 1)
    own.post("x", b"y")
    assert own.collect("x") == [b"y"]
