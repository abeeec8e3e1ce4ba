"""Sums over all ranks that do not depend on who holds which value: each is the true sum, rounded once.

A rank's own values become a few numbers whose sum is exactly theirs (Shewchuk 1997), and only those travel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from trainer.worker.collectives import rows_everywhere

_AT_ONCE = 1 << 16


def exact_parts(values: NDArray[np.float64], before: Sequence[float] = ()) -> list[float]:
    """A few numbers whose sum is exactly that of all; of values that are not finite, their sum as it comes."""
    found = list(before)
    if not all(map(math.isfinite, found)) or not np.isfinite(values).all():
        return [float(sum(found) + values.sum())]
    for start in range(0, len(values), _AT_ONCE):
        own = [*found, *values[start : start + _AT_ONCE].tolist()]
        found = []
        while rest := math.fsum(own):
            found.append(rest)
            own.append(-rest)
    return found


class Sums:
    """Named sums. Every rank adds under the same names in the same order, also where it has no value."""

    def __init__(self) -> None:
        self._parts: dict[str, list[float]] = {}

    def add(self, name: str, values: ArrayLike) -> None:
        """Some of this rank's values: an array of any shape, or one number."""
        flat_X = np.asarray(values, np.float64).reshape(-1)
        self._parts[name] = exact_parts(flat_X, self._parts.get(name, ()))

    def everywhere(self) -> dict[str, float]:
        """The sum of each over all ranks, on every rank. Collective."""
        rows = [(float(n), part) for n, parts in enumerate(self._parts.values()) for part in parts]
        found = rows_everywhere(torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)).numpy()
        return {name: _whole(found[found[:, 0] == n, 1].tolist()) for n, name in enumerate(self._parts)}


def _whole(parts: list[float]) -> float:
    return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)
