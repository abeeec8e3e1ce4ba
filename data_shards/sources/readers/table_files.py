"""CSV and Parquet files as batches of typed columns, with bounded memory, and sorted out by record on disk.

Rows may lie in any order in any number of files. ``Spill`` reads them once, finds each row's record, and writes the
rows of each work unit together into one Arrow file; a unit's rows are then read back by themselves. So neither the
size of a table nor its order matters, and units can be read in different processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from data_shards.paths import absolute_path

TYPES: dict[str, pa.DataType] = {
    "number": pa.float64(),
    "text": pa.string(),
    "date": pa.timestamp("us"),
    "numbers": pa.list_(pa.float32()),
}
BLOCK_BYTES = 8 << 20
BUFFER_ROWS = 1 << 20
EMPTY = ["", "NA", "NaN", "nan", "NULL", "null", "None"]
_CSV = (".csv", ".csv.gz", ".csv.bz2")


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The file of that name, or those that a pattern with * matches, in order; ValueError if there is none.

    Args:
        folder: absolute; where relative names and patterns start.
    """
    path = absolute_path(pattern, folder)
    start = folder if path.is_relative_to(folder) else Path("/")
    files = sorted(start.glob(str(path.relative_to(start)))) if "*" in pattern else [path]
    for file in files:
        if not file.is_file():
            raise ValueError(f"file {file} does not exist")
        if not file.name.endswith((*_CSV, ".parquet")):
            raise ValueError(f"file {file} is neither CSV (.csv, .csv.gz, .csv.bz2) nor Parquet (.parquet)")
    if not files:
        raise ValueError(f"no file matches {path}")
    return files


