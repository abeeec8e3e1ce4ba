"""Statistics of stretches: neighbouring rows of one list that belong together, such as the observations of a channel.

All stretches are worked out at once, in float64. What a stretch has none of (a mean of nothing late, a trend of one
observation) is NaN.

Shapes: O rows, S stretches, F features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
OF_SERIES = (
    "count",
    "first",
    "last",
    "min",
    "max",
    "mean",
    "std",
    "median",
    "late_mean",
    "late_min",
    "early_mean",
    "first_time",
    "last_time",
    "change",
    "trend",
)
OF_OBJECTS = ("count", "first_time", "last_time")
OF_FEATURES = ("last", "mean", "min", "max")


def starts(key_O: np.ndarray) -> NDArray[np.int64]:
    """int64 [S]: where each stretch of equal neighbours begins."""
    return np.flatnonzero(np.diff(key_O, prepend=-1)).astype(np.int64)


def of_series(start_S: NDArray[np.int64], time_O: np.ndarray, value_O: np.ndarray, window_S: np.ndarray) -> Array:
    """(S, 15) `OF_SERIES` of observations that ascend by time within their stretch.

    `late` is the last quarter of the window, `early` the first; `change` is last - first, and `trend` the
    slope of the least-squares line.

    Args:
        window_S: length of each stretch's observation window; NaN = not declared, and nothing is early or late.
    """
    if not len(start_S):
        return np.empty((0, len(OF_SERIES)))
    time_O, value_O = time_O.astype(np.float64), value_O.astype(np.float64)
    size_S = np.diff(start_S, append=len(value_O))
    end_S, window_O = start_S + size_S, np.repeat(window_S, size_S)
    mean_S = np.add.reduceat(value_O, start_S) / size_S
    apart_O = value_O - np.repeat(mean_S, size_S)
    late_O, early_O = time_O >= 0.75 * window_O, time_O < 0.25 * window_O
    lowest_S = np.minimum.reduceat(np.where(late_O, value_O, np.inf), start_S)
    columns = (
        size_S,
        value_O[start_S],
        value_O[end_S - 1],
        np.minimum.reduceat(value_O, start_S),
        np.maximum.reduceat(value_O, start_S),
        mean_S,
        np.sqrt(np.add.reduceat(apart_O**2, start_S) / size_S),
        _median(start_S, size_S, value_O),
        _mean_where(late_O, value_O, start_S),
        np.where(np.isfinite(lowest_S), lowest_S, np.nan),
        _mean_where(early_O, value_O, start_S),
        time_O[start_S],
        time_O[end_S - 1],
        value_O[end_S - 1] - value_O[start_S],
        _slope(start_S, size_S, time_O, apart_O),
    )
    return np.stack(columns, axis=1).astype(np.float64)


def of_objects(start_S: NDArray[np.int64], time_O: np.ndarray, x_OF: np.ndarray) -> Array:
    """(S, 3 + 4 F) `OF_OBJECTS`, then for each of `OF_FEATURES` all features, of objects that ascend by time."""
    if not len(start_S):
        return np.empty((0, len(OF_OBJECTS) + len(OF_FEATURES) * x_OF.shape[1]))
    x_OF = x_OF.astype(np.float64)
    size_S = np.diff(start_S, append=len(x_OF))
    end_S = start_S + size_S
    head_S3 = np.stack([size_S, time_O[start_S], time_O[end_S - 1]], axis=1)
    mean_SF = np.add.reduceat(x_OF, start_S) / size_S[:, None]
    lowest_SF, highest_SF = np.minimum.reduceat(x_OF, start_S), np.maximum.reduceat(x_OF, start_S)
    return np.concatenate([head_S3, x_OF[end_S - 1], mean_SF, lowest_SF, highest_SF], axis=1)


def _median(start_S: NDArray[np.int64], size_S: np.ndarray, value_O: Array) -> Array:
    sorted_O = value_O[np.lexsort((value_O, np.repeat(np.arange(len(start_S)), size_S)))]
    middle_S: Array = (sorted_O[start_S + (size_S - 1) // 2] + sorted_O[start_S + size_S // 2]) / 2
    return middle_S


def _mean_where(wanted_O: np.ndarray, value_O: Array, start_S: NDArray[np.int64]) -> Array:
    count_S = np.add.reduceat(wanted_O.astype(np.float64), start_S)
    total_S = np.add.reduceat(np.where(wanted_O, value_O, 0.0), start_S)
    return np.divide(total_S, count_S, out=np.full(len(start_S), np.nan), where=count_S > 0)


def _slope(start_S: NDArray[np.int64], size_S: np.ndarray, time_O: Array, apart_O: Array) -> Array:
    """Of the line through values, given as what they are away from their mean."""
    middle_S = np.add.reduceat(time_O, start_S) / size_S
    away_O = time_O - np.repeat(middle_S, size_S)
    square_S = np.add.reduceat(away_O**2, start_S)
    both_S = np.add.reduceat(away_O * apart_O, start_S)
    return np.divide(both_S, square_S, out=np.full(len(start_S), np.nan), where=square_S > 1e-12)
