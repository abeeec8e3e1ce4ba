"""Small data sets in tables: files and a mapping in, records and counts out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from data_shards import Record, create_source
from data_shards.records.check import validate


def read(folder: Path, mapping: dict[str, Any], **files: str | bytes) -> tuple[dict[str, Record], dict[str, int]]:
    """Records by key, and what was counted (zeros left out). `r_csv="..."` is the file r.csv."""
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "mapping.yaml").write_text(yaml.safe_dump({"name": "small", **mapping}, sort_keys=False))
    source, notes = create_source("tables", {"path": str(folder / "mapping.yaml")}), Counter[str]()
    records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
    for record in records.values():
        validate(source.schema, record)
    return records, {name: count for name, count in notes.items() if count}


def series(**more: Any) -> dict[str, Any]:
    """A mapping with one series, in e.csv (wide: column v)."""
    wide = {"kind": "series", "file": "e.csv", "time": "t", "columns": ["v"], "horizon": 10}
    if "channel" in more:
        del wide["columns"]
    return {"records": {"file": "r.csv", "key": "id"}, "modalities": {"s": {**wide, **more}}}


AGE = {"age": {"kind": "vector", "columns": ["age"]}}


def rows(**more: Any) -> dict[str, Any]:
    """A mapping of r.csv with a column age."""
    return {"records": {"file": "r.csv", "key": "id"}, "modalities": AGE, **more}


def events(record: Record, name: str = "s") -> list[tuple[float, int, float]]:
    """(time, channel, value), sorted."""
    value: Any = record.values[name]
    columns = (value.times_O, value.channels_O, value.values_O)
    return sorted((float(t), int(c), float(v)) for t, c, v in zip(*columns, strict=True))
