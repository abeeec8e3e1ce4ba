"""Requests share passes through a model: those that come together, and those that come while it is busy."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from launch.serving.batcher import Batcher


class Model:
    """Remembers its batches; waits until it may go on."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[Any], bool]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, samples: list[Any], explain: bool) -> list[dict[str, Any]]:
        self.batches.append((samples, explain))
        assert self.free.wait(30)
        if "bad" in samples:
            raise ValueError("bad")
        return [{"of": sample} for sample in samples]


def test_requests_that_come_together_are_one_batch_and_get_their_own_rows():
    model = Model()

    async def ask() -> list[Any]:
        batcher = Batcher(model, 100, 0.05)
        return await asyncio.gather(batcher(["a", "b"], False), batcher(["c"], False), batcher(["d"], True))

    assert asyncio.run(ask()) == [[{"of": "a"}, {"of": "b"}], [{"of": "c"}], [{"of": "d"}]]
    assert sorted(model.batches) == [(["a", "b", "c"], False), (["d"], True)]


def test_while_the_model_is_busy_the_next_batch_gathers_and_takes_no_more_than_fits():
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model, 4, 0.001)
        model.free.clear()
        first = asyncio.create_task(batcher(["first"], False))
        while not model.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher([number], False)) for number in range(9)]
        await asyncio.sleep(0.1)  # many times the wait
        assert len(model.batches) == 1
        model.free.set()
        assert await first == [{"of": "first"}]
        assert await asyncio.gather(*others) == [[{"of": number}] for number in range(9)]

    asyncio.run(ask())
    assert [samples for samples, _ in model.batches] == [["first"], [0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_a_full_batch_waits_for_nobody_and_a_request_larger_than_a_batch_is_one():
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model, 2, 3600.0)
        assert len(await batcher(["a", "b", "c"], False)) == 3
        await asyncio.gather(batcher(["d"], False), batcher(["e"], False))

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert [samples for samples, _ in model.batches] == [["a", "b", "c"], ["d", "e"]]


def test_what_fails_fails_for_its_batch_and_who_has_gone_is_not_computed():
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model, 10, 0.02)
        gone = asyncio.create_task(batcher(["gone"], False))
        bad = asyncio.create_task(batcher(["bad"], False))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(ValueError, match="bad"):
            await bad
        assert await batcher(["good"], False) == [{"of": "good"}]

    asyncio.run(ask())
    assert [samples for samples, _ in model.batches] == [["bad"], ["good"]]
