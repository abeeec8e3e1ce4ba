"""Rows of a table sorted out by record on disk.

Rows may lie in any order in any number of files. ``spill`` reads them once, finds each row's record, and writes the
rows of each work unit together into one Arrow file; a unit's rows are then read back by themselves. So neither the size
of a table nor its order matters, and units can be read in different processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.sources.readers.cells import Cells
from data_shards.sources.readers.table_files import batches

BUFFER_ROWS, BUFFER_BYTES = 1 << 20, 256 << 20


@dataclass
class Spill:
    """Rows of one table, sorted out by work unit in one Arrow file.

    Attributes:
        file: the Arrow file. places: unit -> numbers of its record batches, in the order of the table.
        notes: what was left out, by reason. cells: what the columns turned out to hold.
    """

    file: Path
    places: dict[int, list[int]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    cells: Cells = field(default_factory=Cells)

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
    cells: Cells | None = None,
) -> Spill:
    """Sort the rows of a table out by work unit.

    Args:
        columns: name -> type of what is kept (the key need not be among them). key: column that names the record.
        keys: keys of all records; the place in it is the record's number. unit_records: records of a unit.
        out: Arrow file to write. skip: rows of unknown records are counted instead of refused.
        keep: takes the rows that are wanted out of a piece of the table; then none at all is fine.
        cells: how cells are read.

    Raises:
        ValueError: a row without key or, unless ``skip``, with an unknown one; or a table that matches no record,
            unless it has no row and ``skip`` says that this is fine.
    """
    made, writer, count, matched, rows = Spill(out, cells=cells or Cells()), None, 0, 0, 0
    with pa.OSFile(str(out), "wb") as sink:
        for buffer in _buffers(files, {**columns, key: "text"}, made.cells, keep):
            rows += len(buffer)
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
    made.notes |= {f"words_read_as_empty.{name}": n for name, n in made.cells.swallowed.items() if n}
    made.notes |= {f"numbers_replaced.{name}": n for name, n in made.cells.replaced.items() if n}
    if not matched and keep is None and (rows or not skip):
        raise ValueError(f"{files[0]}: no row belongs to a record of the records' file; is {key!r} the right column?")
    return made


def _buffers(
    files: list[Path], columns: dict[str, str], cells: Cells, keep: Callable[[pa.Table], pa.Table] | None
) -> Iterator[pa.Table]:
    """Rows of all files in order, in large pieces."""
    held: list[pa.Table] = []
    for file in files:
        for batch in batches(file, columns, cells):
            piece = pa.Table.from_batches([batch])
            held.append(piece if keep is None else keep(piece))
            if sum(map(len, held)) >= BUFFER_ROWS or sum(piece.nbytes for piece in held) >= BUFFER_BYTES:
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
