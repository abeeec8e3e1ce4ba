"""Rows of a table -> vectors, texts, pictures and waveforms of records: one each or, with a time, any number.

Every function takes the rows of one work unit, ordered by record, and returns values by the record's number in the
unit; what costs time or memory is read when its record is wanted. What is left out is counted; what is wrong is a
sentence with the file and the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data_shards.records.record import Objects
from data_shards.sources.readers.pictures import read_picture
from data_shards.sources.tables.media.cells import FileCells
from data_shards.sources.tables.media.films import films
from data_shards.sources.tables.media.recordings import waveform_reader
from data_shards.sources.tables.modalities import ImageTable, ObjectTable, TextTable, VectorTable, WaveformTable
from data_shards.sources.tables.rows import Around, Later, Rows
from data_shards.sources.tables.times import place

Object = np.ndarray | str
Make = Callable[[int, int], Object]  # (record, row) -> the object in that row


def vectors(rows: Rows, spec: VectorTable, around: Around, notes: Counter[str]) -> dict[int, Later]:
    """Vectors of each record that has a row."""
    if spec.column is not None:
        column = rows.table[spec.column]
        there_L = column.is_valid().to_numpy()
        return _objects(rows, spec, around, there_L, partial(_list_cell, rows, spec, column, notes), notes)
    value_LF = np.stack(
        [rows.narrow(rows.numbers(column), f"column {column!r}", spec.rounding, notes) for column in spec.columns],
        axis=1,
    )
    known_LF = ~np.isnan(value_LF)
    there_L = {"error": known_LF.any(axis=1), "absent": known_LF.all(axis=1)}.get(
        spec.empty, np.ones(len(value_LF), bool)
    )

    def make(record: int, row: int) -> np.ndarray:
        known_F = known_LF[row]
        if not known_F.all() and spec.empty == "error":
            column = spec.columns[int(np.flatnonzero(~known_F)[0])]
            raise ValueError(
                f"{rows.file}: column {column!r} is empty for record {rows.name(record)}; say what that means (empty: "
                "zero, known or absent)"
            )
        features = np.where(known_F, value_LF[row], 0.0)
        parts = [features, known_F.astype(np.float64)] if spec.empty == "known" else [features]
        return np.concatenate(parts).astype(np.float32)

    return _objects(rows, spec, around, there_L, make, notes)


def _list_cell(rows: Rows, spec: VectorTable, column: Any, notes: Counter[str], record: int, row: int) -> np.ndarray:
    cell = column[row].as_py()
    if len(cell) != spec.size:
        raise ValueError(
            f"{rows.file}: column {spec.column!r} holds a list of {len(cell)} numbers for record {rows.name(record)}, "
            f"not of {spec.size}"
        )
    where = f"column {spec.column!r} of record {rows.name(record)}"
    return rows.narrow(np.array(cell, np.float64), where, spec.rounding, notes).astype(np.float32)


def texts(rows: Rows, spec: TextTable, around: Around, notes: Counter[str]) -> dict[int, Later]:
    """Texts of each record; without a time they are joined by line ends."""
    cells = rows.texts(spec.column)
    if spec.time is not None:
        there_L = np.array([cell is not None for cell in cells], bool)
        return _objects(rows, spec, around, there_L, lambda _, row: _cut(str(cells[row]), spec, notes), notes)
    found = dict[int, Later]()
    for record, own in rows.runs():
        pieces = [cell for cell in cells[own] if cell is not None]
        if pieces:
            found[record] = partial(_cut, "\n".join(pieces), spec, notes)
    return found


def _cut(text: str, spec: TextTable, notes: Counter[str]) -> str:
    if spec.too_long == "cut" and len(text.encode()) > spec.max_length:
        text = text.encode()[: spec.max_length].decode(errors="ignore")
        notes["texts_cut"] += 1
    return text


def pictures(rows: Rows, spec: ImageTable, around: Around, notes: Counter[str]) -> dict[int, Later]:
    """Pictures of each record, or those of its films; named by a path or held as bytes."""
    if spec.frames is not None:
        return films(rows, spec, around, notes)
    files, shape = FileCells(rows, spec, around, "picture"), (spec.channels, spec.height, spec.width)

    def make(record: int, row: int) -> np.ndarray:
        where = files.where(record, row)
        return read_picture(files.source(row), where, shape, spec.resize, notes, spec.background)

    return _objects(rows, spec, around, files.there_L, make, notes)


def waveforms(rows: Rows, spec: WaveformTable, around: Around, notes: Counter[str]) -> dict[int, Later]:
    """Waveforms of each record that names or holds a file of one."""
    there_L, make = waveform_reader(rows, spec, around, notes)
    return _objects(rows, spec, around, there_L, make, notes)


def _objects(
    rows: Rows, spec: ObjectTable, around: Around, there_L: np.ndarray, make: Make, notes: Counter[str]
) -> dict[int, Later]:
    """The only object of each record or, with a time, all of its objects; ``there_L``: rows that hold one."""
    if spec.time is None:
        return {record: partial(make, record, row) for record, row in rows.single() if there_L[row]}
    row_N = np.flatnonzero(there_L)
    notes["rows_without_object"] += len(there_L) - len(row_N)
    inside, time_N = place(rows, spec, around, row_N, notes, "objects", "an object")
    row_N = row_N[inside]
    notes["objects"] += len(row_N)
    return {record: Apart(make, record, row_N[own].tolist(), time_N[own]) for record, own in rows.runs(row_N)}


@dataclass(frozen=True)
class Apart:
    """The objects of one record, each in a row of its own, to be read when the record is wanted."""

    make: Make
    record: int
    rows: list[int]
    times_N: np.ndarray

    def __call__(self) -> Objects:
        """All of them, in the order of the table."""
        return Objects(self.times_N, [self.make(self.record, row) for row in self.rows])  # type: ignore[arg-type]
