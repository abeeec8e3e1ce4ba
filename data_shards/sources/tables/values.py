"""Rows of a table -> values of records: vectors, texts, pictures, waveforms by path, labels (series: see ``series``).

Every function takes the rows of one work unit, ordered by record, and returns values by the record's number in the
unit. What is left out is counted; what is wrong is a sentence with the file and the record.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.paths import absolute_path
from data_shards.records.record import Series
from data_shards.sources.readers.csv_dialect import EMPTY_WORDS
from data_shards.sources.readers.pictures import read_picture
from data_shards.sources.readers.signals import fit_signal, read_signal
from data_shards.sources.tables.mapping import ImageTable, Task, TextTable, VectorTable, WaveformTable
from data_shards.sources.tables.rows import Rows

Value = Series | np.ndarray | str
TRUE = ("1", "true", "True", "TRUE", "yes", "Yes", "YES")
FALSE = ("0", "false", "False", "FALSE", "no", "No", "NO")


def vectors(rows: Rows, spec: VectorTable, folder: Path, notes: Counter[str]) -> dict[int, Value]:
    """One vector per record that has a row."""
    if spec.column is not None:
        cells = rows.table[spec.column].to_pylist()
        return {
            record: _list_cell(rows, record, spec, cells[row], notes)
            for record, row in rows.single()
            if cells[row] is not None
        }
    value_LF = np.stack(
        [rows.narrow(rows.numbers(column), f"column {column!r}", spec.rounding, notes) for column in spec.columns],
        axis=1,
    )
    known_LF, found = ~np.isnan(value_LF), dict[int, Value]()
    for record, row in rows.single():
        known_F = known_LF[row]
        if not known_F.all() and (spec.empty == "absent" or (spec.empty == "error" and not known_F.any())):
            continue
        if not known_F.all() and spec.empty == "error":
            column = spec.columns[int(np.flatnonzero(~known_F)[0])]
            raise ValueError(
                f"{rows.file}: column {column!r} is empty for record {rows.name(record)}; say what that means (empty: "
                "zero, known or absent)"
            )
        features = np.where(known_F, value_LF[row], 0.0)
        parts = [features, known_F.astype(np.float64)] if spec.empty == "known" else [features]
        found[record] = np.concatenate(parts).astype(np.float32)
    return found


def _list_cell(rows: Rows, record: int, spec: VectorTable, cell: list[float], notes: Counter[str]) -> np.ndarray:
    if len(cell) != spec.size:
        raise ValueError(
            f"{rows.file}: column {spec.column!r} holds a list of {len(cell)} numbers for record {rows.name(record)}, "
            f"not of {spec.size}"
        )
    where = f"column {spec.column!r} of record {rows.name(record)}"
    return rows.narrow(np.array(cell, np.float64), where, spec.rounding, notes).astype(np.float32)


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
    """One picture per record that names one by a path, or holds its bytes, alone or as a struct of bytes and path."""
    cells, shape = rows.table[spec.column].to_pylist(), (spec.channels, spec.height, spec.width)
    found = dict[int, Value]()
    for record, row in rows.single():
        source = _picture_source(cells[row], absolute_path(spec.folder, folder))
        if source is not None:
            where = f"picture {source}" if isinstance(source, Path) else f"picture in {spec.column!r}"
            where = f"{rows.file}, record {rows.name(record)}: {where}"
            found[record] = read_picture(source, where, shape, spec.resize, notes, spec.background)
    return found


def _picture_source(cell: str | bytes | dict[str, Any] | None, folder: Path) -> Path | bytes | None:
    """What a cell names or holds; of a struct its bytes, or else its path. None if it is empty."""
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    return folder / cell if isinstance(cell, str) else cell


def waveforms(rows: Rows, spec: WaveformTable, folder: Path, notes: Counter[str]) -> dict[int, Value]:
    """One waveform per record that names one: a .npy file, or a WFDB record."""
    cells, found, orders = rows.texts(spec.column), dict[int, Value](), dict[tuple[str, ...], str]()
    for record, row in rows.single():
        cell = cells[row]
        if cell is None:
            continue
        path = absolute_path(spec.folder, folder) / cell
        signal = read_signal(path)
        if isinstance(spec.leads, int) and signal.names:
            # A number says nothing of the order, so all files must agree
            orders.setdefault(signal.names, str(path))
            if len(orders) > 1:
                (first, one), (other, two) = list(orders.items())[:2]
                raise ValueError(
                    f"{rows.file}: the leads of {one} are {', '.join(first)}, and of {two} {', '.join(other)}; say "
                    "which ones and in which order: leads: [I, II, ...]"
                )
            notes[f"waveform_leads.{','.join(signal.names)}"] += 1
        found[record] = fit_signal(signal, f"signal {path}", spec.leads, spec.rate, spec.unit, notes)
    return found


def target(rows: Rows, task: Task, notes: Counter[str]) -> dict[int, Any]:
    """Labels of each record that has a row; empty cells are unlabelled."""
    if task.kind in ("multilabel", "regression"):
        columns = [task.column] if task.column is not None else list(task.columns)
        value_LT = np.stack([_numbers(rows, str(column), task, notes) for column in columns], axis=1)
        return {record: value_LT[row] if task.columns else float(value_LT[row, 0]) for record, row in rows.single()}
    assert task.column is not None, "the mapping was checked"
    cells, classes = rows.texts(task.column), _classes(task)
    empty = EMPTY_WORDS if rows.cells.dialect.null is None else ()  # those of the mapping are empty already
    found: dict[int, Any] = {}
    for record, row in rows.single():
        cell = _spelled(cells[row], classes)
        if cell in classes:
            found[record] = float(classes[cell])
        elif cell is None or cell in empty:
            notes[f"labels_empty.{task.column}"] += cell is not None
            found[record] = None
        else:
            raise ValueError(
                f"{rows.file}: label {cell!r} of column {task.column!r}, record {rows.name(record)}, is none of "
                f"{', '.join(classes)}; list it in classes, or leave the cell empty"
            )
    return found


def _numbers(rows: Rows, column: str, task: Task, notes: Counter[str]) -> np.ndarray:
    """float32 [N], NaN where unlabelled."""
    return rows.narrow(rows.numbers(column), f"target column {column!r}", task.rounding, notes).astype(np.float32)


def _classes(task: Task) -> dict[str, int]:
    """Cell -> class number. Classes that are given are the cells, unless they name the two of 0/1, no/yes, ..."""
    named = {name: number for number, name in enumerate(task.classes)}
    if task.kind == "binary" and not any(name in TRUE + FALSE for name in task.classes):
        named |= dict.fromkeys(FALSE, 0) | dict.fromkeys(TRUE, 1)
    return named


def _spelled(cell: str | None, classes: dict[str, int]) -> str | None:
    """The class a cell means: itself; 1.0, as columns with gaps are written, means 1; booleans in any case."""
    if cell is None or cell in classes:
        return cell
    if cell.endswith(".0") and cell[:-2] in classes:
        return cell[:-2]
    if cell.lower() in ("true", "false"):
        return next((name for name in classes if name.lower() == cell.lower()), cell)
    return cell
