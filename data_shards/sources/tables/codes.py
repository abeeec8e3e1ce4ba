"""Rows of a table -> codes of records: one row a code, or plain categories as ``column=value``.

Shape legend: L rows of the unit, O of them that hold a code.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from data_shards.errors import ManifestError
from data_shards.paths import absolute_path, absolute_url
from data_shards.records.record import Codes
from data_shards.records.vocabulary import Vocabulary, VocabularyRule
from data_shards.shards.opening import open_manifest
from data_shards.sources.readers.csv_dialect import EMPTY_WORDS
from data_shards.sources.tables.modalities import CodesTable
from data_shards.sources.tables.rows import Around, Rows
from data_shards.sources.tables.times import place


def codes(rows: Rows, spec: CodesTable, around: Around, notes: Counter[str]) -> dict[int, Codes]:
    """Codes of each record that has any, in the order of the table."""
    if spec.columns:
        return _categories(rows, spec, notes)
    column = str(spec.column)
    cell_L = rows.texts(column)
    row_O = np.flatnonzero(np.array([cell is not None for cell in cell_L], bool))
    notes[f"codes_missing.{column}"] += len(cell_L) - len(row_O)
    time_O = None
    if spec.time is not None:
        inside, time_O = place(rows, spec, around, row_O, notes, "codes", "a code")
        row_O = row_O[inside]
    value_O = None
    if spec.value is not None:
        where = f"column {spec.value!r}"
        value_O = rows.narrow(rows.numbers(spec.value)[row_O], where, spec.rounding, notes).astype(np.float32)
    notes["codes"] += len(row_O)
    found = {}
    for record, own in rows.runs(row_O):
        names = [str(cell_L[row]) for row in row_O[own].tolist()]
        notes.update(f"codes_called_like_empty.{column}" for name in names if name in EMPTY_WORDS)
        times, values = (None if all_O is None else all_O[own] for all_O in (time_O, value_O))
        found[record] = Codes(names, times, values)
    return found


def vocabulary(spec: CodesTable, name: str, folder: Path) -> Vocabulary | VocabularyRule:
    """The vocabulary that a mapping gives, or how one is learned.

    Args:
        name: of the modality, which a packed data set must have. folder: of the mapping.

    Raises:
        ValueError: no such file or packed data set, one without such a modality, or a code that is none or there twice.
    """
    given = spec.vocabulary
    if given is None:
        return VocabularyRule(spec.min_count, spec.max_codes)
    try:
        if not isinstance(given, str):
            return Vocabulary(given)
        if given.endswith(".txt"):
            return Vocabulary(tuple(absolute_path(given, folder).read_text("utf-8").splitlines()))
        return open_manifest(absolute_url(given, folder)).vocabulary(name)
    except (OSError, ValueError, ManifestError) as error:
        raise ValueError(f"vocabulary of modality {name}: {error}") from error


def _categories(rows: Rows, spec: CodesTable, notes: Counter[str]) -> dict[int, Codes]:
    """``column=value`` for every cell that is not empty; a record without any has no such modality."""
    cells, found = {column: rows.texts(column) for column in spec.columns}, {}
    for record, row in rows.single():
        names = []
        for column, own in cells.items():
            cell = own[row]
            notes[f"codes_missing.{column}"] += cell is None
            notes[f"codes_called_like_empty.{column}"] += cell in EMPTY_WORDS
            names += [] if cell is None else [f"{column}={cell}"]
        notes["codes"] += len(names)
        if names:
            found[record] = Codes(names)
    return found
