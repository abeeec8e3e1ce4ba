"""Measures where some times are censored: Kaplan-Meier, concordance, Brier score, calibration; of weighted records.

Who is censored is known to have lived at least so long. Concordance compares only pairs of which it is known who was
first; the Brier score and Uno's concordance weigh what is known by the chance not to have been censored before (inverse
probability of censoring, Graf et al. 1999, Uno et al. 2011), as Kaplan and Meier estimate it from the same records.
Where times are equal, what was seen came before what was censored. scikit-survival computes the same and is what the
tests compare with; at work it is not used, as it takes a second to import, time in the square of the records for a
concordance, and has no weights.

Shapes: B records, R sets of weights, U distinct times, T times of a grid, L levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
# Of pairs of a record and a set of weights so many are held at a time, but so many sets at least.
MOST_WEIGHTS, FEWEST_SETS = 1 << 18, 4
GROUPS, FEWEST = 10, 50  # of records by predicted chance, and in each of them


@dataclass(frozen=True)
class StepCurve:
    """A function that falls at some times, and is 1 before the first."""

    time_U: Array
    value_U: Array

    def at(self, time_T: Array) -> Array:
        """Its values, after the fall where a time is one of its own."""
        place_T = np.searchsorted(self.time_U, time_T, side="right")
        return np.concatenate([[1.0], self.value_U])[place_T]


def kaplan_meier(time_B: Array, seen_B: Bools) -> StepCurve:
    """Chance not to have been seen by a time; the censored leave after those who are seen at the same time."""
    return _product_limit(time_B, seen_B, np.zeros_like(seen_B))


def uncensored(time_B: Array, seen_B: Bools) -> StepCurve:
    """Chance not to have been censored by a time; those who are seen leave before."""
    return _product_limit(time_B, ~seen_B, seen_B)


def _product_limit(time_B: Array, falls_B: Bools, leaves_first_B: Bools) -> StepCurve:
    time_U, slot_B = np.unique(time_B, return_inverse=True)
    fallen_U = np.bincount(slot_B, falls_B, len(time_U))
    risk_U = np.bincount(slot_B, minlength=len(time_U))[::-1].cumsum()[::-1]
    risk_U = risk_U - np.bincount(slot_B, leaves_first_B, len(time_U))
    # Who has left leaves nobody at risk, and nobody falls.
    return StepCurve(time_U, np.cumprod(1 - fallen_U / np.maximum(risk_U, 1)))


def censoring_weights(time_B: Array, seen_B: Bools) -> Array:
    """1 / chance not to have been censored by the record's own time; 0 for the censored."""
    chance_B = uncensored(time_B, seen_B).at(time_B)
    return np.divide(1.0, chance_B, out=np.zeros(len(time_B)), where=seen_B & (chance_B > 0))


@dataclass(frozen=True)
class _Level:
    """Some of the pairs in which one record is known to be first, sorted by block and risk.

    Every pair is in one level of `_levels`. `start_U` are the first records of each group of equal block and risk, and
    (`first_U`, `last_U`) the groups with which each group's block begins and ends.
    """

    order_B: NDArray[np.int64]
    earlier_B: Bools
    later_B: Bools
    start_U: NDArray[np.int64]
    first_U: NDArray[np.int64]
    last_U: NDArray[np.int64]


def _levels(time_B: Array, seen_B: Bools, risk_B: Array) -> Iterator[_Level]:
    # Numbers in order of time, even for the seen and odd for the censored. Of two numbers the one that has a 0 at the
    # highest bit in which they differ is the earlier: each level is a bit, each block what agrees above it.
    number_B = 2 * np.unique(time_B, return_inverse=True)[1] + ~seen_B
    for bit in range(int(number_B.max()).bit_length()):
        block_B = number_B >> (bit + 1)
        order_B = np.lexsort((risk_B, block_B))
        block_B, one_B = block_B[order_B], (number_B[order_B] >> bit & 1).astype(bool)
        new_block_B = np.diff(block_B, prepend=-1) != 0
        start_U = np.flatnonzero(new_block_B | (np.diff(risk_B[order_B], prepend=np.nan) != 0))
        begins_U = new_block_B[start_U]
        begin_U = np.flatnonzero(begins_U)
        own_U = begins_U.cumsum() - 1
        last_U = np.append(begin_U[1:], len(start_U))[own_U] - 1
        yield _Level(order_B, ~one_B & seen_B[order_B], one_B, start_U, begin_U[own_U], last_U)


