"""Rows of tables sorted out by record on disk, by any number of workers and in bounded memory.

Rows may lie in any order in any number of files, and be more than any machine's memory holds. They are sorted in two
passes. The first one reads pieces of the files, finds each row's record, and writes a *run* a piece: what belongs to
one stretch of records lies together there. The second one takes a few stretches at a time, from all runs, and writes
them in the records' order, so that the rows of a work unit are read back by themselves. Whoever works, the rows of a
record stay in the order of the table.

Shapes: U work units, B record batches of a run.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.crew import Buffer, Crew, Here, Team, Works, in_order
from data_shards.sources.readers.cells import CellError, Cells
from data_shards.sources.readers.table_files import Stretch, batches, stretches

logger = logging.getLogger(__name__)

BUFFER_ROWS, BUFFER_BYTES = 1 << 19, 64 << 20
"""Of a table in memory in the first pass."""
PIECE_BYTES, PART_BYTES = 64 << 20, 64 << 20
"""A piece of the files, as they are stored, and what the second pass takes at a time."""
STRETCHES = 1_024  # of the records, at most
ALONE_BYTES = 16 << 20  # tables that are smaller are not worth starting workers for


@dataclass
class Sorting:
    """A table that is to be sorted out.

    Attributes:
        files: in order. columns: name -> type of what is kept (the key need not be among them). key: column that names
            the record. skip: rows of unknown records are counted instead of refused. keep: takes the rows that are
            wanted out of a piece of the table; then none at all is fine. cells: how cells are read.
    """

    files: Sequence[Path]
    columns: Mapping[str, str]
    key: str
    skip: bool = False
    keep: Callable[[pa.Table], pa.Table] | None = None
    cells: Cells = field(default_factory=Cells)


@dataclass
class Spill:
    """Rows of one table by work unit.

    Attributes:
        files: Arrow files. place_U3: int32, of each unit number of the file, of its first batch, and of batches there.
        notes: what was left out, by reason. cells: what the columns turned out to hold.
    """

    files: list[Path]
    place_U3: np.ndarray
    notes: dict[str, int]
    cells: Cells

    @property
    def empty(self) -> bool:
        """Whether no unit has any row."""
        return not self.files

    def rows(self, unit: int) -> pa.Table | None:
        """Rows of one unit ordered by record, those of one record as in the table; None if there are none."""
        file, first, count = self.place_U3[unit].tolist()
        return _read([(self.files[file], range(first, first + count))]) if count else None


@dataclass(frozen=True)
class _Run:
    """What one piece of a table gave: its file, and stretch and bytes of each batch."""

    file: Path
    stretch_B: np.ndarray
    bytes_B: np.ndarray
    rows: int
    matched: int
    notes: Counter[str]
    cells: Cells


def sort_out(tables: Sequence[Sorting], keys: pa.Array, unit_records: int, folder: Path, crew: Crew) -> list[Spill]:
    """Sort the rows of tables out by work unit.

    Args:
        keys: keys of all records; the place in it is the record's number. unit_records: records of a unit.
        folder: for Arrow files; all workers see it.

    Raises:
        ValueError: a row without key or, unless ``skip``, with an unknown one; or a table that matches no record,
            unless it has no row and ``skip`` says that this is fine.
    """
    units = -(-len(keys) // unit_records)
    records = -(-units // STRETCHES) * unit_records  # of a stretch
    large = sum(file.stat().st_size for table in tables for file in table.files) > ALONE_BYTES
    works: Works = {"scatter": _Scatter(tables, keys, records, folder), "gather": _Gather(unit_records, folder)}
    with (crew if large else Here()).team(works) as team:
        pieces = [(number, piece) for number, table in enumerate(tables) for piece in _pieces(table.files)]
        items = [(number, f"{number}-{n}", piece) for n, (number, piece) in enumerate(pieces)]
        runs: list[list[_Run]] = [[] for _ in tables]
        for (number, _), run in zip(pieces, in_order(team, "scatter", items), strict=True):
            runs[number].append(run)
        return [_gathered(team, table, number, runs[number], units) for number, table in enumerate(tables)]


def _pieces(files: Sequence[Path]) -> Iterator[list[Stretch]]:
    """A table's files in pieces of about one size, in order."""
    held, size = list[Stretch](), 0
    for own in (stretch for file in files for stretch in stretches(file, PIECE_BYTES)):
        held.append(own)
        size += own.bytes
        if size >= PIECE_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _gathered(team: Team, table: Sorting, number: int, runs: Sequence[_Run], units: int) -> Spill:
    """The second pass of one table."""
    cells, notes = table.cells, Counter[str]()
    for run in runs:
        _join(cells, run, table.files[0])
        notes += run.notes
    rows, matched = sum(run.rows for run in runs), sum(run.matched for run in runs)
    if not matched and table.keep is None and (rows or not table.skip):
        raise ValueError(
            f"{table.files[0]}: no row belongs to a record of the records' file; is {table.key!r} the right column?"
        )
    notes.update({f"words_read_as_empty.{name}": n for name, n in cells.swallowed.items() if n})
    notes.update({f"numbers_replaced.{name}": n for name, n in cells.replaced.items() if n})
    place_U3, files = np.zeros((units, 3), np.int32), list[Path]()
    items = [(f"{number}-{n}", own) for n, own in enumerate(_parts(runs))]
    for n, (file, unit_B) in enumerate(in_order(team, "gather", items)):
        files.append(file)
        found, first, count = np.unique(unit_B, return_index=True, return_counts=True)
        place_U3[found] = np.stack((np.full(len(found), n), first, count), axis=1)
    for run in runs:
        run.file.unlink(missing_ok=True)
    logger.info("%s: %d rows in %d pieces sorted out into %d files", table.files[0].name, rows, len(runs), len(files))
    return Spill(files, place_U3, dict(notes), cells)


