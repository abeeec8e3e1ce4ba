"""Tables of a packed data set <-> Parquet bytes: typed columns without nulls, zstd, checked before they are unpacked.

What is read is untrusted: the number of rows comes from whoever names the file, types are fixed, and no memory is taken
on the word of the file alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.errors import TableError

if TYPE_CHECKING:
    import pyarrow as pa

MOST_BYTES = 1 << 33  # of a table, unpacked
_ROW_GROUP = 1 << 20

Column = np.ndarray | list[str]
TEXT = ("string", "sha256")
NOWHERE: Mapping[str, np.ndarray] = MappingProxyType({})


def dump_table(columns: Mapping[str, Column], types: Mapping[str, str]) -> bytes:
    """Parquet bytes of columns of equal length; types are names of Arrow's, and ``sha256``: hexadecimal digits.

    The same columns give the same bytes with the same version of pyarrow.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [_array(columns[name], kind) for name, kind in types.items()]
    table = pa.Table.from_arrays(arrays, schema=_schema(types))
    stream = io.BytesIO()
    # Without Arrow's own schema and statistics: what is in the file is said by its name and place.
    pq.write_table(
        table,
        stream,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        row_group_size=_ROW_GROUP,
    )
    return stream.getvalue()


def load_table(
    data: bytes, types: Mapping[str, str], rows: int, into: Mapping[str, np.ndarray] = NOWHERE
) -> dict[str, Column]:
    """Columns of Parquet bytes: arrays, and lists of text. Unpacked a group of rows at a time, its columns in threads.

    Args:
        types: name -> type of each column, in order. rows: how many there must be.
        into: where the values of some columns are put; of others an array is made.

    Raises:
        TableError: it is no Parquet file, or one of other columns or another number of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            _check(file.metadata, file.schema_arrow, _schema(types), rows)
            found: dict[str, Column] = {
                name: into[name] if name in into else _empty(types[name], rows) for name in types
            }
            end = 0
            for number in range(file.num_row_groups):
                group = file.read_row_group(number)
                start, end = end, end + group.num_rows
                for name, kind in types.items():
                    _put(found[name], start, group.column(name), name, kind)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TableError(f"it is no Parquet file that can be read: {' '.join(str(error).split())}") from error
    if end != rows:
        raise TableError(f"its groups have {end} rows, not {rows}")
    return found


def _check(metadata: Any, found: pa.Schema, wanted: pa.Schema, rows: int) -> None:
    if metadata.num_rows != rows:
        raise TableError(f"it has {metadata.num_rows} rows, not {rows}")
    have, want = ([f"{field.name} {field.type}" for field in schema] for schema in (found, wanted))
    if have != want:
        raise TableError(f"its columns are {', '.join(have)}, not {', '.join(want)}")
    unpacked = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if unpacked > MOST_BYTES:
        raise TableError(f"it has {unpacked} bytes unpacked, the limit is {MOST_BYTES}")


def _schema(types: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    kinds = {name: pa.binary(32) if kind == "sha256" else pa.type_for_alias(kind) for name, kind in types.items()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _array(column: Column, kind: str) -> pa.Array:
    import pyarrow as pa

    if kind == "sha256":
        return pa.array([bytes.fromhex(text) for text in column], pa.binary(32))
    return pa.array(column, pa.type_for_alias(kind))


def _empty(kind: str, rows: int) -> Column:
    # Arrow's names of numbers are NumPy's; to ask Arrow for NumPy's type loads pandas.
    return list[str]() if kind in TEXT else np.empty(rows, np.dtype(kind))


def _put(found: Column, start: int, column: pa.ChunkedArray, name: str, kind: str) -> None:
    """Values of a column's next rows to where they belong."""
    if column.null_count:
        raise TableError(f"column {name} has empty cells")
    if isinstance(found, list):
        values = column.to_pylist()
        found += [value.hex() for value in values] if kind == "sha256" else values
    elif start + len(column) <= len(found):  # if not, the sum of all groups says so
        found[start : start + len(column)] = column.to_numpy()
