"""CSV, Parquet and JSON-lines files as batches of typed columns, with bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet

from data_shards.paths import absolute_path
from data_shards.sources.readers.cells import CellError, Cells, type_of
from data_shards.sources.readers.csv_dialect import Dialect
from data_shards.sources.readers.csv_files import csv_batches, csv_names, missing_column
from data_shards.sources.readers.strict_json import BOM, parse_object

_CSV = tuple(f"{kind}{packed}" for kind in (".csv", ".tsv", ".txt") for packed in ("", ".gz", ".bz2", ".zst"))
_PARQUET = (".parquet", ".pq")
_JSON = (".jsonl", ".ndjson")
_BATCH_ROWS = 1 << 16
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The file of that name, or those that a pattern with * matches, in order; ValueError if there is none.

    Args:
        folder: absolute; where relative names and patterns start. pattern: ** stands for any number of folders.
    """
    path = absolute_path(pattern, folder)
    start = folder if path.is_relative_to(folder) else Path("/")
    files = sorted(start.glob(str(path.relative_to(start)))) if "*" in pattern else [path]
    for file in files:
        if file.is_dir():
            raise ValueError(
                f"{file} is a folder; give the files in it as a pattern, e.g. {pattern.rstrip('/')}/**/*.parquet"
            )
        if not file.is_file():
            raise ValueError(f"file {file} does not exist")
        if not is_table(file.name):
            raise ValueError(
                f"file {file} is neither CSV (.csv, .tsv, .txt, also packed: .gz, .bz2, .zst) nor Parquet (.parquet) "
                "nor JSON lines (.jsonl)"
            )
    if not files:
        raise ValueError(f"no file matches {path}")
    return files


@dataclass(frozen=True)
class Stretch:
    """Rows of a file that can be read without those before.

    Attributes:
        groups: of a Parquet file, its row groups [first, stop); None: everything. row: number of the first row, from 0.
        bytes: as it is stored.
    """

    file: Path
    groups: tuple[int, int] | None = None
    row: int = 0
    bytes: int = 0


def stretches(file: Path, size: int) -> Iterator[Stretch]:
    """A file in stretches of so many bytes: of Parquet one or more row groups; any other file is one."""
    if not file.name.lower().endswith(_PARQUET):
        yield Stretch(file, bytes=file.stat().st_size)
        return
    with pa.parquet.ParquetFile(file) as parquet:
        about = parquet.metadata
        first, row, rows, held = 0, 0, 0, 0
        for group in range(about.num_row_groups):
            own = about.row_group(group)
            rows += own.num_rows
            held += sum(own.column(n).total_compressed_size for n in range(own.num_columns))
            if held >= size or group == about.num_row_groups - 1:
                yield Stretch(file, (first, group + 1), row, held)
                first, row, rows, held = group + 1, row + rows, 0, 0


def batches(place: Path | Stretch, columns: Mapping[str, str], cells: Cells | None = None) -> Iterator[pa.RecordBatch]:
    """Some columns of a file or a stretch of it, piece by piece.

    Args:
        columns: name -> type (see ``cells``); a name that the file lacks may be a Hive partition: /y=1/ in its path
        cells: converts; keeps what was swallowed and what must agree between files.

    Raises:
        ValueError: a missing column, or a cell that is not of the type; names file, row and column.
    """
    cells, own = cells or Cells(), place if isinstance(place, Stretch) else Stretch(place)
    file, row = own.file, own.row
    for batch in _raw(file, list(columns), _partitions(file), cells, own.groups):
        arrays = []
        for name, kind in columns.items():
            arrays.append(_convert(file, batch, name, kind, cells, row))
        yield pa.record_batch(arrays, names=list(columns))
        row += len(batch)


def stored(file: Path, names: Sequence[str], cells: Cells | None = None) -> Iterator[pa.RecordBatch]:
    """Some columns of a file, piece by piece, as the file has them: CSV as text, Parquet typed. Raises ValueError."""
    yield from _raw(file, list(names), _partitions(file), cells or Cells())


def column_names(file: Path, dialect: Dialect | None = None) -> list[str]:
    """The columns of a file, those of its path too; of JSON lines the fields of the first object. Raises ValueError."""
    name, parts = file.name.lower(), list(_partitions(file))
    if name.endswith(_PARQUET):
        try:
            own = list(pa.parquet.read_schema(file).names)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    elif name.endswith(_JSON):
        with pa.input_stream(str(file)) as stream:
            lines = (line for line in io.BufferedReader(stream) if line.strip())  # type: ignore[type-var,var-annotated]
            own = list(parse_object(next(lines, b"{}").removeprefix(BOM), f"{file}, line 1"))
    else:
        own = list(csv_names(file, dialect or Dialect()))
    return own + [part for part in parts if part not in own]


def is_table(name: str) -> bool:
    """Whether a file of this name is read as a table."""
    return name.lower().endswith((*_CSV, *_PARQUET, *_JSON))


