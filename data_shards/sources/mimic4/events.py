"""A patient's rows in the windows of the patient's stays, and vital signs and laboratory values as series.

Rows are matched by patient and time, also those of chartevents, which name a stay: what is charted to the next stay but
before it begins was measured in this one. A window is [intime, intime + its length], at most to outtime, ends included.

Shape legend: O observations, N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.records.record import Series
from data_shards.sources.mimic4.cohort import HOUR, Stay
from data_shards.sources.mimic4.items import Variables, another_units, in_own_units, item_channels, plausible


class PatientRows:
    """Rows of one patient in one table, and which of them a stay has taken.

    Attributes:
        name: of the table. table: the rows. time_N: datetime64[us] of each.
    """

    def __init__(self, name: str, table: pa.Table, time_N: np.ndarray) -> None:
        self.name, self.table, self.time_N = name, table, time_N
        self._taken_N = np.zeros(len(table), np.int64)

    def take(self, start: np.datetime64, until: np.datetime64) -> pa.Table | None:
        """Rows with a time in [start, until]; None if there are none. NaT compares as False."""
        return self._take((self.time_N >= start) & (self.time_N <= until))

    def take_of(self, column: str, names: Collection[str]) -> pa.Table | None:
        """Rows with one of these in a column of text; None if there are none."""
        wanted = pa.array(list(names), pa.string())
        return self._take(pc.is_in(self.table[column], value_set=wanted).to_numpy(zero_copy_only=False))

    def _take(self, inside_N: np.ndarray) -> pa.Table | None:
        self._taken_N += inside_N
        return self.table.filter(pa.array(inside_N)) if inside_N.any() else None

    def count(self, notes: Counter[str]) -> None:
        """Once all stays have taken theirs: rows that none has, and rows that several have."""
        notes[f"{self.name}_outside"] += int((self._taken_N == 0).sum())
        notes[f"{self.name}_in_two_stays"] += int(np.maximum(self._taken_N - 1, 0).sum())


def when_known(name: str, table: pa.Table, notes: Counter[str]) -> pa.Table:
    """Rows whose charttime is their storetime, when others could read them, where it is written; others are counted."""
    stored = table["storetime"] if "storetime" in table.column_names else pa.nulls(len(table), pa.timestamp("us"))
    notes[f"{name}_without_storetime"] += stored.null_count
    return table.set_column(table.column_names.index("charttime"), "charttime", pc.coalesce(stored, table["charttime"]))


def of_record(table: pa.Table, record: int) -> pa.Table:
    """A patient's rows; the table is ordered by patient."""
    column = table["record"].to_numpy()
    start, stop = np.searchsorted(column, [record, record + 1])
    return table.slice(int(start), int(stop - start))


def series(rows: pa.Table, name: str, variables: Variables, stay: Stay, notes: Counter[str]) -> Series | None:
    """Plausible values of a stay in hours since its start, in the units of ``items``; None if there are none."""
    channels = item_channels(variables)
    item_O = rows["itemid"].to_numpy().astype(np.int64)
    channel_O = np.array([channels[item] for item in item_O.tolist()])
    unit_O = _words(rows, "valueuom")
    value_O, converted = in_own_units(item_O, rows["valuenum"].to_numpy(), unit_O)
    fine_O = plausible(variables, channel_O, value_O)
    notes[f"{name}_converted"] += converted
    notes[f"implausible_{name}"] += int((~fine_O).sum())
    notes[f"{name}_observations"] += int(fine_O.sum())
    notes["observations"] += int(fine_O.sum())
    if unit_O is not None:
        for what, count in another_units(variables, channel_O, unit_O).items():
            notes[f"{name}_of_another_unit.{what}"] += count
    stay_O = _words(rows, "stay_id")
    if stay_O is not None:
        notes[f"{name}_charted_to_another_stay"] += int((stay_O != stay.stay).sum())
    if not fine_O.any():
        return None
    hours_O = (rows["charttime"].to_numpy()[fine_O] - stay.start) / HOUR
    channel_O, value_O = channel_O[fine_O], value_O[fine_O]
    places = np.unique(np.stack([hours_O, channel_O.astype(np.float64)]), axis=1).shape[1]
    notes[f"{name}_at_one_time_and_channel"] += len(hours_O) - places
    return Series(hours_O.astype(np.float32), channel_O.astype(np.int16), value_O.astype(np.float32))


def _words(rows: pa.Table, column: str) -> np.ndarray | None:
    """A column of text, "" where empty; None if the table has no such column."""
    if column not in rows.column_names:
        return None
    return np.array([word or "" for word in rows[column].to_pylist()])
