"""Work on a source's units by several processes, with results in the units' order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
_own: list[Callable[[Any], Any]] = []  # of a worker process


def in_order(work: Callable[[Any], T], units: Iterable[Any], workers: int) -> Iterator[T]:
    """``work(unit)`` of each unit, in order, at most a few in flight.

    Args:
        work: it is pickled once for each process, however much it carries. workers: 1 works in this process.
    """
    if workers <= 1:
        yield from (work(unit) for unit in units)
        return
    units = iter(units)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work,)) as pool:
        try:
            waiting: list[Future[T]] = [pool.submit(_do, unit) for unit in islice(units, 2 * workers)]
            while waiting:
                result = waiting.pop(0).result()
                waiting += [pool.submit(_do, unit) for unit in islice(units, 1)]
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    _own.append(work)


def _do(unit: Any) -> Any:
    return _own[0](unit)
