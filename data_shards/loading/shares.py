"""A rank's share of a step: the records of each of its micro-batches, the same whoever works it out.

A step is dealt by tokens (``deal``) where the loader knows what records cost, else by records. Each data set of a
mixture is dealt by itself, so that no rank gets one kind only.

Shapes: N records of a global step, B records of one micro-batch, K data sets, P micro-batches of all ranks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from data_shards.loading.deal import deal
from data_shards.loading.order import share_bounds

logger = logging.getLogger(__name__)

UNEVEN = 1.2  # fullest micro-batch over the mean, from which on it is said


@dataclass(frozen=True)
class Place:
    """Which of how many ranks this is, and micro-batches of a step on each."""

    rank: int
    world: int
    accumulation: int


@dataclass(frozen=True)
class Load:
    """Tokens of a step's micro-batches over all ranks, and of its largest record."""

    fullest: int
    mean: float
    record: int

    @property
    def ratio(self) -> float:
        """Fullest over mean."""
        return self.fullest / self.mean


def share_by_records(number_N: np.ndarray, bounds_K1: np.ndarray, place: Place) -> list[np.ndarray]:
    """Numbers [B] of each micro-batch of this rank: nearly equal stretches, whose sizes differ by at most one.

    Args:
        number_N: of the step's records, ascending. bounds_K1: first number of each data set, and their end.
    """
    cut_K1 = np.searchsorted(number_N, bounds_K1)
    pieces = [np.empty(0, np.int64)]
    for k, (start, stop) in enumerate(zip(cut_K1[:-1].tolist(), cut_K1[1:].tolist(), strict=True)):
        # Each data set gives its odd records to other ranks first.
        own = share_bounds(stop - start, (place.rank + k) % place.world, place.world)
        pieces.append(number_N[start + own[0] : start + own[1]])
    mine = np.concatenate(pieces)
    cuts = [share_bounds(len(mine), micro, place.accumulation) for micro in range(place.accumulation)]
    return [mine[start:stop] for start, stop in cuts]


def share_by_tokens(
    number_N: np.ndarray, cost_N: np.ndarray, bounds_K1: np.ndarray, place: Place
) -> tuple[list[np.ndarray], Load]:
    """As ``share_by_records``, but micro-batches of all ranks get about equally many tokens; and how equally."""
    cut_K1 = np.searchsorted(number_N, bounds_K1)
    load_P, part_N = np.zeros(place.world * place.accumulation, np.int64), np.empty(len(number_N), np.int64)
    for start, stop in zip(cut_K1[:-1].tolist(), cut_K1[1:].tolist(), strict=True):
        part_N[start:stop] = deal(cost_N[start:stop], load_P)
        np.add.at(load_P, part_N[start:stop], cost_N[start:stop])
    first = place.rank * place.accumulation
    batches = [number_N[part_N == first + micro] for micro in range(place.accumulation)]
    return batches, Load(int(load_P.max()), float(load_P.mean()), int(cost_N.max(initial=0)))


class Evenness:
    """How even steps were since it was last asked; says once what a recipe could do about it.

    Args:
        place: of this rank; only the first one says anything. max_tokens: that a micro-batch may hold unsaid.
    """

    def __init__(self, place: Place, max_tokens: int | None) -> None:
        self._place, self._max_tokens = place, max_tokens
        self._ratio, self._fullest = 0.0, 0
        self._said: set[str] = set()

    def add(self, load: Load) -> None:
        """One step's."""
        self._ratio, self._fullest = max(self._ratio, load.ratio), max(self._fullest, load.fullest)
        found = f"a micro-batch holds {load.fullest} tokens, {load.ratio:.2f} times the mean of {load.mean:.0f}"
        largest = f"the largest record of the step has {load.record}"
        if self._max_tokens is not None and load.fullest > self._max_tokens:
            enough = -(-load.fullest * self._place.accumulation // self._max_tokens)
            self._say(
                "bound",
                f"{found}, training.max_tokens is {self._max_tokens} and {largest}: set training.accumulation to "
                f"{enough} or more, or training.batch_size lower",
            )
        elif load.ratio > UNEVEN:
            self._say(
                "uneven",
                f"{found}, and the other ranks wait for it; {largest}: a larger training.batch_size, a smaller "
                "training.accumulation or shorter records make ranks more even",
            )

    def _say(self, what: str, sentence: str) -> None:
        if what not in self._said and self._place.rank == 0:
            logger.warning("%s", sentence)
        self._said.add(what)

    def read(self) -> dict[str, float]:
        """The worst figures since the last call: `data/token_ratio`, `data/most_tokens`; empty if there were none."""
        found = {"data/token_ratio": self._ratio, "data/most_tokens": float(self._fullest)} if self._fullest else {}
        self._ratio, self._fullest = 0.0, 0
        return found
