"""Rows of a table -> irregular series.

Shape legend: L rows of the unit, O observations, F columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.records.record import Series
from data_shards.sources.tables.modalities import SeriesTable
from data_shards.sources.tables.rows import Around, Rows, cell_error
from data_shards.sources.tables.times import place


def series(rows: Rows, spec: SeriesTable, around: Around, notes: Counter[str]) -> dict[int, Series]:
    """Events of a series."""
    if spec.columns:
        value_LF = np.stack([rows.numbers(column) for column in spec.columns], axis=1)
        row_O, channel_O = np.nonzero(~np.isnan(value_LF))
        value_O = value_LF[row_O, channel_O]
    else:
        channel_L = _channels(rows, spec, around.channels, notes)
        value_L = _own_values(rows, spec, channel_L)
        row_O = np.flatnonzero((channel_L >= 0) & ~np.isnan(value_L))
        notes["empty_values"] += int(((channel_L >= 0) & np.isnan(value_L)).sum())
        channel_O, value_O = channel_L[row_O], value_L[row_O]
    inside, time_O = place(rows, spec, around, row_O, notes, "observations", "an observation")
    row_O, channel_O, value_O = row_O[inside], channel_O[inside], value_O[inside]
    notes["observations"] += len(row_O)
    value_O = _narrow_values(rows, spec, channel_O, value_O, notes)
    found = {}
    for record, own in rows.runs(row_O):
        found[record] = Series(time_O[own], channel_O[own].astype(np.int16), value_O[own].astype(np.float32))
    return found


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
