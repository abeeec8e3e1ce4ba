"""Rows of one work unit of a table, as the functions that make values of them see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_shards.records.precision import lost
from data_shards.records.record import Value
from data_shards.sources.readers.cells import Cells

Later = Callable[[], Value]  # a value that is read when its record is wanted: a picture, a recording


@dataclass
class Rows:
    """Rows of one unit, ordered by record.

    Attributes:
        table: the columns. record_N: number of each row's record in the unit. keys: of the unit's records. file: for
            messages. cells: what the table's columns turned out to hold.
    """

    table: pa.Table
    record_N: np.ndarray
    keys: Sequence[str]
    file: str
    cells: Cells

    def numbers(self, column: str) -> np.ndarray:
        """float64 [N], NaN where empty."""
        values: np.ndarray = self.table[column].to_numpy()
        return values.astype(np.float64, copy=False)

    def texts(self, column: str) -> list[str | None]:
        """Cells, None where empty."""
        cells: list[str | None] = self.table[column].to_pylist()
        return cells

    def name(self, record: int) -> str:
        """A record's key, for messages."""
        return repr(self.keys[record])

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
                    f"{self.file}: {rows.stop - rows.start} rows belong to record {self.name(record)}, and this kind "
                    "of value has one"
                )
            yield record, rows.start

    def narrow(self, value_N: np.ndarray, where: str, rounding: str, notes: Counter[str]) -> np.ndarray:
        """The numbers as float32 holds them (still float64).

        Raises:
            ValueError: that loses more than the numbers' own resolution, and rounding is not allowed.
        """
        with np.errstate(over="ignore"):
            narrow_N = value_N.astype(np.float32).astype(np.float64)
        problem = lost(value_N)
        if problem and rounding == "error":
            raise ValueError(
                f"{self.file}, {where}: {problem}; subtract a constant from them, or accept it with rounding: allow"
            )
        if problem:
            notes["numbers_rounded"] += int((narrow_N != value_N)[np.isfinite(value_N)].sum())
        return narrow_N


@dataclass(frozen=True)
class Around:
    """What values need beside their own rows.

    Attributes:
        home: rows of the records' file. folder: of the mapping. moments: records are seen up to moments, so that times
            may be any. channels: those that any modality takes from the same file (series in long form).
    """

    home: Rows
    folder: Path
    moments: bool = False
    channels: Sequence[str] = ()


def cell_error(rows: Rows, record: int, column: str, cell: Any) -> ValueError:
    """The sentence for a cell that is no number."""
    return ValueError(f"{rows.file}: {cell!r} in column {column!r}, record {rows.name(record)}, is no number")