def batches(file: Path, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a file, piece by piece.

    Args:
        columns: name -> type, a key of ``TYPES``.

    Raises:
        ValueError: a missing column, or a cell that is not of the type; names file and column.
    """
    try:
        pieces = _csv(file, columns) if file.name.endswith(_CSV) else _parquet(file, columns)
        yield from pieces
    except pa.ArrowKeyError as error:
        raise ValueError(f"{file}: {str(error).strip(chr(34))}") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{file}: {str(error).splitlines()[0]}") from error


def _csv(file: Path, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    if "numbers" in columns.values():
        raise ValueError(f"{file}: a CSV cell cannot hold a list of numbers; use Parquet, or one column a feature")
    options = pa.csv.ConvertOptions(
        column_types={name: TYPES[kind] for name, kind in columns.items()},
        include_columns=list(columns),
        null_values=EMPTY,
        strings_can_be_null=True,
    )
    # Quoted notes contain line ends. One thread, so that an error names the row.
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    read = pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    with pa.csv.open_csv(file, read_options=read, parse_options=parse, convert_options=options) as reader:
        yield from reader


def _parquet(file: Path, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    with pa.parquet.ParquetFile(file) as parquet:
        there = parquet.schema_arrow.names
        for name in columns:
            if name not in there:
                raise ValueError(f"{file} has no column {name!r}; it has {', '.join(there)}")
        for batch in parquet.iter_batches(batch_size=1 << 16, columns=list(columns)):
            arrays = [_cast(file, batch.column(name), name, kind) for name, kind in columns.items()]
            yield pa.record_batch(arrays, names=list(columns))


def _cast(file: Path, column: pa.Array, name: str, kind: str) -> pa.Array:
    if kind == "text" and pa.types.is_floating(column.type):
        raise ValueError(f"{file}: column {name!r} holds {column.type}, and is to be compared as text; store integers")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind == "number" and pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    try:
        return column.cast(TYPES[kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{file}: column {name!r} ({column.type}) cannot be read as {kind}: {error}") from error


@dataclass
class Spill:
    """Rows of one table, sorted out by work unit in one Arrow file.

    Attributes:
        file: the Arrow file. places: unit -> numbers of its record batches, in the order of the table.
        notes: what was left out, by reason.
    """

    file: Path
    places: dict[int, list[int]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def rows(self, unit: int) -> pa.Table | None:
        """Rows of one unit ordered by record, those of one record as in the table; None if there are none."""
        if unit not in self.places:
            return None
        with pa.memory_map(str(self.file)) as source, pa.ipc.open_file(source) as reader:
            table = pa.Table.from_batches([reader.get_batch(number) for number in self.places[unit]])
        order = np.argsort(table["record"].to_numpy(), kind="stable")
        return table.take(pa.array(order))


def spill(
    files: list[Path],
    columns: Mapping[str, str],
    key: str,
    keys: pa.Array,
    unit_records: int,
    out: Path,
    skip: bool,
    keep: Callable[[pa.Table], pa.Table] | None = None,
) -> Spill:
    """Sort the rows of a table out by work unit.

    Args:
        columns: name -> type of what is kept (the key need not be among them). key: column that names the record.
        keys: keys of all records; the place in it is the record's number. unit_records: records of a unit.
        out: Arrow file to write. skip: rows of unknown records are counted instead of refused.
        keep: takes the rows that are wanted out of a piece of the table; then none at all is fine.

    Raises:
        ValueError: a row without key or, unless ``skip``, with an unknown one; or a table that matches no record.
    """
    made, writer, count, matched = Spill(out), None, 0, 0
    with pa.OSFile(str(out), "wb") as sink:
        for buffer in _buffers(files, {**columns, key: "text"}, keep):
            record = _record_numbers(buffer, key, keys, files, skip, made.notes)
            table = pa.table({"record": record, **{name: buffer[name] for name in columns}})
            table = table.filter(record.is_valid()).combine_chunks()
            matched += len(table)
            unit = table["record"].to_numpy() // unit_records
            order = np.argsort(unit, kind="stable")
            table, unit = table.take(pa.array(order)), unit[order]
            writer = writer or pa.ipc.new_file(sink, table.schema)
            for number, start, stop in _runs(unit):
                for batch in table.slice(start, stop - start).combine_chunks().to_batches():
                    writer.write_batch(batch)
                    made.places.setdefault(number, []).append(count)
                    count += 1
        if writer is not None:
            writer.close()
    if not matched and keep is None:
        raise ValueError(f"{files[0]}: no row belongs to a record of the records' file; is {key!r} the right column?")
    return made


def _buffers(
    files: list[Path], columns: dict[str, str], keep: Callable[[pa.Table], pa.Table] | None
) -> Iterator[pa.Table]:
    """Rows of all files in order, in large pieces."""
    held: list[pa.Table] = []
    for file in files:
        for batch in batches(file, columns):
            piece = pa.Table.from_batches([batch])
            held.append(piece if keep is None else keep(piece))
            if sum(len(piece) for piece in held) >= BUFFER_ROWS:
                yield pa.concat_tables(held)
                held = []
    if held:
        yield pa.concat_tables(held)


def _record_numbers(
    buffer: pa.Table, key: str, keys: pa.Array, files: list[Path], skip: bool, notes: dict[str, int]
) -> pa.ChunkedArray:
    own = buffer[key]
    if own.null_count:
        raise ValueError(f"{files[0]}: {own.null_count} rows have no {key!r}; which record do they belong to?")
    record = pc.index_in(own, value_set=keys)
    if record.null_count:
        if not skip:
            first = own.filter(record.is_null())[0].as_py()
            raise ValueError(
                f"{files[0]}: {record.null_count:,} rows belong to records that the records' file does not have, the "
                f"first to {first!r}; set unknown_keys: skip if they are not wanted"
            )
        notes["rows_of_unknown_records"] = notes.get("rows_of_unknown_records", 0) + record.null_count
    return record


def _runs(sorted_N: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(value, start, stop) of the runs of equal values."""
    starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    for start, stop in zip(starts.tolist(), np.append(starts, len(sorted_N))[1:].tolist(), strict=True):
        yield int(sorted_N[start]), start, stop


def read_small(file: Path, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    """A whole table in memory, column by column."""
    table = pa.Table.from_batches(list(batches(file, columns)), pa.schema([(n, TYPES[t]) for n, t in columns.items()]))
    return {name: table[name].to_pylist() for name in columns}
