"""Which part of each split a record is in: by hash of its group, or as cells say."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from data_shards.sources.base import hashed_part
from data_shards.sources.readers.cells import Cells
from data_shards.sources.readers.table_files import find_files, read_small
from data_shards.sources.tables.columns import listed_words
from data_shards.sources.tables.mapping import Mapping
from data_shards.sources.tables.rows import Rows


class Parts:
    """The splits of a mapping."""

    def __init__(self, mapping: Mapping, folder: Path) -> None:
        self.mapping, self.split, self.folder = mapping, mapping.split, folder

    def of(self, home: Rows, groups: list[str]) -> list[dict[str, str] | None]:
        """Split -> part for each record of a unit; a split whose cell is empty is left out.

        None for a record without a row in the split file, see ``missing``.
        """
        if self.split.shares:
            shares, salt = list(self.split.shares.items()), str(self.split.seed) if self.split.seed else ""
            return [{"default": hashed_part(group, shares, salt)} for group in groups]
        if self.split.file is None:
            columns = {name: home.texts(column) for name, column in self.split.columns.items()}
            return [self._renamed({name: own[n] for name, own in columns.items()}) for n in range(len(groups))]
        names = groups if self.split.by == "group" else list(home.keys)
        return [self._renamed(self._table[name]) if name in self._table else None for name in names]

    def missing(self, key: str) -> ValueError:
        """The sentence for a record without a row."""
        group = " or its group" if self.split.by == "group" else ""
        return ValueError(
            f"{self.split.file} has no row for record {key!r}{group}; give it a row, with empty cells if "
            "no split uses it"
        )

    def _renamed(self, cells: dict[str, str | None]) -> dict[str, str]:
        return {name: self.split.rename.get(part, part) for name, part in cells.items() if part is not None}

    @cached_property
    def _table(self) -> dict[str, dict[str, str | None]]:
        """Record or group -> split -> cell."""
        file, key, columns = str(self.split.file), str(self.split.key), self.split.columns
        cells = Cells(self.mapping.dialect(file), listed_words(self.mapping, file), key=key)
        rows: dict[str, dict[str, str | None]] = {}
        for path in find_files(self.folder, file):
            table = read_small(path, {key: "text", **dict.fromkeys(columns.values(), "text")}, cells)
            for n, name in enumerate(table[key]):
                if name in rows:
                    raise ValueError(f"split file {path} has {name!r} twice")
                rows[name] = {split: table[column][n] for split, column in columns.items()}
        return rows
