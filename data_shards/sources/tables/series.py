"""Rows of a table -> irregular series. Times stay float64 until they are relative to the record's time 0.

Shape legend: L rows of the unit, O observations, F columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.records.precision import lost_times, resolution
from data_shards.records.record import Series
from data_shards.sources.tables.mapping import SECONDS, SeriesTable
from data_shards.sources.tables.rows import Rows, cell_error

# Steps that dates are written in, in microseconds: days, hours, minutes, seconds
_STEPS = (86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000)


def series(rows: Rows, spec: SeriesTable, home: Rows, known: Sequence[str], notes: Counter[str]) -> dict[int, Series]:
    """Events of a series; ``known`` are the channels that any modality takes from this file."""
    time_L, step = _times(rows, spec, home)
    if spec.columns:
        value_LF = np.stack([rows.numbers(column) for column in spec.columns], axis=1)
        row_O, channel_O = np.nonzero(~np.isnan(value_LF))
        value_O = value_LF[row_O, channel_O]
    else:
        channel_L = _channels(rows, spec, known, notes)
        value_L = _own_values(rows, spec, channel_L)
        row_O = np.flatnonzero((channel_L >= 0) & ~np.isnan(value_L))
        notes["empty_values"] += int(((channel_L >= 0) & np.isnan(value_L)).sum())
        channel_O, value_O = channel_L[row_O], value_L[row_O]
    inside = _inside(rows, spec, time_L[row_O], notes)
    row_O, channel_O, value_O = row_O[inside], channel_O[inside], value_O[inside]
    notes["observations"] += len(row_O)
    time_O = _narrow_times(rows, spec, time_L[row_O], rows.record_N[row_O], step, notes)
    value_O = _narrow_values(rows, spec, channel_O, value_O, notes)
    found = {}
    for record, own in rows.runs(row_O):
        found[record] = Series(time_O[own], channel_O[own].astype(np.int16), value_O[own].astype(np.float32))
    return found


def _times(rows: Rows, spec: SeriesTable, home: Rows) -> tuple[np.ndarray, float | None]:
    """float64 [L] in the series' time unit, and the step that they are written in (None: finer than counts)."""
    empty = rows.table[spec.time].null_count
    if empty:
        raise ValueError(f"{rows.file}: {empty} rows have no {spec.time!r}; an observation without a time has no place")
    if spec.origin is None:
        time_L = rows.numbers(spec.time)
        step = resolution(time_L)
        if not rows.cells.durations.get(spec.time):
            return time_L, step
        if spec.time_unit not in SECONDS:
            raise ValueError(
                f"{rows.file}: column {spec.time!r} holds durations; their time_unit {spec.time_unit!r} must be one of "
                f"{', '.join(SECONDS)}"
            )
        seconds = SECONDS[spec.time_unit]
        return time_L / seconds, None if step is None else step / seconds
    return _since_origin(rows, spec, home)


def _since_origin(rows: Rows, spec: SeriesTable, home: Rows) -> tuple[np.ndarray, float | None]:
    """Dates less the date that is the record's time 0."""
    zero = home.table[spec.origin]
    if zero.null_count:
        missing = home.name(int(np.flatnonzero(zero.is_null().to_numpy())[0]))
        raise ValueError(
            f"{home.file}: {zero.null_count} records have no {spec.origin!r}, which is time 0 of a series; the first "
            f"is {missing}"
        )
    zones = rows.cells.zoned.get(spec.time), home.cells.zoned.get(str(spec.origin))
    if None not in zones and zones[0] != zones[1]:
        with_zone, without = (spec.time, spec.origin) if zones[0] else (spec.origin, spec.time)
        raise ValueError(
            f"{rows.file}: the dates of column {with_zone!r} have a zone (Z or +01:00) and those of {without!r} have "
            "none, so nobody knows how far they are apart; give both a zone, or none"
        )
    since_L = rows.table[spec.time].cast(pa.int64()).to_numpy() - zero.cast(pa.int64()).to_numpy()[rows.record_N]
    step = next((step for step in _STEPS if not (since_L % step).any()), None)
    unit = 1e6 * SECONDS[spec.time_unit]
    return np.asarray(since_L / unit), None if step is None else step / unit


