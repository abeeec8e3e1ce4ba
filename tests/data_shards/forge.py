"""Data sets whose manifest was changed by somebody who also mends every digest: what a reader must not believe."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.shards.manifest import FILE

Rows = list[dict[str, Any]]


def edit_head(folder: Path, **fields: object) -> None:
    """Other top-level entries of the head."""
    head = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(head | fields))


def table_path(folder: Path, what: str) -> Path:
    """The file of a table."""
    return folder / json.loads((folder / FILE).read_text())["tables"][what]["name"]


def edit_table(folder: Path, what: str, change: Callable[[Rows], object], schema: pa.Schema | None = None) -> None:
    """Other rows of a table (``change`` works in place), with a head that agrees."""
    table = pq.read_table(table_path(folder, what))
    rows = table.to_pylist()
    change(rows)
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema or table.schema), stream)
    replace_table(folder, what, stream.getvalue(), rows=len(rows))


def replace_table(folder: Path, what: str, data: bytes, **fields: object) -> None:
    """Other bytes of a table, with a head that agrees."""
    table_path(folder, what).write_bytes(data)
    tables = json.loads((folder / FILE).read_text())["tables"]
    tables[what] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **fields}
    edit_head(folder, tables=tables)


def reseal(folder: Path, shard_number: int = 0) -> None:
    """Make the manifest's chunk checksums agree with a shard that was changed on disk."""
    shards = pq.read_table(table_path(folder, "shards")).to_pylist()
    data = (folder / shards[shard_number]["name"]).read_bytes()
    first = sum(shard["chunks"] for shard in shards[:shard_number])

    def change(rows: Rows) -> None:
        for chunk in rows[first : first + shards[shard_number]["chunks"]]:
            chunk["crc32"] = zlib.crc32(data[chunk["offset"] : chunk["offset"] + chunk["length"]])

    edit_table(folder, "chunks", change)
