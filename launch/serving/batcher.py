"""Records of several requests in one pass through a model."""

from __future__ import annotations

import asyncio
from typing import Any


class Batcher:
    """Samples of several requests in one call.

    A request that comes first waits `wait_s` for others, unless they fill the batch before; while one batch is
    computed the next one gathers. Rows come back in the order of each request.
    """

    def __init__(self, said: Any, most: int, wait_s: float) -> None:
        self._said, self._most, self._wait_s = said, most, wait_s
        self._waiting: dict[bool, list[tuple[list[Any], asyncio.Future[Any]]]] = {False: [], True: []}
        self._timers: dict[bool, asyncio.TimerHandle | None] = {False: None, True: None}
        self._one = asyncio.Lock()  # the model is computed by one thread at a time
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, samples: list[Any], explain: bool) -> list[dict[str, Any]]:
        """The rows of these samples. Raises whatever the call raises, in every request of the batch."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting[explain].append((samples, future))
        if sum(len(own) for own, _ in self._waiting[explain]) >= self._most:
            self._go(explain)
        elif self._timers[explain] is None:
            self._timers[explain] = loop.call_later(self._wait_s, self._go, explain)
        rows: list[dict[str, Any]] = await future
        return rows

    def _go(self, explain: bool) -> None:
        timer, self._timers[explain] = self._timers[explain], None
        if timer is not None:
            timer.cancel()
        batch, self._waiting[explain] = self._waiting[explain], []
        task = asyncio.get_running_loop().create_task(self._run(batch, explain))
        self._tasks.add(task)  # the loop itself would let go of it
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: list[tuple[list[Any], asyncio.Future[Any]]], explain: bool) -> None:
        joined = [sample for samples, _ in batch for sample in samples]
        try:
            async with self._one:
                rows = await asyncio.to_thread(self._said, joined, explain)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for samples, future in batch:
            if not future.done():  # whoever asked may have gone
                future.set_result(rows[start : start + len(samples)])
            start += len(samples)
