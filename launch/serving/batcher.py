"""Records of several requests in one pass through a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

Rows = list[dict[str, Any]]


@dataclass
class _Gathering:
    """Requests that wait for the next batch."""

    requests: list[tuple[list[Any], asyncio.Future[Rows]]] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: bool = False  # somebody sees to it that it leaves

    @property
    def samples(self) -> int:
        return sum(len(own) for own, _ in self.requests)


class Batcher:
    """Samples of several requests in one call.

    A request that comes first waits `wait_s` for others, unless they fill the batch before; and as long as the model
    is busy, the batch waits and takes in more. Rows come back in the order of each request.

    Args:
        said: (samples, whether to explain) -> rows. most: samples from which on a batch takes no further request.
    """

    def __init__(self, said: Callable[[list[Any], bool], Rows], most: int, wait_s: float) -> None:
        self._said, self._most, self._wait_s = said, most, wait_s
        self._gathering = {False: _Gathering(), True: _Gathering()}
        self._one = asyncio.Lock()  # the model is computed by one thread at a time
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, samples: list[Any], explain: bool) -> Rows:
        """The rows of these samples. Raises whatever the call raises, in every request of the batch."""
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        own = self._gathering[explain]
        own.requests.append((samples, future))
        if own.samples >= self._most:
            own.full.set()
        self._see_off(explain)
        return await future

    def _see_off(self, explain: bool) -> None:
        if self._gathering[explain].leaving or not self._gathering[explain].requests:
            return
        self._gathering[explain].leaving = True
        task = asyncio.get_running_loop().create_task(self._run(explain))
        self._tasks.add(task)  # the loop itself would let go of it
        task.add_done_callback(self._tasks.discard)

    async def _run(self, explain: bool) -> None:
        own = self._gathering[explain]
        with suppress(TimeoutError):
            await asyncio.wait_for(own.full.wait(), self._wait_s)
        async with self._one:
            batch = self._take(own)
            self._see_off(explain)  # of what was too much for this batch
            await self._compute(batch, explain)

    def _take(self, own: _Gathering) -> list[tuple[list[Any], asyncio.Future[Rows]]]:
        """Requests up to `most` samples, and at least one."""
        count, samples = 0, 0
        while count < len(own.requests) and (not count or samples + len(own.requests[count][0]) <= self._most):
            samples += len(own.requests[count][0])
            count += 1
        batch, own.requests = own.requests[:count], own.requests[count:]
        own.leaving = False
        if own.samples < self._most:
            own.full.clear()
        return batch

    async def _compute(self, batch: list[tuple[list[Any], asyncio.Future[Rows]]], explain: bool) -> None:
        batch = [(samples, future) for samples, future in batch if not future.done()]  # whoever asked may have gone
        joined = [sample for samples, _ in batch for sample in samples]
        try:
            rows = await asyncio.to_thread(self._said, joined, explain) if batch else []
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for samples, future in batch:
            if not future.done():
                future.set_result(rows[start : start + len(samples)])
            start += len(samples)