def _join(cells: Cells, run: _Run, file: Path) -> None:
    try:
        cells.join(run.cells)
    except CellError as error:
        raise ValueError(f"{file}: {error}") from error


def _parts(runs: Sequence[_Run]) -> Iterator[list[tuple[Path, list[int]]]]:
    """Files and batches of stretches that are taken together, in order; of one stretch in that of the runs."""
    size: np.ndarray = np.zeros(STRETCHES, np.int64)
    for run in runs:
        np.add.at(size, run.stretch_B, run.bytes_B)
    # Closed behind the stretch that makes it large enough
    part = np.concatenate(([0], np.cumsum(size)[:-1])) // PART_BYTES
    for number in np.unique(part[size > 0]):
        inside = (part == number) & (size > 0)
        chosen = [(run.file, np.flatnonzero(inside[run.stretch_B]).tolist()) for run in runs]
        yield [(file, numbers) for file, numbers in chosen if numbers]


@dataclass(frozen=True)
class _Scatter:
    """The first pass. Called with (number of the table, name of the run, piece)."""

    tables: Sequence[Sorting]
    keys: pa.Array
    records: int
    folder: Path

    def __call__(self, item: tuple[int, str, list[Stretch]], buffers: Sequence[Buffer]) -> _Run:
        number, name, piece = item
        table, notes, stretch, size = self.tables[number], Counter[str](), list[int](), list[int]()
        cells, rows, matched = table.cells.fresh(), 0, 0
        with _written(self.folder / f"{name}.run") as out:
            for file, buffer in _buffers(piece, {**table.columns, table.key: "text"}, cells, table.keep):
                rows += len(buffer)
                record = _record_numbers(buffer, table.key, self.keys, file, table.skip, notes)
                found = pa.table({"record": record, **{own: buffer[own] for own in table.columns}})
                found = found.filter(record.is_valid()).combine_chunks()
                matched += len(found)
                for value, batch in _by(found, found["record"].to_numpy() // self.records):
                    out.write(batch)
                    stretch.append(value)
                    size.append(batch.nbytes)
        stretch_B, bytes_B = np.array(stretch, np.int32), np.array(size, np.int64)
        return _Run(out.file, stretch_B, bytes_B, rows, matched, notes, cells)


@dataclass(frozen=True)
class _Gather:
    """The second pass. Called with (name, files and batches); gives the part's file, and the unit of each batch."""

    unit_records: int
    folder: Path

    def __call__(
        self, item: tuple[str, list[tuple[Path, list[int]]]], buffers: Sequence[Buffer]
    ) -> tuple[Path, np.ndarray]:
        name, chosen = item
        table, unit = _read(chosen), list[int]()
        record = table["record"].to_numpy()
        table = table.take(pa.array(np.argsort(record, kind="stable")))
        with _written(self.folder / f"{name}.arrow") as out:
            for value, batch in _runs_of(table, table["record"].to_numpy() // self.unit_records):
                out.write(batch)
                unit.append(value)
        return out.file, np.array(unit, np.int32)


class _written:
    """An Arrow file that is there once it is whole, also where two write the same one."""

    def __init__(self, file: Path) -> None:
        if not file.parent.is_dir():
            raise OSError(
                f"{file.parent} is not there on this machine: give a scratch folder that all machines share "
                "(-o scratch=DIR)"
            )
        self.file, self._part = file, file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def __enter__(self) -> _written:
        self._sink = pa.OSFile(str(self._part), "wb")
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer = self._writer or pa.ipc.new_file(self._sink, batch.schema)
        self._writer.write_batch(batch)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        self._sink.close()
        if kind is None:
            self._part.replace(self.file)
        else:
            self._part.unlink()


def _read(chosen: Sequence[tuple[Path, Sequence[int]]]) -> pa.Table:
    """Some batches of files as one table, not copied."""
    found = list[pa.RecordBatch]()
    for file, numbers in chosen:
        with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
            found += [reader.get_batch(number) for number in numbers]
    return pa.Table.from_batches(found)


def _by(table: pa.Table, value_N: np.ndarray) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(value, its rows) by value, in their order."""
    order = np.argsort(value_N, kind="stable")
    return _runs_of(table.take(pa.array(order)), value_N[order])


def _runs_of(table: pa.Table, value_N: np.ndarray) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(value, rows) of stretches of equal values; more than one of a value that Arrow cannot hold in one."""
    starts = np.flatnonzero(np.diff(value_N, prepend=-1))
    for start, stop in zip(starts.tolist(), np.append(starts, len(value_N))[1:].tolist(), strict=True):
        for batch in table.slice(start, stop - start).combine_chunks().to_batches():
            yield int(value_N[start]), batch


def _buffers(
    piece: Sequence[Stretch], columns: dict[str, str], cells: Cells, keep: Callable[[pa.Table], pa.Table] | None
) -> Iterator[tuple[Path, pa.Table]]:
    """Rows of a piece in order, and the file of the first of them, as many as fit into memory."""
    held, rows, size = list[pa.Table](), 0, 0
    for own in piece:
        for batch in batches(own, columns, cells):
            table = pa.Table.from_batches([batch])
            held.append(table if keep is None else keep(table))
            rows, size = rows + len(held[-1]), size + held[-1].nbytes
            if rows >= BUFFER_ROWS or size >= BUFFER_BYTES:
                yield own.file, pa.concat_tables(held)
                held, rows, size = [], 0, 0
    if held:
        yield piece[-1].file, pa.concat_tables(held)


def _record_numbers(
    buffer: pa.Table, key: str, keys: pa.Array, file: Path, skip: bool, notes: Counter[str]
) -> pa.ChunkedArray:
    own = buffer[key]
    if own.null_count:
        raise ValueError(f"{file}: {own.null_count} rows have no {key!r}; which record do they belong to?")
    record = pc.index_in(own, value_set=keys)
    if record.null_count:
        if not skip:
            first = own.filter(record.is_null())[0].as_py()
            raise ValueError(
                f"{file}: {record.null_count:,} rows belong to records that the records' file does not have, the "
                f"first to {first!r}; set unknown_keys: skip if they are not wanted"
            )
        notes["rows_of_unknown_records"] += record.null_count
    return record
