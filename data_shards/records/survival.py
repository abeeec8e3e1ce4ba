"""Time until something happens, counted in intervals: where they end, where a time falls, what a life table says.

Interval k of a task holds the times in (edges[k - 1], edges[k]]; the first begins with 0 itself. Times are kept as
float32, so edges are compared as float32: a time that is written as an edge is lies in the interval that it ends.

Shapes: B records, K intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def edges_from(times_B: np.ndarray, seen_B: np.ndarray, intervals: int) -> tuple[float, ...]:
    """Ends of intervals that hold about equally many of the seen times each; the last is the longest seen one.

    Every edge is a time that was seen. There are fewer intervals where many records share a time, as none is empty.

    Args:
        times_B: of the training part; NaN = unlabelled. seen_B: 1 = it was seen to happen then, 0 = censored.

    Raises:
        ValueError: no time above 0 was seen, or fewer than one interval is asked for.
    """
    if intervals < 1:
        raise ValueError(f"{intervals} intervals are asked for; at least 1 is needed")
    seen = np.asarray(times_B, np.float32)[np.asarray(seen_B) == 1]
    seen = np.sort(seen[seen > 0])
    if not len(seen):
        raise ValueError(
            f"none of {int(np.isfinite(np.asarray(times_B)).sum())} training records was seen at a time above 0, so no "
            "interval can be derived: give edges"
        )
    # The smallest time up to which the share k / K of all seen times lies.
    places = np.ceil(np.arange(1, intervals + 1) * (len(seen) / intervals) - 1e-9).astype(np.int64) - 1
    return tuple(np.unique(seen[np.maximum(places, 0)]).astype(np.float64).tolist())


def interval_of(edges: Sequence[float], times_B: np.ndarray) -> np.ndarray:
    """int64: number of the interval that holds each time; K for times beyond the last edge."""
    return np.searchsorted(np.asarray(edges, np.float32), np.asarray(times_B, np.float32), side="left")


def count_intervals(edges: Sequence[float], targets_B2: np.ndarray) -> np.ndarray:
    """int64 [2 (K + 1)]: censored records by interval and beyond the last, then seen ones; unlabelled ones nowhere."""
    known_B2 = targets_B2[~np.isnan(targets_B2).any(axis=1)]
    place_B = interval_of(edges, known_B2[:, 0]) + (len(edges) + 1) * known_B2[:, 1].astype(np.int64)
    return np.bincount(place_B, minlength=2 * (len(edges) + 1))


def seen_and_censored(counts: Sequence[int]) -> tuple[int, int]:
    """Records of `count_intervals`."""
    half = len(counts) // 2
    return sum(counts[half:]), sum(counts[:half])


def life_table(counts: Sequence[int]) -> np.ndarray:
    """float64 [K]: share of those who enter an interval that do not leave it, of `count_intervals`.

    Who is censored within an interval was at risk for half of it (the actuarial estimate). Half a record is added to
    either side, so that no hazard is 0 or 1.
    """
    censored, seen = np.asarray(counts, np.float64).reshape(2, -1)
    entered = (censored + seen)[::-1].cumsum()[::-1]
    return ((seen + 0.5) / (entered - censored / 2 + 1))[:-1]
