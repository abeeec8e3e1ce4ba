"""Metrics with intervals: what a part of this size can and cannot tell apart.

A test part is one draw of records; the bootstrap draws from it again, many times, and looks how much the metric moves.
Two runs that were tested on the same records are compared on the same draws, so that what is hard for both cancels.
A draw is a weight per record (how often it was drawn). Moments of a record are drawn together: what is hard about a
record is hard at each of them, so a hundred are not a hundred witnesses. Runs that differ in their seeds only are one
thing seen several times: their metrics are averaged within each draw.

Shape legend: B records, R draws, G records that moments are of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metric = Callable[[Array], Array]
"""Weights (R, B) -> the metric of each draw (R,)."""

DRAWS = 1000
LEVEL = 0.95
MOST_WEIGHTS = 1 << 24  # of moments, that are held at a time


@dataclass(frozen=True)
class Interval:
    """A metric of the whole part, and the middle `LEVEL` of what it is over the draws."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better the first is than the second; `p` is the share of draws that say otherwise, on both sides."""

    value: float
    low: float
    high: float
    p: float


def draw_weights(records: int, draws: int = DRAWS, seed: int = 0) -> Array:
    """(R + 1, B): the records as they are, then how often each is drawn in R draws of B records with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(records, np.full(records, 1 / records), size=draws).astype(np.float64)
    return np.concatenate([np.ones((1, records)), drawn])


def over_moments(measure: Metric, row_B: NDArray[np.int64]) -> Metric:
    """The metric as a function of the weights of records (R, G); `row_B` says which of the G each moment is of."""

    def metric(weight_RG: Array) -> Array:
        # Some draws at a time: records may have very many moments.
        each = max(1, MOST_WEIGHTS // max(1, len(row_B)))
        parts = [weight_RG[start : start + each] for start in range(0, len(weight_RG), each)]
        return np.concatenate([measure(part_RG[:, row_B]) for part_RG in parts])

    return metric


def interval(values_R: Array) -> Interval | None:
    """Of draws whose first is the part itself. Draws in which a metric does not exist (one class only) are left out.

    None where it does not exist for the part itself, or in no draw.
    """
    if np.isnan(values_R[0]) or np.isnan(values_R[1:]).all():
        return None
    low, high = np.nanquantile(values_R[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values_R[0]), float(low), float(high))


def difference(first_R: Array, second_R: Array) -> Difference | None:
    """Of two metrics on the same draws; None where one of them does not exist."""
    change_R = first_R - second_R
    found, drawn = interval(change_R), change_R[1:][~np.isnan(change_R[1:])]
    if found is None:
        return None
    # One more than counted: with R draws nothing can be said to be rarer than 1 / (R + 1).
    p = 2 * (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))
    return Difference(found.value, found.low, found.high, min(1.0, float(p)))


def seed_test(first: Sequence[float], second: Sequence[float]) -> float | None:
    """p of a paired t-test over seeds that both have; None with fewer than two, or if all differences are equal."""
    from scipy import stats

    if len(first) < 2 or np.ptp(np.subtract(first, second)) == 0:
        return None
    return float(stats.ttest_rel(first, second).pvalue)


def mean_over_seeds(runs: Sequence[Mapping[str, Array]], metric: str) -> Array:
    """(R + 1,) mean of the runs' draws of one metric."""
    return np.mean([run[metric] for run in runs], axis=0)
