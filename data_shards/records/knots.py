"""When the rows of a record stand in time, in a few numbers: how much of it a moment sees, without reading it.

Of every timed modality of a record the index of a shard keeps at most `KNOTS` times of its rows (events, objects,
codes): all of them where there are no more, else the first, the last, and those of evenly spaced ranks between. The
number of rows up to a time is exact at them, and a straight line between two. So whether a modality has begun is exact,
and a count is off by less than a fifteenth of the rows.

Shapes: n records, M modalities, Q knots, S samples, R rows of one modality.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

KNOTS = 16


def knot_ranks(rows: int) -> np.ndarray:
    """int64 [min(rows, KNOTS)], ascending: ranks of the rows whose times are kept."""
    if rows <= KNOTS:
        return np.arange(rows)
    last = KNOTS - 1
    return (2 * np.arange(KNOTS) * (rows - 1) + last) // (2 * last)


def knots_of(timed_rows: Iterable[tuple[np.ndarray, np.ndarray]], timed_M: np.ndarray) -> np.ndarray:
    """float32: kept times of one record, modality after modality.

    Args:
        timed_rows: (modality, time) of each row, in any number of pieces. timed_M: bool, modalities that have times.
    """
    pieces = list(timed_rows)
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in pieces)]).astype(np.int64)
    times = np.concatenate([np.empty(0, np.float32), *(times for _, times in pieces)]).astype(np.float32)
    keep = timed_M[ids]
    ids, times = ids[keep], times[keep]
    order = np.lexsort((times, ids))
    _, counts = np.unique(ids, return_counts=True)
    start = np.cumsum(counts) - counts
    ranks = [first + knot_ranks(int(count)) for first, count in zip(start.tolist(), counts.tolist(), strict=True)]
    return times[order][np.concatenate([np.empty(0, np.int64), *ranks])]


def knot_tables(knots: np.ndarray, rows_nM: np.ndarray) -> list[np.ndarray]:
    """float32 [n, Q] of each modality, ascending and filled up with infinity; ``rows_nM`` is 0 where there are none.

    Raises:
        ValueError: there are more or fewer knots than these rows have.
    """
    kept_nM = np.minimum(rows_nM, KNOTS)
    end = np.cumsum(kept_nM.ravel()).reshape(kept_nM.shape)
    if int(kept_nM.sum()) != len(knots):
        raise ValueError(f"{len(knots)} times are kept, and there are rows for {int(kept_nM.sum())}")
    padded, step = np.concatenate([knots, [np.inf]]).astype(np.float32), np.arange(KNOTS)
    tables = []
    for m in range(kept_nM.shape[1]):
        count_n, start_n = kept_nM[:, m], end[:, m] - kept_nM[:, m]
        place = np.where(step < count_n[:, None], start_n[:, None] + step, len(knots))
        tables.append(padded[place])
    return tables


def rows_until(knots_SQ: np.ndarray, rows_S: np.ndarray, time_S: np.ndarray) -> np.ndarray:
    """float64 [S]: rows of a modality that stand at or before a time; about, where there are more than `KNOTS`."""
    passed_S = (knots_SQ <= time_S[:, None]).sum(axis=1)
    # Before the last knot that was passed, and at the next one, so many rows less one.
    low_S = _rank(np.maximum(passed_S - 1, 0), rows_S)
    high_S = _rank(np.minimum(passed_S, np.minimum(rows_S, KNOTS) - 1), rows_S)
    samples = np.arange(len(time_S))
    before_S = knots_SQ[samples, np.maximum(passed_S - 1, 0)].astype(np.float64)
    after_S = knots_SQ[samples, np.minimum(passed_S, KNOTS - 1)].astype(np.float64)
    between_S = (passed_S > 0) & (passed_S < KNOTS) & np.isfinite(after_S) & (rows_S > KNOTS)
    before_S, after_S = np.where(between_S, before_S, 0.0), np.where(between_S, after_S, 1.0)
    share_S = np.where(between_S, (time_S - before_S) / (after_S - before_S), 0.0)
    return np.where(passed_S > 0, low_S + 1 + share_S * np.maximum(high_S - low_S, 0), 0.0)


def _rank(knot_S: np.ndarray, rows_S: np.ndarray) -> np.ndarray:
    """As `knot_ranks`, of one knot each."""
    last = KNOTS - 1
    return np.where(rows_S <= KNOTS, knot_S, (2 * knot_S * (rows_S - 1) + last) // (2 * last))
