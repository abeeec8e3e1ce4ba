"""Rows of a table -> values of records: series, vectors, texts, pictures by path, waveforms by path, labels.

Every function takes the rows of one work unit, ordered by record, and returns values by the record's number in the
unit. What is left out is counted; what is wrong is a sentence with the file and the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.paths import absolute_path
from data_shards.records.record import Series
from data_shards.sources.readers.pictures import read_picture
from data_shards.sources.tables.mapping import (
    SECONDS,
    ImageTable,
    SeriesTable,
    Task,
    TextTable,
    VectorTable,
    WaveformTable,
)

Value = Series | np.ndarray | str
TRUE, FALSE = ("1", "1.0", "true", "True", "TRUE", "yes"), ("0", "0.0", "false", "False", "FALSE", "no")


@dataclass
class Rows:
    """Rows of one unit, ordered by record.

    Attributes:
        table: the columns. record_N: number of each row's record in the unit. first: number of the unit's first
            record. file: for messages.
    """

    table: pa.Table
    record_N: np.ndarray
    first: int
    file: str

    @staticmethod
    def of(table: pa.Table | None, first: int, file: str) -> Rows:
        """Rows as a spill gives them."""
        assert table is not None, f"{file} has rows in this unit"
        return Rows(table, table["record"].to_numpy() - first, first, file)

    def numbers(self, column: str) -> np.ndarray:
        """float64 [N], NaN where empty."""
        values: np.ndarray = self.table[column].to_numpy()
        return values.astype(np.float64, copy=False)

    def texts(self, column: str) -> list[str | None]:
        """Cells, None where empty."""
        cells: list[str | None] = self.table[column].to_pylist()
        return cells

    def runs(self, keep: np.ndarray | None = None) -> Iterator[tuple[int, slice]]:
        """(record, its rows), of the rows that are kept."""
        record = self.record_N if keep is None else self.record_N[keep]
        starts = np.flatnonzero(np.diff(record, prepend=-1))
        for start, stop in zip(starts.tolist(), np.append(starts, len(record))[1:].tolist(), strict=True):
            yield int(record[start]), slice(start, stop)

    def single(self) -> Iterator[tuple[int, int]]:
        """(record, its only row); ValueError if a record has several."""
        for record, rows in self.runs():
            if rows.stop - rows.start > 1:
                raise ValueError(
                    f"{self.file}: {rows.stop - rows.start} rows belong to record number {self.first + record + 1} of "
                    "the records' file, and this kind of value has one"
                )
            yield record, rows.start


def series(rows: Rows, spec: SeriesTable, home: Rows, known: Sequence[str], notes: Counter[str]) -> dict[int, Series]:
    """Events of a series; ``known`` are the channels that any modality takes from this file."""
    time_L = _times(rows, spec, home)
    if spec.columns:
        value_LF = np.stack([rows.numbers(column) for column in spec.columns], axis=1)
        step_O, channel_O = np.nonzero(~np.isnan(value_LF))
        value_O = value_LF[step_O, channel_O]
    else:
        channel_L = _channels(rows, spec, known, notes)
        value_L = rows.numbers(str(spec.value))
        step_O = np.flatnonzero((channel_L >= 0) & ~np.isnan(value_L))
        notes["empty_values"] += int(((channel_L >= 0) & np.isnan(value_L)).sum())
        channel_O, value_O = channel_L[step_O], value_L[step_O]
    inside = _inside(rows, spec, time_L[step_O], notes)
    step_O, channel_O, value_O = step_O[inside], channel_O[inside], value_O[inside]
    notes["observations"] += len(step_O)
    time_O = time_L[step_O].astype(np.float32)
    found = {}
    for record, own in rows.runs(step_O):
        found[record] = Series(time_O[own], channel_O[own].astype(np.int16), value_O[own].astype(np.float32))
    return found


def _times(rows: Rows, spec: SeriesTable, home: Rows) -> np.ndarray:
    """float64 [L] in the series' time unit."""
    empty = rows.table[spec.time].null_count
    if empty:
        raise ValueError(f"{rows.file}: {empty} rows have no {spec.time!r}; an observation without a time has no place")
    if spec.origin is None:
        return rows.numbers(spec.time)
    zero = home.table[spec.origin]
    if zero.null_count:
        raise ValueError(f"{home.file}: {zero.null_count} records have no {spec.origin!r}, which is time 0 of a series")
    microseconds = rows.table[spec.time].cast(pa.int64()).to_numpy() - zero.cast(pa.int64()).to_numpy()[rows.record_N]
    return np.asarray(microseconds / (1e6 * SECONDS[spec.time_unit]))


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


