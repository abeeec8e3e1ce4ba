"""What the columns of a table look like: read once, by the reader that packs them, so a guess is never of another type.

Shape legend: N cells of a piece of a column.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.records.precision import lost
from data_shards.sources.readers.cells import CellError, Cells
from data_shards.sources.readers.csv_dialect import Dialect
from data_shards.sources.readers.table_files import batches, column_names, stored

MOST_WORDS = 5000  # different cells of a column that are remembered
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# In this order: the first that every cell can be read as. Text that holds numbers is numbers.
_TRIED = ("number", "date", "elapsed", "numbers", "text", "file")
_CANNOT = (CellError, pa.ArrowInvalid, pa.ArrowNotImplementedError)


_PADDED = r"^0\d{3,}$"  # digits that begin with a zero; hours and months have fewer


@dataclass
class Column:
    """What all cells of a column have in common.

    Attributes:
        kind: as which the reader can read every cell: number, date, elapsed (a duration), numbers (lists), text,
            file (bytes); "" where it can read them as nothing.
        whole: all of its numbers are. empty: cells without content. words: cell -> how often, None if there are too
            many different ones (or cells that are no text). unique: no cell is there twice, and none is empty.
        longest, spaced: of text, the longest cell and the share of cells with a blank. low, high: of numbers.
        too_fine: why single precision would lose something. sizes: lengths of lists.
    """

    name: str
    kind: str = ""
    rows: int = 0
    empty: int = 0
    whole: bool = False
    words: dict[str, int] | None = field(default_factory=dict)
    unique: bool = False
    longest: int = 0
    spaced: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    too_fine: str | None = None
    sizes: set[int] = field(default_factory=set)

    @property
    def few(self) -> bool:
        """Whether its cells look like categories: short, and each of them several times."""
        filled = self.rows - self.empty
        return self.words is not None and self.longest <= 60 and len(self.words) <= max(2, min(1000, filled // 2))

    @property
    def is_path(self) -> bool:
        """Whether its cells look like names of picture files."""
        return self.kind == "text" and bool(self.words) and all(w.lower().endswith(PICTURES) for w in self.words or {})


@dataclass
class Table:
    """A table and its columns.

    Attributes:
        file: as the mapping names it. path: where it is. dialect: how it is written.
    """

    file: str
    path: Path
    columns: dict[str, Column]
    dialect: Dialect = field(default_factory=Dialect)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return next(iter(self.columns.values())).rows if self.columns else 0

    def read(self, columns: dict[str, str]) -> pa.Table:
        """Some columns, whole, as these types of the reader (see `readers.cells`)."""
        return pa.Table.from_batches(list(batches(self.path, columns, Cells(self.dialect))))


def profile(path: Path, file: str, dialect: Dialect | None = None) -> Table:
    """Look at every cell of a table. Raises ValueError: it cannot be read."""
    dialect = dialect or Dialect()
    names = column_names(path, dialect)
    looks = [_Look(name, dialect) for name in names]
    for piece in stored(path, names, Cells(dialect)):
        for look in looks:
            look.take(piece.column(look.column.name))
    return Table(file, path, {look.column.name: look.done() for look in looks}, dialect)


class _Look:
    """A column while it is read."""

    def __init__(self, name: str, dialect: Dialect) -> None:
        self.column = Column(name)
        self._cells = {kind: Cells(dialect) for kind in _TRIED}
        self._words: dict[str, int] | None = {}
        self._seen: set[str] | None = set()  # None: a cell was there twice
        self._spaced = 0
        self._whole, self._padded = True, False

    def take(self, raw: pa.Array) -> None:
        own = self.column
        own.rows += len(raw)
        for kind in list(self._cells):
            try:
                found = self._cells[kind].convert(raw, own.name, kind)
            except _CANNOT:
                del self._cells[kind]
                continue
            if kind == "number":
                self._numbers(found)
            elif kind == "text":
                self._texts(found)
            elif kind == "numbers":
                own.sizes |= set(pc.list_value_length(found.drop_null()).to_pylist())
        own.empty += self._empty(raw)
        if "text" not in self._cells:
            self._words = self._seen = None

    def _empty(self, raw: pa.Array) -> int:
        """Cells without content, in the sense of the narrowest type that still fits."""
        for kind in _TRIED:
            if kind in self._cells:
                return int(Cells(self._cells[kind].dialect).convert(raw, self.column.name, kind).null_count)
        return int(raw.null_count)

    def _numbers(self, number: pa.Array) -> None:
        own, value_N = self.column, number.drop_null().to_numpy()
        if len(value_N):
            own.low, own.high = min(own.low, float(value_N.min())), max(own.high, float(value_N.max()))
            self._whole &= bool((value_N == np.floor(value_N)).all())
            own.too_fine = own.too_fine or lost(value_N)

    def _texts(self, text: pa.Array) -> None:
        own, filled = self.column, text.drop_null()
        if len(filled):
            self._padded |= bool(pc.any(pc.match_substring_regex(filled, _PADDED)).as_py())
            own.longest = max(own.longest, int(pc.max(pc.utf8_length(filled)).as_py()))
            self._spaced += int(pc.sum(pc.match_substring(filled, " ")).as_py() or 0)
        if self._words is None and self._seen is None:
            return
        counts = pc.value_counts(filled)
        cells: list[str] = counts.field("values").to_pylist()
        numbers: list[int] = counts.field("counts").to_pylist()
        if self._seen is not None:
            again = len(cells) < len(text) or not self._seen.isdisjoint(cells)
            self._seen = None if again else self._seen | set(cells)
        if self._words is not None:
            for cell, number in zip(cells, numbers, strict=True):
                self._words[cell] = self._words.get(cell, 0) + number
            self._words = self._words if len(self._words) <= MOST_WORDS else None

    def done(self) -> Column:
        own = self.column
        own.kind = next((kind for kind in _TRIED if kind in self._cells), "")
        if own.kind == "number" and self._padded:
            own.kind = "text"  # 05242 is the name of a place, and no number
        if own.empty == own.rows:
            own.kind = "nothing"
        own.words, own.unique = self._words, self._seen is not None and own.rows > 0
        own.whole = own.kind == "number" and self._whole
        own.spaced = self._spaced / max(1, own.rows - own.empty)
        return own