def _channels(rows: Rows, spec: SeriesTable, known: Sequence[str], notes: Counter[str]) -> np.ndarray:
    """int64 [L]: channel number, -1 for those of others."""
    column = rows.table[spec.channel]
    own = pc.index_in(column, value_set=pa.array(spec.channels)).fill_null(-1).to_numpy()
    strange = pc.invert(pc.is_in(column, value_set=pa.array(known))).to_numpy()
    if strange.any():
        name = column[int(np.flatnonzero(strange)[0])].as_py()
        if spec.other_channels == "error":
            raise ValueError(
                f"{rows.file}: {int(strange.sum()):,} rows of a unit have a {spec.channel!r} that no modality lists, "
                f"e.g. {name!r}; list it in channels, or set other_channels: skip"
            )
        notes["rows_of_other_channels"] += int(strange.sum())
    return np.asarray(own, np.int64)


def _own_values(rows: Rows, spec: SeriesTable, channel_L: np.ndarray) -> np.ndarray:
    """float64 [L]; a word is refused in a row of one of the own channels, and nothing elsewhere."""
    cells = rows.table[str(spec.value)].combine_chunks()
    words = pc.struct_field(cells, "word")
    wrong = np.flatnonzero(words.is_valid().to_numpy(zero_copy_only=False) & (channel_L >= 0))
    if len(wrong):
        row = int(wrong[0])
        raise cell_error(rows, int(rows.record_N[row]), str(spec.value), words[row].as_py())
    return np.asarray(pc.struct_field(cells, "number").to_numpy(zero_copy_only=False), np.float64)


def _inside(rows: Rows, spec: SeriesTable, time_O: np.ndarray, notes: Counter[str]) -> np.ndarray:
    """bool [O]: within the observation window."""
    horizon = np.inf if spec.horizon is None else spec.horizon
    inside: np.ndarray = (time_O >= 0) & (time_O <= horizon)
    outside = int((~inside).sum())
    if outside and spec.outside == "error":
        raise ValueError(
            f"{rows.file}: {outside:,} observations of a unit are outside 0 to {horizon:g} {spec.time_unit}, the "
            f"first at {time_O[~inside][0]:.10g}; set a larger horizon, or outside: skip"
        )
    notes["observations_outside_window"] += outside
    return inside


def _narrow_times(
    rows: Rows, spec: SeriesTable, time_O: np.ndarray, record_O: np.ndarray, step: float | None, notes: Counter[str]
) -> np.ndarray:
    """float32 [O]; ValueError if that loses more than the times' own resolution."""
    narrow_O = time_O.astype(np.float32)
    problem = lost_times(time_O, step, _usual_gap(time_O, record_O))
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
        notes["times_rounded"] += int((narrow_O != time_O).sum())
    return narrow_O


def _usual_gap(time_O: np.ndarray, record_O: np.ndarray) -> float:
    """Median distance of neighbouring different times of a record; infinite if no record has two."""
    order = np.lexsort((time_O, record_O))
    gap = np.diff(time_O[order])[np.diff(record_O[order]) == 0]
    gap = gap[gap > 0]
    return float(np.median(gap)) if len(gap) else np.inf


def _narrow_values(
    rows: Rows, spec: SeriesTable, channel_O: np.ndarray, value_O: np.ndarray, notes: Counter[str]
) -> np.ndarray:
    """Values as float32 holds them, channel by channel."""
    order = np.argsort(channel_O, kind="stable")
    starts = np.flatnonzero(np.diff(channel_O[order], prepend=-1))
    narrow_O = value_O.copy()
    for own in np.split(order, starts[1:]) if len(order) else []:
        where = f"channel {spec.names[int(channel_O[own[0]])]!r}"
        narrow_O[own] = rows.narrow(value_O[own], where, spec.rounding, notes)
    return narrow_O