def _inside(rows: Rows, spec: SeriesTable, time_O: np.ndarray, notes: Counter[str]) -> np.ndarray:
    """bool [O]: within the observation window."""
    if spec.horizon is None:
        return np.ones(len(time_O), bool)
    inside: np.ndarray = (time_O >= 0) & (time_O <= spec.horizon)
    outside = int((~inside).sum())
    if outside and spec.outside == "error":
        raise ValueError(
            f"{rows.file}: {outside:,} observations of a unit are outside 0 to {spec.horizon:g} {spec.time_unit}, the "
            f"first at {time_O[~inside][0]:g}; set a larger horizon, or outside: skip"
        )
    notes["observations_outside_window"] += outside
    return inside


def vectors(rows: Rows, spec: VectorTable, folder: Path, notes: Counter[str]) -> dict[int, Value]:
    """One vector per record that has a row."""
    if spec.column is not None:
        cells = rows.table[spec.column].to_pylist()
        return {record: _list_cell(rows, spec, cells[row]) for record, row in rows.single() if cells[row] is not None}
    value_LF = np.stack([rows.numbers(column) for column in spec.columns], axis=1)
    known_LF, found = ~np.isnan(value_LF), dict[int, Value]()
    for record, row in rows.single():
        known_F = known_LF[row]
        if not known_F.all() and (spec.empty == "absent" or (spec.empty == "error" and not known_F.any())):
            continue
        if not known_F.all() and spec.empty == "error":
            column = spec.columns[int(np.flatnonzero(~known_F)[0])]
            raise ValueError(
                f"{rows.file}: column {column!r} is empty for record number {rows.first + record + 1}; say what that "
                "means (empty: zero, known or absent)"
            )
        features = np.where(known_F, value_LF[row], 0.0)
        parts = [features, known_F.astype(np.float64)] if spec.empty == "known" else [features]
        found[record] = np.concatenate(parts).astype(np.float32)
    return found


def _list_cell(rows: Rows, spec: VectorTable, cell: list[float]) -> np.ndarray:
    if len(cell) != spec.size:
        raise ValueError(f"{rows.file}: column {spec.column!r} holds a list of {len(cell)} numbers, not of {spec.size}")
    return np.array(cell, np.float32)


def texts(rows: Rows, spec: TextTable, folder: Path, notes: Counter[str]) -> dict[int, Value]:
    """Texts of each record, joined by line ends."""
    cells, found = rows.texts(spec.column), dict[int, Value]()
    for record, own in rows.runs():
        pieces = [cell for cell in cells[own] if cell is not None]
        text = "\n".join(pieces)
        if spec.too_long == "cut" and len(text.encode()) > spec.max_length:
            text = text.encode()[: spec.max_length].decode(errors="ignore")
            notes["texts_cut"] += 1
        if pieces:
            found[record] = text
    return found


def pictures(rows: Rows, spec: ImageTable, folder: Path, notes: Counter[str]) -> dict[int, Value]:
    """One picture per record that names one."""
    cells, shape = rows.texts(spec.column), (spec.channels, spec.height, spec.width)
    found = dict[int, Value]()
    for record, row in rows.single():
        cell = cells[row]
        if cell is not None:
            found[record] = read_picture(absolute_path(spec.folder, folder) / cell, shape, spec.resize)
    return found


def waveforms(rows: Rows, spec: WaveformTable, folder: Path, notes: Counter[str]) -> dict[int, Value]:
    """One waveform per record that names one."""
    cells, found = rows.texts(spec.column), dict[int, Value]()
    for record, row in rows.single():
        cell = cells[row]
        if cell is not None:
            array = read_array(absolute_path(spec.folder, folder) / cell)
            found[record] = (array[:, None] if array.ndim == 1 else array).astype(np.float32)
    return found


def read_array(path: Path) -> np.ndarray:
    """A .npy file of plain numbers; ValueError if it cannot be read or would have to be unpickled."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no NumPy file of plain numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds {getattr(array, 'dtype', 'several arrays')}, not one array of numbers")
    return array


def target(rows: Rows, task: Task) -> dict[int, Any]:
    """Labels of each record that has a row; empty cells are unlabelled."""
    if task.columns:
        value_LT = np.stack([rows.numbers(column) for column in task.columns], axis=1)
        return {record: value_LT[row].astype(np.float32) for record, row in rows.single()}
    assert task.column is not None, "the mapping was checked"
    if task.kind == "regression":
        value_L = rows.numbers(task.column)
        return {record: float(value_L[row]) for record, row in rows.single()}
    cells, classes = rows.texts(task.column), _classes(task)
    found: dict[int, Any] = {}
    for record, row in rows.single():
        cell = cells[row]
        if cell is not None and cell not in classes:
            raise ValueError(
                f"{rows.file}: label {cell!r} of column {task.column!r} is none of {', '.join(classes)}; list it in "
                "classes, or leave the cell empty"
            )
        found[record] = None if cell is None else float(classes[cell])
    return found


def _classes(task: Task) -> dict[str, int]:
    """Cell -> class number."""
    named = {name: number for number, name in enumerate(task.classes)}
    if task.kind == "binary":
        named |= dict.fromkeys(FALSE, 0) | dict.fromkeys(TRUE, 1)
    return named