class Concordance:
    """Harrell's concordance of weighted records: of two, the one with more risk is first; equal risks count half.

    A pair counts if it is known who was first: the earlier was seen, and the other came later, or was censored at the
    same time. It counts as often as the product of its weights says, times the factor of the earlier.

    Args:
        factor_B: 1 for Harrell's; squares of `censoring_weights` for Uno's.
    """

    def __init__(self, time_B: Array, seen_B: Bools, risk_B: Array, factor_B: Array | None = None) -> None:
        self.time_B, self.seen_B, self.risk_B = time_B, seen_B, risk_B
        self.factor_B = np.ones(len(time_B)) if factor_B is None else factor_B

    def __call__(self, weight_RB: Array) -> Array:
        """(R,); NaN where no pair counts."""
        levels: Iterable[_Level] = _levels(self.time_B, self.seen_B, self.risk_B)
        each = max(FEWEST_SETS, MOST_WEIGHTS // weight_RB.shape[1])
        # Level by level the least is held, of many records; they are worked out once.
        levels = list(levels) if len(weight_RB) > each else levels
        parts = [self._some(weight_RB[start : start + each], levels) for start in range(0, len(weight_RB), each)]
        return np.concatenate(parts)

    def _some(self, weight_RB: Array, levels: Iterable[_Level]) -> Array:
        # Records first: what is taken of a record and summed up over records then lies side by side.
        weight_BR = np.ascontiguousarray(weight_RB.T)
        agree_R, pairs_R = np.zeros(len(weight_RB)), np.zeros(len(weight_RB))
        for level in levels:
            own_BR = weight_BR[level.order_B]
            factor_B = np.where(level.earlier_B, self.factor_B[level.order_B], 0.0)
            earlier_UR, later_UR = own_BR * factor_B[:, None], own_BR * level.later_B[:, None]
            if len(level.start_U) < len(own_BR):
                earlier_UR, later_UR = (np.add.reduceat(x_BR, level.start_U) for x_BR in (earlier_UR, later_UR))
            sum_UR = earlier_UR.cumsum(axis=0)
            end_UR = sum_UR[level.last_U]
            agree_R += (later_UR * (end_UR - sum_UR + earlier_UR / 2)).sum(axis=0)
            pairs_R += (later_UR * (end_UR - (sum_UR - earlier_UR)[level.first_U])).sum(axis=0)
        return np.divide(agree_R, pairs_R, out=np.full_like(agree_R, np.nan), where=pairs_R > 0)


def concordance(time_B: Array, seen_B: Bools, risk_B: Array, factor_B: Array | None = None) -> float:
    """Of records as they are."""
    return float(Concordance(time_B, seen_B, risk_B, factor_B)(np.ones((1, len(time_B))))[0])


def brier(time_B: Array, seen_B: Bools, survival_BT: Array, time_T: Array) -> Array:
    """(B, T) squared error of the predicted chance to live beyond each time, weighted; its mean is the Brier score.

    Times lie below the longest of the records, so that somebody is still there.
    """
    happened_BT = (time_B[:, None] <= time_T) & seen_B[:, None]
    lives_BT = time_B[:, None] > time_T
    error_BT = happened_BT * survival_BT**2 * censoring_weights(time_B, seen_B)[:, None]
    return error_BT + lives_BT * (1 - survival_BT) ** 2 / uncensored(time_B, seen_B).at(time_T)


def integrated_brier(time_B: Array, seen_B: Bools, survival_BT: Array, time_T: Array) -> Array:
    """(B,) mean over the time from the first to the last of at least two times, by trapezia."""
    error_BT = brier(time_B, seen_B, survival_BT, time_T)
    return np.trapezoid(error_BT, time_T, axis=1) / (time_T[-1] - time_T[0])


@dataclass(frozen=True)
class Calibration:
    """Records in groups by the chance that is predicted for a time: how many, its mean, and what Kaplan-Meier found."""

    count: Array
    stated: Array
    found: Array

    @property
    def error(self) -> float:
        """Mean gap between stated and found, weighted by records."""
        return float((np.abs(self.stated - self.found) * self.count).sum() / self.count.sum())


def calibration(time_B: Array, seen_B: Bools, stated_B: Array, time: float) -> Calibration:
    """Of the chance to live beyond `time`, in groups of equal size."""
    groups = min(GROUPS, max(1, len(time_B) // FEWEST))
    rows = np.array_split(np.argsort(stated_B, kind="stable"), groups)
    found = [kaplan_meier(time_B[row], seen_B[row]).at(np.array([time]))[0] for row in rows]
    stated = [stated_B[row].mean() for row in rows]
    return Calibration(np.array([len(row) for row in rows], np.float64), np.array(stated), np.array(found))
