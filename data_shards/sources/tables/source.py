"""Any data set that lies in tables: CSV or Parquet files and a mapping file, no code.

The mapping file (``mapping``) says which file has a row per record, where each modality's rows are and which
record they belong to, where labels are and how the data are split. Tables may be larger than memory and in any order
(``table_files``): memory holds the keys of the records and one piece of a table at a time; a temporary folder holds
the columns that are used, once.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Record
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.readers.table_files import Spill, batches, find_files, read_small, spill
from data_shards.sources.tables.mapping import (
    ImageTable,
    Mapping,
    Modality,
    SeriesTable,
    Task,
    TextTable,
    VectorTable,
    WaveformTable,
    read_mapping,
)
from data_shards.sources.tables.values import Rows, Value, pictures, series, target, texts, vectors, waveforms

UNIT_RECORDS = 500
Place = tuple[str, str]  # (file, key column)


class TablesOptions(SourceOptions):
    """Options of this source."""

    path: str = Field(description="YAML mapping file; the files it names are relative to its folder")
    scratch: str | None = Field(
        None, description="folder for temporary copies of the used columns; default: the system's"
    )


class Tables(Source):
    """Rows of tables as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = TablesOptions

    def __init__(self, options: TablesOptions) -> None:
        super().__init__(options)
        path = absolute_path(options.path)
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the mapping file (YAML) that says what its tables hold")
        self.folder = path.parent
        self.scratch = absolute_path(options.scratch) if options.scratch else None
        self.mapping: Mapping = read_mapping(path)
        self.schema = self.mapping.dataset_schema()
        self.columns = _wanted_columns(self.mapping)
        self.files = {place: find_files(self.folder, place[0]) for place in self.columns}
        for place, files in self.files.items():
            next(batches(files[0], {place[1]: "text", **self.columns[place]}), None)  # columns that are not there, now
        self.records_count = 0
        self._spills: dict[Place, Spill] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which reads the temporary folder but must not remove it."""
        return {**self.__dict__, "_temporary": None}

    @property
    def home(self) -> Place:
        """The file with one row per record."""
        return self.mapping.records.file, self.mapping.records.key

    def units(self) -> list[int]:
        """Numbers of pieces of the records' file. Reads every table once, and sorts its rows out on disk."""
        if self._temporary is None:
            keys = self._keys()
            self._temporary = tempfile.TemporaryDirectory(prefix="fleximoe-tables-", dir=self.scratch)
            for number, (place, columns) in enumerate(self.columns.items()):
                out = Path(self._temporary.name) / f"{number}.arrow"
                skip = self._skips_unknown(place)
                self._spills[place] = spill(self.files[place], columns, place[1], keys, UNIT_RECORDS, out, skip)
            self.records_count = len(keys)
        return list(range(-(-self.records_count // UNIT_RECORDS)))

    def read(self, unit: int, notes: Counter[str]) -> Iterator[Record]:
        """Records of one piece, in the order of the records' file."""
        if unit == 0:
            for made in self._spills.values():
                notes.update(made.notes)
        tables = {place: made.rows(unit) for place, made in self._spills.items()}
        home = Rows.of(tables[self.home], unit * UNIT_RECORDS, self._name(self.home))
        columns = {
            name: self._values(modality, tables, home, notes) for name, modality in self.mapping.modalities.items()
        }
        targets = {name: self._target(task, tables, home) for name, task in self.mapping.tasks.items()}
        groups = self._groups(home)
        splits = self._splits(home, groups)
        for number, key in enumerate(home.texts(self.home[1])):
            values = {name: own[number] for name, own in columns.items() if number in own}
            if self.mapping.records.need_any and not any(name in values for name in self.mapping.records.need_any):
                notes["records_without_any_needed_modality"] += 1
                continue
            labels = {name: own.get(number) for name, own in targets.items()}
            parts = splits[number]
            if parts is None:
                raise self._no_split(str(key))
            yield Record(str(key), values, labels, parts, group=groups[number])

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Options, what was counted, and which files were read."""
        files = sorted({file.name for own in self.files.values() for file in own})
        return super().report(notes) | {
            "mapping": self.mapping.model_dump(mode="json", exclude_defaults=True),
            "files": files,
        }

    def _keys(self) -> pa.Array:
        """Keys of all records; ValueError if one is missing or there twice."""
        key = self.home[1]
        pieces = [b.column(key) for path in self.files[self.home] for b in batches(path, {key: "text"})]
        keys = pa.chunked_array(pieces, pa.string()).combine_chunks()
        if not len(keys):
            raise ValueError(f"{self._name(self.home)} holds no row, so there is no record")
        if keys.null_count:
            raise ValueError(f"{self._name(self.home)}: {keys.null_count} rows have no {key!r}")
        counts = pc.value_counts(keys)
        if len(counts) < len(keys):
            twice = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
            raise ValueError(
                f"{self._name(self.home)}: {key!r} must be different in every row, and {twice['values']!r} occurs "
                f"{twice['counts']} times"
            )
        return keys

    def _name(self, place: Place) -> str:
        return str(absolute_path(place[0], self.folder))

    def _skips_unknown(self, place: Place) -> bool:
        """Whether rows of unknown records are fine: if one modality says so; labels and split rows always are."""
        users = [m for m in self.mapping.modalities.values() if self._place(m) == place]
        return not users or any(m.unknown_keys == "skip" for m in users)

    def _place(self, section: Modality | Task) -> Place:
        return section.file or self.home[0], section.key or self.home[1]

    def _values(
        self, modality: Modality, tables: dict[Place, pa.Table | None], home: Rows, notes: Counter[str]
    ) -> dict[int, Value]:
        """Number of the record in the unit -> its value of one modality."""
        place = self._place(modality)
        table = tables[place]
        if table is None:
            return {}
        rows = Rows.of(table, home.first, self._name(place))
        if isinstance(modality, SeriesTable):
            same = [
                m for m in self.mapping.modalities.values() if isinstance(m, SeriesTable) and self._place(m) == place
            ]
            known = [name for m in same if m.channel == modality.channel for name in m.channels]
            return dict(series(rows, modality, home, known, notes))
        read: dict[type, Callable[..., dict[int, Value]]] = {
            VectorTable: vectors, TextTable: texts, ImageTable: pictures, WaveformTable: waveforms
        }  # fmt: skip
        return read[type(modality)](rows, modality, self.folder, notes)

    def _target(self, task: Task, tables: dict[Place, pa.Table | None], home: Rows) -> dict[int, Any]:
        table = tables[self._place(task)]
        return {} if table is None else target(Rows.of(table, home.first, self._name(self._place(task))), task)

    def _groups(self, home: Rows) -> list[str]:
        """Group of each record of the unit: its own key where none is named."""
        keys, column = home.texts(self.home[1]), self.mapping.records.group
        groups = keys if column is None else home.texts(column)
        return [str(group or key) for group, key in zip(groups, keys, strict=True)]

    def _splits(self, home: Rows, groups: list[str]) -> list[dict[str, str] | None]:
        """Split -> part for each record of the unit; None for one that the split file does not have."""
        split = self.mapping.split
        if split.shares:
            shares, salt = list(split.shares.items()), str(split.seed) if split.seed else ""
            return [{"default": hashed_part(group, shares, salt)} for group in groups]
        rows: list[dict[str, str | None] | None]
        if split.file is None:
            cells = {name: home.texts(column) for name, column in split.columns.items()}
            rows = [{name: column[n] for name, column in cells.items()} for n in range(len(groups))]
        else:
            file = str(absolute_path(split.file, self.folder))
            table = _split_table(file, str(split.key), tuple(split.columns.items()))
            names = groups if split.by == "group" else [str(key) for key in home.texts(self.home[1])]
            rows = [table.get(name) for name in names]
        return [None if row is None else self._parts(row) for row in rows]

    def _parts(self, cells: dict[str, str | None]) -> dict[str, str]:
        return {name: self.mapping.split.rename.get(part, part) for name, part in cells.items() if part}

    def _no_split(self, key: str) -> ValueError:
        split = self.mapping.split
        return ValueError(
            f"{split.file} has no row for record {key!r}{' or its group' if split.by == 'group' else ''}; give it a "
            "row, with empty cells if no split uses it"
        )


def _wanted_columns(mapping: Mapping) -> dict[Place, dict[str, str]]:
    """(file, key) -> column -> type, for all that the mapping names; ValueError if a column is wanted as two types."""
    home = (mapping.records.file, mapping.records.key)
    wanted: dict[Place, dict[str, str]] = {home: {home[1]: "text"}}

    def want(place: Place, column: str | None, kind: str) -> None:
        if column is None:
            return
        have = wanted.setdefault(place, {}).setdefault(column, kind)
        if have != kind:
            raise ValueError(f"column {column!r} of {place[0]} is used as {have} and as {kind}; make it two columns")

    want(home, mapping.records.group, "text")
    for modality in mapping.modalities.values():
        place = (modality.file or home[0], modality.key or home[1])
        for column, kind in modality_columns(modality):
            want(place, column, kind)
        if isinstance(modality, SeriesTable):
            want(home, modality.origin, "date")
    for task in mapping.tasks.values():
        place = (task.file or home[0], task.key or home[1])
        kind = "text" if task.kind in ("binary", "multiclass") else "number"
        for column in (task.column, *task.columns):
            want(place, column, kind)
    if mapping.split.file is None:
        for column in mapping.split.columns.values():
            want(home, column, "text")
    return wanted


def modality_columns(modality: Modality) -> list[tuple[str | None, str]]:
    """Columns of a modality's own file and their types."""
    if isinstance(modality, SeriesTable):
        time = (modality.time, "date" if modality.origin else "number")
        return [
            time,
            (modality.channel, "text"),
            (modality.value, "number"),
            *((c, "number") for c in modality.columns),
        ]
    if isinstance(modality, VectorTable):
        return [(modality.column, "numbers"), *((column, "number") for column in modality.columns)]
    assert isinstance(modality, TextTable | ImageTable | WaveformTable), "all kinds are named"
    return [(modality.column, "text")]


@lru_cache(maxsize=1)
def _split_table(path: str, key: str, columns: tuple[tuple[str, str], ...]) -> dict[str, dict[str, str | None]]:
    """Record or group -> split -> cell."""
    files = find_files(Path(path).parent, path)
    table = read_small(files[0], {key: "text", **{column: "text" for _, column in columns}})
    rows: dict[str, dict[str, str | None]] = {}
    for n, name in enumerate(table[key]):
        if name in rows:
            raise ValueError(f"split file {path} has {name!r} twice")
        rows[name] = {split: table[column][n] for split, column in columns}
    return rows
