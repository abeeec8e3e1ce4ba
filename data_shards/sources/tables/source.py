"""Any data set that lies in tables: CSV or Parquet files and a mapping file, no code.

The mapping file (``mapping``) says which file has a row per record, where each modality's rows are and which
record they belong to, where labels are and how the data are split. Tables may be larger than memory and in any order
(``spill``): memory holds the keys of the records and one piece of a table at a time; a temporary folder holds the
columns that are used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_shards.crew import Buffer, Crew, Here, in_order
from data_shards.paths import absolute_path
from data_shards.records.record import Codes, Record, Value, escape_key
from data_shards.records.survival import edges_from
from data_shards.records.vocabulary import Vocabulary, VocabularyRule
from data_shards.scratch import Scratch
from data_shards.sources.base import Source, SourceOptions, described_files
from data_shards.sources.readers.cells import Cells
from data_shards.sources.readers.csv_dialect import EMPTY_WORDS
from data_shards.sources.readers.spill import Sorting, Spill, sort_out
from data_shards.sources.readers.table_files import batches, find_files
from data_shards.sources.tables.codes import codes, vocabulary
from data_shards.sources.tables.columns import Place, listed_words, replaced_cells, wanted_columns
from data_shards.sources.tables.labels import join, moments, target
from data_shards.sources.tables.mapping import Mapping as TableMapping
from data_shards.sources.tables.mapping import Task, read_mapping
from data_shards.sources.tables.modalities import (
    CodesTable,
    ImageTable,
    Modality,
    SeriesTable,
    TextTable,
    VectorTable,
    WaveformTable,
)
from data_shards.sources.tables.rows import Around, Later, Rows
from data_shards.sources.tables.schema import dataset_schema
from data_shards.sources.tables.series import series
from data_shards.sources.tables.splits import Parts
from data_shards.sources.tables.values import Apart, pictures, texts, vectors, waveforms

UNIT_RECORDS = 500
_MAPPINGS = Path(__file__).parents[1] / "mappings"
SHIPPED = tuple(sorted(file.stem for file in _MAPPINGS.glob("*.yaml")))
Held = Value | Later


class TablesOptions(SourceOptions):
    """Options of this source."""

    path: str = Field(
        description="YAML mapping file; the files it names are relative to its folder. With mapping: the tables' folder"
    )
    mapping: str | None = Field(
        None, description=f"a shipped mapping, for tables in a known layout: {', '.join(SHIPPED)}; path is their folder"
    )
    scratch: str | None = Field(
        None,
        description="folder for temporary copies of the used columns, which all workers see; default: the system's",
    )


class Tables(Source):
    """Rows of tables as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = TablesOptions

    def __init__(self, options: TablesOptions) -> None:
        super().__init__(options)
        path, self.folder = _places(options)
        self.scratch = absolute_path(options.scratch) if options.scratch else None
        self.mapping: TableMapping = read_mapping(path)
        self.schema = dataset_schema(self.mapping)
        told = {
            name: vocabulary(modality, name, self.folder)
            for name, modality in self.mapping.modalities.items()
            if isinstance(modality, CodesTable)
        }
        self.vocabularies = {name: own for name, own in told.items() if isinstance(own, Vocabulary)}
        self.vocabulary_rules = {name: own for name, own in told.items() if isinstance(own, VocabularyRule)}
        self.columns = wanted_columns(self.mapping)
        self.parts = Parts(self.mapping, self.folder)
        self.files = {place: find_files(self.folder, place[0]) for place in self.columns}
        for place, files in self.files.items():
            # Columns that are not there, now
            next(batches(files[0], {place[1]: "text", **self.columns[place]}, self._cells(place)), None)
        self.records_count = 0
        self.horizons: dict[str, float] = {}
        self._spills: dict[Place, Spill] = {}
        self._temporary: Scratch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which reads the temporary folder but must not remove it."""
        return {**self.__dict__, "_temporary": None}

    @property
    def home(self) -> Place:
        """The file with one row per record."""
        return self.mapping.records.file, self.mapping.records.key

    def units(self) -> list[int]:
        """Numbers of pieces of the records' file."""
        self.prepare(Here())
        return self._numbers

    def prepare(self, crew: Crew) -> None:
        """Read every table once, and sort its rows out on disk."""
        if self._temporary is not None:
            return
        keys = self._keys()
        self._temporary = Scratch("tables", self.scratch)
        tables = [
            Sorting(self.files[place], columns, place[1], self._skips_unknown(place), cells=self._cells(place))
            for place, columns in self.columns.items()
        ]
        made = sort_out(tables, keys, UNIT_RECORDS, Path(self._temporary.name), crew)
        self._spills = dict(zip(self.columns, made, strict=True))
        self.records_count = len(keys)
        self._find_windows(crew)
        self._find_intervals(crew)
        self.schema = dataset_schema(self.mapping)

    @property
    def _numbers(self) -> list[int]:
        """Of the pieces."""
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
        labels = self._labels(tables, home, notes)
        groups, splits = self._groups_and_parts(home)
        for number, key in enumerate(home.keys):
            held = {name: own[number] for name, own in columns.items() if number in own}
            if self.mapping.records.need_any and not any(name in held for name in self.mapping.records.need_any):
                notes["records_without_any_needed_modality"] += 1
                continue
            parts = splits[number]
            if parts is None:
                raise self.parts.missing(key)
            if groups[number] is None:
                notes["records_without_group"] += 1
            notes.update(self._like_empty(groups[number], parts))
            for split in self.mapping.split.columns.keys() - parts.keys():
                notes[f"records_without_part.{split}"] += 1
            own_key = escape_key(key) if self.mapping.records.keys == "escape" else key
            targets, times_K = self._targets(number, labels, notes)
            values = {name: value() if callable(value) else value for name, value in held.items()}
            yield Record(own_key, values, targets, parts, groups[number] or key, times_K)

    def fingerprint(self) -> str:
        """With the mapping, and all files that it names."""
        named = sorted({str(path) for files in self.files.values() for path in files})
        files = [described_files(path) for path in named]
        return json.dumps([super().fingerprint(), self.mapping.model_dump(mode="json"), str(self.folder), files])

    def codes(self, unit: int) -> Iterator[tuple[Mapping[str, str], Mapping[str, Sequence[str]]]]:
        """(splits, modality -> codes) of each record of a piece that is packed; no picture or recording is read."""
        tables = self._tables(unit)
        home, need_any = tables[self.home], self.mapping.records.need_any
        own = {name: m for name, m in self.mapping.modalities.items() if m.kind == "codes" or name in need_any}
        found = {name: self._values(modality, tables, home, Counter()) for name, modality in own.items()}
        for number, parts in enumerate(self._groups_and_parts(home)[1]):
            if not need_any or any(number in found[name] for name in need_any):
                held = {name: values.get(number) for name, values in found.items()}
                yield parts or {}, {name: value.codes for name, value in held.items() if isinstance(value, Codes)}

    def _groups_and_parts(self, home: Rows) -> tuple[list[str | None], list[dict[str, str] | None]]:
        """Of each record of a unit."""
        column = self.mapping.records.group
        groups = list[str | None](home.keys) if column is None else home.texts(column)
        return groups, self.parts.of(home, [group or key for group, key in zip(groups, home.keys, strict=True)])

    def _labels(self, tables: dict[Place, Rows], home: Rows, notes: Counter[str]) -> dict[str, dict[int, Any]]:
        """Task -> number of the record in the unit -> its label, or its moments and the labels there."""
        around, found = Around(home, self.folder), dict[str, dict[int, Any]]()
        for name, task in self.mapping.tasks.items():
            rows = tables.get(self.mapping.place(task))
            if rows is not None:
                found[name] = (moments if task.at_moments else target)(rows, task, around, notes)
        return found

    def _targets(
        self, number: int, labels: dict[str, dict[int, Any]], notes: Counter[str]
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """Labels of one record, and the moments of some, if there are any."""
        timed = {task.name: task.width for task in self.schema.tasks if task.timed}
        targets = {name: own.get(number) for name, own in labels.items() if name not in timed}
        at_moments = {name: labels[name][number] for name in timed if number in labels.get(name, {})}
        if not at_moments:
            notes["records_without_moments"] += bool(timed)
            return targets, None
        times_K, own = join(at_moments, timed)
        return targets | own, times_K

    def _like_empty(self, group: str | None, parts: dict[str, str]) -> list[str]:
        """What to count of names that are taken as they stand, and in other tables mean an empty cell."""
        found = ["groups_called_like_empty"] if self.mapping.records.group and group in EMPTY_WORDS else []
        return found + [f"parts_called_like_empty.{split}" for split, part in parts.items() if part in EMPTY_WORDS]

    def _find_windows(self, crew: Crew) -> None:
        """The longest time seen as the horizon of each modality whose mapping names none."""
        modalities = dict(self.mapping.modalities)
        for name, modality in modalities.items():
            if not modality.timed or modality.horizon is not None:
                continue
            with crew.team({"look": _Longest(self, name)}) as team:
                longest = max(in_order(team, "look", self._numbers), default=0.0)
            if not longest > 0:
                raise ValueError(
                    f"{modality.kind} {name}: no time above 0 was seen, so its observation window is unknown; give "
                    "horizon"
                )
            self.horizons[name] = longest
            modalities[name] = modality.model_copy(update={"horizon": longest})
        self.mapping = self.mapping.model_copy(update={"modalities": modalities})

    def _find_intervals(self, crew: Crew) -> None:
        """Ends of the intervals of each survival task whose mapping names their number, from the training part."""
        tasks = dict(self.mapping.tasks)
        for name, task in tasks.items():
            if task.intervals is None:
                continue
            with crew.team({"look": _TrainingPairs(self, name)}) as team:
                seen = [pair for pairs in in_order(team, "look", self._numbers) for pair in pairs]
            time_N, seen_N = np.array(seen, np.float32).reshape(-1, 2).T
            try:
                edges = edges_from(time_N, seen_N, task.intervals)
            except ValueError as error:
                raise ValueError(f"task {name}: {error}") from error
            tasks[name] = task.model_copy(update={"intervals": None, "edges": edges})
        self.mapping = self.mapping.model_copy(update={"tasks": tasks})

    def training_pairs(self, task: Task, unit: int) -> list[np.ndarray]:
        """(time, seen) of the training part's records of a unit; of several splits the first one that is named."""
        tables = self._tables(unit)
        rows, home = tables.get(self.mapping.place(task)), tables[self.home]
        labels = target(rows, task, Around(home, self.folder), Counter()) if rows is not None else {}
        _, parts = self._groups_and_parts(home)
        split = next(iter(self.mapping.split.columns), "default")
        return [labels[n] for n, own in enumerate(parts) if n in labels and own and own.get(split) == "train"]

    def longest_time(self, modality: Modality, unit: int) -> float:
        """The latest time of a modality in a unit, 0 if there is none."""
        tables = self._tables(unit)
        found = self._values(modality, tables, tables[self.home], Counter())
        return max((_last_time(value) for value in found.values()), default=0.0)

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
        listed, replace = listed_words(self.mapping, place[0]), replaced_cells(self.mapping, place)
        return Cells(self.mapping.dialect(place[0]), listed, key=place[1], replace=replace)

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Options, what was counted, which files were read, and what a head in sorted JSON would not tell."""
        files = sorted({file.name for own in self.files.values() for file in own})
        return super().report(notes) | {
            "mapping": self.mapping.model_dump(mode="json", exclude_defaults=True),
            "files": files,
            "order_of_shares": list(self.mapping.split.shares),
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
            u
            for u in (*self.mapping.modalities.values(), *self.mapping.tasks.values())
            if self.mapping.place(u) == place
        ]
        said = {user.unknown_keys for user in users if "unknown_keys" in user.model_fields_set}
        if len(said) > 1:
            raise ValueError(f"two sections say different things of unknown_keys of {place[0]}")
        return "skip" in said

    def _values(
        self, modality: Modality, tables: dict[Place, Rows], home: Rows, notes: Counter[str]
    ) -> dict[int, Held]:
        """Number of the record in the unit -> its value of one modality, or what reads it."""
        place = self.mapping.place(modality)
        if place not in tables:
            return {}
        known: list[str] = []
        if isinstance(modality, SeriesTable):
            same = [m for m in self.mapping.modalities.values() if self.mapping.place(m) == place]
            known = [
                n for m in same if isinstance(m, SeriesTable) and m.channel == modality.channel for n in m.channels
            ]
        around = Around(home, self.folder, self.mapping.has_moments, known)
        found: dict[int, Held] = _READ[type(modality)](tables[place], modality, around, notes)
        return found


@dataclass(frozen=True)
class _Longest:
    """What a worker looks for in a unit: the latest time of a modality."""

    source: Tables
    name: str

    def __call__(self, unit: int, buffers: Sequence[Buffer] = ()) -> float:
        return self.source.longest_time(self.source.mapping.modalities[self.name], unit)


@dataclass(frozen=True)
class _TrainingPairs:
    """Likewise: (time, seen) of a task."""

    source: Tables
    name: str

    def __call__(self, unit: int, buffers: Sequence[Buffer] = ()) -> list[np.ndarray]:
        return self.source.training_pairs(self.source.mapping.tasks[self.name], unit)


def _last_time(value: Held) -> float:
    """The latest time of a value, 0 if it has none."""
    times_N = value.times_N if isinstance(value, Apart) else getattr(value, "times_O", None)
    return 0.0 if times_N is None or not len(times_N) else float(times_N.max())


_READ: dict[type, Callable[..., Any]] = {
    SeriesTable: series, VectorTable: vectors, TextTable: texts, ImageTable: pictures, WaveformTable: waveforms,
    CodesTable: codes,
}  # fmt: skip


def _places(options: TablesOptions) -> tuple[Path, Path]:
    """The mapping file, and the folder that the files it names are relative to. Raises ValueError."""
    path = absolute_path(options.path)
    if options.mapping is not None:
        if options.mapping not in SHIPPED:
            raise ValueError(
                f"mapping {options.mapping!r} is none of {', '.join(SHIPPED)}; give your own file as the path"
            )
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; with a shipped mapping the path is the folder of the tables")
        return _MAPPINGS / f"{options.mapping}.yaml", path
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; give the mapping file (YAML) that says what its tables hold, or a shipped one with "
            f"-o mapping=NAME ({', '.join(SHIPPED)})"
        )
    return path, path.parent
