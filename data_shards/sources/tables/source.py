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
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Record, Series, escape_key
from data_shards.sources.base import Source, SourceOptions
from data_shards.sources.readers.cells import Cells
from data_shards.sources.readers.csv_dialect import EMPTY_WORDS
from data_shards.sources.readers.spill import Spill, spill
from data_shards.sources.readers.table_files import batches, find_files
from data_shards.sources.tables.columns import Place, listed_words, wanted_columns
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
from data_shards.sources.tables.rows import Rows
from data_shards.sources.tables.schema import dataset_schema
from data_shards.sources.tables.series import series
from data_shards.sources.tables.splits import Parts
from data_shards.sources.tables.values import Value, pictures, target, texts, vectors, waveforms

UNIT_RECORDS = 500


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
        self.schema = dataset_schema(self.mapping)
        self.columns = wanted_columns(self.mapping)
        self.parts = Parts(self.mapping, self.folder)
        self.files = {place: find_files(self.folder, place[0]) for place in self.columns}
        for place, files in self.files.items():
            # Columns that are not there, now
            next(batches(files[0], {place[1]: "text", **self.columns[place]}, self._cells(place)), None)
        self.records_count = 0
        self.horizons: dict[str, float] = {}
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
                cells = self._cells(place)
                self._spills[place] = spill(
                    self.files[place], columns, place[1], keys, UNIT_RECORDS, out, skip, cells=cells
                )
            self.records_count = len(keys)
            self._find_windows()
        return list(range(-(-self.records_count // UNIT_RECORDS)))

    def read(self, unit: int, notes: Counter[str]) -> Iterator[Record]:
        """Records of one piece, in the order of the records' file."""
        if unit == 0:
            for made in self._spills.values():
                notes.update(made.notes)
        tables = self._tables(unit)
        home = tables[self.home]
        columns = {
            name: self._values(modality, tables, home, notes) for name, modality in self.mapping.modalities.items()
        }
        targets = {
            name: target(tables[self._place(task)], task, notes)
            for name, task in self.mapping.tasks.items()
            if self._place(task) in tables
        }
        column = self.mapping.records.group
        groups = list[str | None](home.keys) if column is None else home.texts(column)
        splits = self.parts.of(home, [group or key for group, key in zip(groups, home.keys, strict=True)])
        for number, key in enumerate(home.keys):
            values = {name: own[number] for name, own in columns.items() if number in own}
            if self.mapping.records.need_any and not any(name in values for name in self.mapping.records.need_any):
                notes["records_without_any_needed_modality"] += 1
                continue
            labels = {name: own.get(number) for name, own in targets.items()}
            parts = splits[number]
            if parts is None:
                raise self.parts.missing(key)
            if groups[number] is None:
                notes["records_without_group"] += 1
            notes.update(self._like_empty(groups[number], parts))
            for split in self.mapping.split.columns.keys() - parts.keys():
                notes[f"records_without_part.{split}"] += 1
            own_key = escape_key(key) if self.mapping.records.keys == "escape" else key
            yield Record(own_key, values, labels, parts, group=groups[number] or key)

    def _like_empty(self, group: str | None, parts: dict[str, str]) -> list[str]:
        """What to count of names that are taken as they stand, and in other tables mean an empty cell."""
        found = ["groups_called_like_empty"] if self.mapping.records.group and group in EMPTY_WORDS else []
        return found + [f"parts_called_like_empty.{split}" for split, part in parts.items() if part in EMPTY_WORDS]

    def _find_windows(self) -> None:
        """The longest time seen as the horizon of each series whose mapping names none; the schema is whole then."""
        modalities, units = dict(self.mapping.modalities), range(-(-self.records_count // UNIT_RECORDS))
        for name, modality in modalities.items():
            if not isinstance(modality, SeriesTable) or modality.horizon is not None:
                continue
            longest = max((self._longest_time(modality, unit) for unit in units), default=0.0)
            if not longest > 0:
                raise ValueError(
                    f"series {name}: no time above 0 was seen, so its observation window is unknown; give horizon"
                )
            self.horizons[name] = longest
            modalities[name] = modality.model_copy(update={"horizon": longest})
        self.mapping = self.mapping.model_copy(update={"modalities": modalities})
        self.schema = dataset_schema(self.mapping)

    def _longest_time(self, modality: SeriesTable, unit: int) -> float:
        tables = self._tables(unit)
        found = self._values(modality, tables, tables[self.home], Counter())
        return max((float(v.times_O.max()) for v in found.values() if isinstance(v, Series) and len(v)), default=0.0)

    def _tables(self, unit: int) -> dict[Place, Rows]:
        """Rows of the unit of every table that has any."""
        found, keys = dict[Place, Rows](), list[str]()
        # The records' file is the first, and has a row for each record
        for place, made in self._spills.items():
            table = made.rows(unit)
            if table is None:
                continue
            keys = keys or table[self.home[1]].to_pylist()
            numbers = table["record"].to_numpy() - unit * UNIT_RECORDS
            found[place] = Rows(table, numbers, keys, self._name(place), made.cells)
        return found

    def _cells(self, place: Place) -> Cells:
        """How cells of a table are read."""
        return Cells(self.mapping.dialect(place[0]), listed_words(self.mapping, place[0]), key=place[1])

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Options, what was counted, and which files were read."""
        files = sorted({file.name for own in self.files.values() for file in own})
        return super().report(notes) | {
            "mapping": self.mapping.model_dump(mode="json", exclude_defaults=True),
            "files": files,
            "horizons_from_longest_times": self.horizons,
        }

    def _keys(self) -> pa.Array:
        """Keys of all records; ValueError if one is missing or there twice."""
        key = self.home[1]
        cells = self._cells(self.home)
        pieces = [b.column(key) for path in self.files[self.home] for b in batches(path, {key: "text"}, cells)]
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
        """Whether rows of unknown records are left out: if a section of that table says so, and none the contrary."""
        users = [
            u for u in (*self.mapping.modalities.values(), *self.mapping.tasks.values()) if self._place(u) == place
        ]
        said = {user.unknown_keys for user in users if "unknown_keys" in user.model_fields_set}
        if len(said) > 1:
            raise ValueError(f"two sections say different things of unknown_keys of {place[0]}")
        return "skip" in said

    def _place(self, section: Modality | Task) -> Place:
        return section.file or self.home[0], section.key or self.home[1]

    def _values(
        self, modality: Modality, tables: dict[Place, Rows], home: Rows, notes: Counter[str]
    ) -> dict[int, Value]:
        """Number of the record in the unit -> its value of one modality."""
        place = self._place(modality)
        if place not in tables:
            return {}
        rows = tables[place]
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
