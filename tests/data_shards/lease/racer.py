"""Processes that want the same names at the same moment. A file of its own, so that they start without moto."""

from __future__ import annotations

import multiprocessing
from typing import Any

from data_shards.errors import LeaseHeldError
from data_shards.lease.lease import take

RACERS = 4


def race(places: list[str]) -> dict[str, int]:
    """place -> how many processes owned it at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, winners = context.Barrier(RACERS), context.Queue()
    racers = [context.Process(target=_try_all, args=(places, barrier, winners)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    won = [winners.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    return {place: sum(place in names for names in won) for place in places}


def _try_all(places: list[str], barrier: Any, winners: Any) -> None:
    won, leases = [], []
    for place in places:
        barrier.wait(60)
        try:
            leases.append(take(place, "run x", "give up", lease_s=1e6, heartbeat=False))
            won.append(place)
        except LeaseHeldError:
            pass
    barrier.wait(60)
    for lease in leases:
        lease.confirm()
    barrier.wait(60)
    winners.put(won)