def _convert(file: Path, batch: pa.RecordBatch, name: str, kind: str, cells: Cells, row: int) -> pa.Array:
    try:
        return cells.convert(batch.column(name), name, kind)
    except CellError as error:
        where = "" if error.row is None else f", row {row + error.row + 1}"
        raise ValueError(f"{file}{where}: column {name!r}{':' if where else ''} {error}") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        kinds = f"{batch.column(name).type}"
        raise ValueError(f"{file}: column {name!r} ({kinds}) cannot be read as {kind}: {error}") from error


def _raw(
    file: Path, names: list[str], parts: dict[str, str | None], cells: Cells, groups: tuple[int, int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Columns as the file has them; those that only the path has are text."""
    name = file.name.lower()
    if name.endswith(_PARQUET):
        yield from _parquet(file, names, parts, groups)
    elif name.endswith(_JSON):
        yield from _json_lines(file, names, parts)
    else:
        if parts:
            there = csv_names(file, cells.dialect)
            parts = {column: value for column, value in parts.items() if column not in there}
        own = [column for column in names if column not in parts]
        yield from _with_parts(csv_batches(file, own, cells.dialect, cells.key), names, parts)


def _partitions(file: Path) -> dict[str, str | None]:
    """Hive partitions of a path: /rows/y=1/part.parquet has y = 1."""
    pairs = (folder.split("=", 1) for folder in file.parent.parts if "=" in folder)
    return {name: None if value == _HIVE_NULL else unquote(value) for name, value in pairs}


def _with_parts(
    pieces: Iterator[pa.RecordBatch], names: Sequence[str], parts: dict[str, str | None]
) -> Iterator[pa.RecordBatch]:
    for piece in pieces:
        arrays = [
            pa.array([parts[name]] * len(piece), pa.string()) if name in parts else piece.column(name) for name in names
        ]
        yield pa.record_batch(arrays, names=list(names))


def _parquet(
    file: Path, names: list[str], parts: dict[str, str | None], groups: tuple[int, int] | None
) -> Iterator[pa.RecordBatch]:
    try:
        with pa.parquet.ParquetFile(file) as parquet:
            there = parquet.schema_arrow.names
            for name in names:
                if there.count(name) > 1:
                    raise ValueError(
                        f"{file} has {there.count(name)} columns called {name!r}; give them different names"
                    )
                if name not in there and name not in parts:
                    raise ValueError(missing_column(file, name, there))
            own = {name: value for name, value in parts.items() if name not in there}
            wanted = [name for name in names if name not in own]
            chosen = None if groups is None else range(*groups)
            pieces = parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=chosen, columns=wanted)
            yield from _with_parts(pieces, names, own)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def _json_lines(file: Path, names: list[str], parts: dict[str, str | None]) -> Iterator[pa.RecordBatch]:
    """Fields of a JSON object a line: text, numbers, booleans or lists; one that is absent is the path's, or empty."""
    try:
        with pa.input_stream(str(file)) as stream:
            lines = enumerate(io.BufferedReader(stream), 1)  # type: ignore[type-var,var-annotated]
            full = ((n, line.removeprefix(BOM) if n == 1 else line) for n, line in lines if line.strip())
            found = set(parts)
            while rows := [parts | parse_object(line, f"{file}, line {n}") for n, line in islice(full, _BATCH_ROWS)]:
                found |= {name for row in rows for name in row}
                yield pa.record_batch([_json_column(file, rows, name) for name in names], names=names)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    for name in names:
        if name not in found:
            raise ValueError(missing_column(file, name, sorted(found)))


def _json_column(file: Path, rows: list[dict[str, Any]], name: str) -> pa.Array:
    """Numbers as numbers if all are of one type, else everything as text; lists as lists."""
    values = [row.get(name) for row in rows]
    kinds = {type(value) for value in values if value is not None}
    if dict in kinds or (list in kinds and len(kinds) > 1):
        raise ValueError(
            f"{file}: field {name!r} holds {' and '.join(sorted(k.__name__ for k in kinds))}; use one kind"
        )
    if len(kinds) == 1 and kinds != {list}:
        return _array(file, name, values)
    if kinds == {list}:
        return _array(file, name, values, pa.list_(pa.float64()))
    texts = [None if value is None or value != value else str(value) for value in values]
    return _array(file, name, texts, pa.string())


def _array(file: Path, name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{file}: field {name!r} cannot be read: {str(error).splitlines()[0]}") from error


def read_small(file: Path, columns: Mapping[str, str], cells: Cells | None = None) -> dict[str, list[Any]]:
    """A whole table in memory, column by column."""
    schema = pa.schema([(name, type_of(kind)) for name, kind in columns.items()])
    table = pa.Table.from_batches(list(batches(file, columns, cells)), schema)
    return {name: table[name].to_pylist() for name in columns}
