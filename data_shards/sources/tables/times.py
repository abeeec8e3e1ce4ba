"""Times of rows: since their record's time 0, within the window. They stay float64 until they are relative to it.

Shape legend: L rows of the unit, N of them that hold something.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from data_shards.records.precision import lost_times, resolution
from data_shards.sources.tables.modalities import SECONDS, Modality, Times
from data_shards.sources.tables.rows import Around, Rows

# Steps that dates are written in, in microseconds: days, hours, minutes, seconds
_STEPS = (86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000)


def times(rows: Rows, spec: Times, around: Around, what: str = "an observation") -> tuple[np.ndarray, float | None]:
    """float64 [L] in the section's time unit, and the step that they are written in (None: finer than counts).

    Raises:
        ValueError: a row without a time, unless ``what`` is empty (then NaN), or one whose distance from time 0 is
            unknown.
    """
    column = str(spec.time)
    empty = rows.table[column].null_count
    if empty and what:
        raise ValueError(f"{rows.file}: {empty} rows have no {column!r}; {what} without a time has no place")
    if spec.origin is not None:
        return _since_origin(rows, spec, around.home)
    time_L = rows.numbers(column)
    step = resolution(time_L[~np.isnan(time_L)])
    if not rows.cells.durations.get(column):
        return time_L, step
    if spec.time_unit not in SECONDS:
        raise ValueError(
            f"{rows.file}: column {column!r} holds durations; their time_unit {spec.time_unit!r} must be one of "
            f"{', '.join(SECONDS)}"
        )
    seconds = SECONDS[spec.time_unit]
    return time_L / seconds, None if step is None else step / seconds


def _since_origin(rows: Rows, spec: Times, home: Rows) -> tuple[np.ndarray, float | None]:
    """Dates less the date that is the record's time 0; NaN where there is no date."""
    zero = home.table[spec.origin]
    if zero.null_count:
        missing = home.name(int(np.flatnonzero(zero.is_null().to_numpy())[0]))
        raise ValueError(
            f"{home.file}: {zero.null_count} records have no {spec.origin!r}, which is time 0; the first is {missing}"
        )
    zones = rows.cells.zoned.get(str(spec.time)), home.cells.zoned.get(str(spec.origin))
    if None not in zones and zones[0] != zones[1]:
        with_zone, without = (spec.time, spec.origin) if zones[0] else (spec.origin, spec.time)
        raise ValueError(
            f"{rows.file}: the dates of column {with_zone!r} have a zone (Z or +01:00) and those of {without!r} have "
            "none, so nobody knows how far they are apart; give both a zone, or none"
        )
    dates = rows.table[str(spec.time)]
    there_L = dates.is_valid().to_numpy()
    since_L = dates.cast(pa.int64()).fill_null(0).to_numpy() - zero.cast(pa.int64()).to_numpy()[rows.record_N]
    step = next((step for step in _STEPS if not (since_L[there_L] % step).any()), None)
    unit = 1e6 * SECONDS[spec.time_unit]
    return np.where(there_L, since_L / unit, np.nan), None if step is None else step / unit


def place(
    rows: Rows, spec: Modality, around: Around, row_N: np.ndarray, notes: Counter[str], what: str, one: str
) -> tuple[np.ndarray, np.ndarray]:
    """Places in ``row_N`` of what lies in the window (all, where records are seen up to moments); float32 times of it.

    Args:
        row_N: the rows that hold something. what: its name in sentences and counts, e.g. ``observations``. one: of it.
    """
    time_L, step = times(rows, spec, around, one)
    inside = np.flatnonzero(_inside(rows, spec, around, time_L[row_N], notes, what))
    row_N = row_N[inside]
    return inside, narrow_times(rows, spec, time_L[row_N], rows.record_N[row_N], step, notes)


def _inside(
    rows: Rows, spec: Modality, around: Around, time_N: np.ndarray, notes: Counter[str], what: str
) -> np.ndarray:
    """bool [N]: within the observation window."""
    if around.moments:
        return np.ones(len(time_N), bool)
    horizon = np.inf if spec.horizon is None else spec.horizon
    # As stored: a window that is the longest time seen would else leave that time out where it was rounded down.
    inside: np.ndarray = (time_N >= 0) & (time_N.astype(np.float32) <= np.float32(horizon))
    outside = int((~inside).sum())
    if outside and spec.outside == "error":
        raise ValueError(
            f"{rows.file}: {outside:,} {what} of a unit are outside 0 to {horizon:g} {spec.time_unit}, the "
            f"first at {time_N[~inside][0]:.10g}; set a larger horizon, or outside: skip"
        )
    notes[f"{what}_outside_window"] += outside
    return inside


def narrow_times(
    rows: Rows, spec: Times, time_N: np.ndarray, record_N: np.ndarray, step: float | None, notes: Counter[str]
) -> np.ndarray:
    """float32 [N]; ValueError if that loses more than the times' own resolution."""
    narrow_N = time_N.astype(np.float32)
    problem = lost_times(time_N, step, _usual_gap(time_N, record_N))
    if problem and spec.rounding == "error":
        away = (
            "give origin, a column of the records' file with each record's time 0 (and date_unit if these are Unix "
            "times), or subtract the record's first time"
        )
        raise ValueError(
            f"{rows.file}, column {spec.time!r} ({spec.time_unit}): {problem}; "
            f"{away if spec.origin is None else 'give an origin that is nearer'}, or accept it with rounding: allow"
        )
    if problem:
        notes["times_rounded"] += int((narrow_N != time_N).sum())
    return narrow_N


def _usual_gap(time_N: np.ndarray, record_N: np.ndarray) -> float:
    """Median distance of neighbouring different times of a record; infinite if no record has two."""
    order = np.lexsort((time_N, record_N))
    gap = np.diff(time_N[order])[np.diff(record_N[order]) == 0]
    gap = gap[gap > 0]
    return float(np.median(gap)) if len(gap) else np.inf
