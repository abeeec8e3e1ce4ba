"""How values are distributed, channel by channel: moments and a quantile sketch, both merged from pieces.

Sums are merged pairwise (Chan, Golub & LeVeque 1979) in float64 and in a fixed order, so that the result does not
depend on the number of processes. Standard deviations are of the population (divided by n).

Shapes: N values, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from data_shards.records.distributions.sketch import Sketch


@dataclass(frozen=True)
class Spread:
    """Of one kind of number, e.g. of all times of a modality.

    ``quantiles`` at the probabilities of `sketch.PROBABILITIES`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    count: int
    mean: float
    std: float
    min: float
    max: float
    quantiles: tuple[float, ...]


class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of n channels."""

    def __init__(self, n: int) -> None:
        self.count: np.ndarray = np.zeros(n, np.int64)
        self.mean: np.ndarray = np.zeros(n)
        self.m2: np.ndarray = np.zeros(n)
        self.min: np.ndarray = np.full(n, np.inf)
        self.max: np.ndarray = np.full(n, -np.inf)

    @staticmethod
    def of(channels_O: np.ndarray, values_O: np.ndarray, n: int) -> Moments:
        """Moments of values that are labelled with their channel."""
        moments = Moments(n)
        values = values_O.astype(np.float64)
        moments.count = np.bincount(channels_O, minlength=n)
        moments.mean = np.bincount(channels_O, values, n) / np.maximum(moments.count, 1)
        moments.m2 = np.bincount(channels_O, (values - moments.mean[channels_O]) ** 2, n)
        np.minimum.at(moments.min, channels_O, values)
        np.maximum.at(moments.max, channels_O, values)
        return moments

    def merge(self, other: Moments) -> None:
        """Add the other's values."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        delta = other.mean - self.mean
        self.m2 += other.m2 + delta**2 * self.count * share
        self.mean += delta * share
        self.count = total
        np.minimum(self.min, other.min, out=self.min)
        np.maximum(self.max, other.max, out=self.max)

    @property
    def std(self) -> np.ndarray:
        """float64 [C]; 1 for channels without values."""
        spread: np.ndarray = np.sqrt(np.maximum(self.m2, 0) / np.maximum(self.count, 1))
        return np.where(self.count == 0, 1.0, spread)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [C] each: smallest and largest values, 0 for channels without values."""
        low, high = (np.where(self.count == 0, 0.0, bound) for bound in (self.min, self.max))
        return low, high


class Distribution:
    """Values of C channels."""

    def __init__(self, channels: int) -> None:
        self.moments, self.sketch = Moments(channels), Sketch(channels)

    def add(self, channel_N: np.ndarray, value_N: np.ndarray, some_N: np.ndarray | None = None) -> None:
        """Take in values, each of a channel; ``some_N`` says which of them the sketch sees (None: all)."""
        if not len(value_N):
            return
        self.moments.merge(Moments.of(channel_N, value_N, self.sketch.channels))
        if some_N is not None:
            channel_N, value_N = channel_N[some_N], value_N[some_N]
        self.sketch.add(channel_N, value_N)

    def merge(self, other: Distribution) -> None:
        """Add the other's values."""
        self.moments.merge(other.moments)
        self.sketch.merge(other.sketch)

    def quantiles(self) -> np.ndarray:
        """float64 [C, P]; 0 for channels without values."""
        return self.sketch.quantiles(*self.moments.bounds)

    def spreads(self) -> list[Spread | None]:
        """Of each channel; None without values."""
        low, high = self.moments.bounds
        columns = (self.moments.count, self.moments.mean, self.moments.std, low, high, self.quantiles())
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Spread(n, mean, std, least, most, tuple(q)) if n else None for n, mean, std, least, most, q in rows]
