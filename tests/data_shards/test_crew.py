"""Those who work: what a process that is killed leaves is a sentence, on every team."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import pytest

from data_shards.crew import Here, Processes, in_order


def double(item: int, buffers: Sequence[bytes | memoryview]) -> int:
    return 2 * item


def die(item: int, buffers: Sequence[bytes | memoryview]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def keep(item: int, buffers: Sequence[bytes | memoryview]) -> tuple[int, bytes]:
    return item, bytes([item]) * item


def sizes(item: int, buffers: Sequence[bytes | memoryview]) -> list[bytes]:
    return [bytes(buffer) for buffer in buffers]


@pytest.mark.parametrize("crew", [Here(), Processes(2)], ids=["here", "processes"])
def test_results_come_in_order_and_what_is_kept_is_what_was_made(crew: Here | Processes) -> None:
    with crew.team({"double": double, "keep": keep, "sizes": sizes}) as team:
        assert list(in_order(team, "double", range(20))) == list(range(0, 40, 2))
        kept = [team.ask("keep", item, keep=True).get() for item in (0, 3)]
        assert [summary for summary, _ in kept] == [0, 3]
        assert team.ask("sizes", 0, [buffer for _, buffer in kept]).get() == [b"", b"\x03\x03\x03"]


def test_a_killed_worker_is_one_sentence() -> None:
    with (
        pytest.raises(BrokenProcessPool, match=r"^a worker process was killed, .*: the same command goes on"),
        Processes(1).team({"die": die}) as team,
    ):
        team.ask("die", 0).get()
