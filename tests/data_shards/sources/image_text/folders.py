"""Folders of JSON lines and pictures, and what comes out of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from data_shards import Record
from data_shards.records.check import validate
from data_shards.sources.base import Source


def png(colour: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


def folder(
    path: Path, rows: dict[str, list[dict[str, Any]]], files: dict[str, bytes], labels: list[str] | None = None
) -> str:
    path.mkdir()
    for name, lines in rows.items():
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    if labels is not None:
        (path / "labels.txt").write_text("".join(f"{label} \n" for label in labels))
    return str(path)


def read(source: Source) -> tuple[dict[str, Record], Counter[str]]:
    notes: Counter[str] = Counter()
    records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
    for record in records.values():
        validate(source.schema, record)
    return records, notes
