"""What a cell says of a file: which one, or its bytes, and which stretch of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_shards.paths import absolute_path
from data_shards.sources.tables.modalities import FileTable
from data_shards.sources.tables.rows import Around, Rows


class FileCells:
    """The cells of a column with files, and of those with their stretches."""

    def __init__(self, rows: Rows, spec: FileTable, around: Around, what: str) -> None:
        self.rows, self.spec, self.what = rows, spec, what
        self.column = rows.table[spec.column]
        self.there_L: np.ndarray = self.column.is_valid().to_numpy()
        self.folder = absolute_path(spec.folder, around.folder)
        self._seconds = [None if column is None else rows.numbers(column) for column in (spec.start, spec.end)]

    def source(self, row: int) -> Path | bytes:
        """What a cell names or holds; of a struct its bytes, or else its path."""
        cell: str | bytes | dict[str, Any] | None = self.column[row].as_py()
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
        assert cell is not None, "an empty cell is null"
        return self.folder / cell if isinstance(cell, str) else cell

    def where(self, record: int, row: int) -> str:
        """For messages: the table, the record and the file."""
        source = self.source(row)
        file = f"{self.what} {source}" if isinstance(source, Path) else f"{self.what} in {self.spec.column!r}"
        return f"{self.rows.file}, record {self.rows.name(record)}: {file}"

    def stretch(self, row: int) -> tuple[float | None, float | None]:
        """Seconds of the file that the row takes; None where it does not say."""
        start, end = (None if own is None or np.isnan(own[row]) else float(own[row]) for own in self._seconds)
        return start, end
