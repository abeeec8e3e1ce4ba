"""Rows of a table -> labels: one a record, some a record at moments, or a time and whether the event was seen.

Shape legend: L rows of the unit, T columns of the target, K moments of a record, W columns of the target as stored.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from data_shards.sources.readers.csv_dialect import EMPTY_WORDS
from data_shards.sources.tables.mapping import Task
from data_shards.sources.tables.rows import Around, Rows
from data_shards.sources.tables.times import narrow_times, times

TRUE = ("1", "true", "True", "TRUE", "yes", "Yes", "YES")
FALSE = ("0", "false", "False", "FALSE", "no", "No", "NO")
Moments = tuple[np.ndarray, np.ndarray]  # (float32 [K] ascending, float32 [K, W])


def target(rows: Rows, task: Task, around: Around, notes: Counter[str]) -> dict[int, Any]:
    """Label of each record that has a row, None or NaN where it is unlabelled."""
    label_LW = _labels(rows, task, around, notes)
    if task.columns or task.kind == "survival":
        return {record: label_LW[row] for record, row in rows.single()}
    found: dict[int, Any] = {}
    for record, row in rows.single():
        label = float(label_LW[row, 0])
        found[record] = None if task.kind != "regression" and np.isnan(label) else label
    return found


def moments(rows: Rows, task: Task, around: Around, notes: Counter[str]) -> dict[int, Moments]:
    """Moments of each record and the labels there, NaN where one is unlabelled; ValueError for two rows of one moment.

    Every row is a moment, also one with an empty label.
    """
    label_LW = _labels(rows, task, around, notes)
    time_L, step = times(rows, task, around, "a label")
    narrow_L = narrow_times(rows, task, time_L, rows.record_N, step, notes)
    found = {}
    for record, own in rows.runs():
        order = np.argsort(narrow_L[own], kind="stable")
        time_K = narrow_L[own][order]
        twice = np.flatnonzero(np.diff(time_K) == 0)
        if len(twice):
            raise ValueError(
                f"{rows.file}: two rows of record {rows.name(record)} have {task.time!r} {time_K[twice[0]]:.10g} "
                f"({task.time_unit} since its time 0), and a moment has one label"
            )
        found[record] = time_K, label_LW[own][order]
    notes["moments"] += len(narrow_L)
    return found


def join(own: dict[str, Moments], widths: dict[str, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """All moments of a record, and each task's labels there, (K,) or (K, W); NaN where a task has none.

    Args:
        own: task -> its moments, of those that have any. widths: of every task with moments.
    """
    time_K = np.unique(np.concatenate([times_K for times_K, _ in own.values()]))
    targets = {}
    for task, width in widths.items():
        label_KW = np.full((len(time_K), width), np.nan, np.float32)
        if task in own:
            label_KW[np.searchsorted(time_K, own[task][0])] = own[task][1]
        targets[task] = label_KW[:, 0] if width == 1 else label_KW
    return time_K, targets


def _labels(rows: Rows, task: Task, around: Around, notes: Counter[str]) -> np.ndarray:
    """float32 [L, W]: the label in each row, NaN where it is unlabelled."""
    if task.kind == "survival":
        return _survival(rows, task, around, notes)
    if task.kind in ("multilabel", "regression"):
        columns = [task.column] if task.column is not None else list(task.columns)
        return np.stack([_numbers(rows, str(column), task, notes) for column in columns], axis=1)
    return _classes_of(rows, str(task.column), task, notes)[:, None]


def _numbers(rows: Rows, column: str, task: Task, notes: Counter[str]) -> np.ndarray:
    """float32 [L], NaN where unlabelled."""
    return rows.narrow(rows.numbers(column), f"target column {column!r}", task.rounding, notes).astype(np.float32)


def _survival(rows: Rows, task: Task, around: Around, notes: Counter[str]) -> np.ndarray:
    """float32 [L, 2]: time, and 1 where the event was seen; both NaN where either is missing, which is counted."""
    time_L, step = times(rows, task, around, "")
    seen_L = _classes_of(rows, str(task.seen), task, notes)
    known_L = ~np.isnan(time_L) & ~np.isnan(seen_L)
    notes["survival_half_known"] += int((np.isnan(time_L) != np.isnan(seen_L)).sum())
    early = np.flatnonzero(known_L & (time_L < 0))
    if len(early):
        raise ValueError(
            f"{rows.file}: column {task.time!r} of record {rows.name(int(rows.record_N[early[0]]))} is "
            f"{time_L[early[0]]:.10g} {task.time_unit}, and no time of survival is below 0"
        )
    both_LW = np.full((len(time_L), 2), np.nan, np.float32)
    both_LW[known_L, 0] = narrow_times(rows, task, time_L[known_L], rows.record_N[known_L], step, notes)
    both_LW[known_L, 1] = seen_L[known_L]
    return both_LW


def _classes_of(rows: Rows, column: str, task: Task, notes: Counter[str]) -> np.ndarray:
    """float32 [L]: number of the class that each cell means, NaN where there is none."""
    cells, classes = rows.texts(column), _classes(task)
    empty = EMPTY_WORDS if rows.cells.dialect.null is None else ()  # those of the mapping are empty already
    found_L = np.full(len(cells), np.nan, np.float32)
    for row, given in enumerate(cells):
        cell = _spelled(given, classes)
        if cell in classes:
            found_L[row] = classes[cell]
        elif cell is None or cell in empty:
            notes[f"labels_empty.{column}"] += cell is not None
        elif task.other_labels == "skip":
            notes[f"labels_of_no_class.{column}"] += 1
        else:
            raise ValueError(
                f"{rows.file}: label {cell!r} of column {column!r}, record {rows.name(int(rows.record_N[row]))}, is "
                f"none of {', '.join(classes)}; list it in classes, or leave the cell empty"
            )
    return found_L


def _classes(task: Task) -> dict[str, int]:
    """Cell -> class number. Classes that are given are the cells, unless they name the two of 0/1, no/yes, ..."""
    if isinstance(task.classes, dict):
        return {cell: number for number, cells in enumerate(task.classes.values()) for cell in cells}
    named = {name: number for number, name in enumerate(task.classes)}
    if task.kind in ("binary", "survival") and not any(name in TRUE + FALSE for name in task.classes):
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
