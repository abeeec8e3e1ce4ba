"""Records of a source, checked against its schema, and what was counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_shards import Record, create_source
from data_shards.records.record import validate


def read(name: str, options: dict[str, Any]) -> tuple[dict[str, Record], Counter[str]]:
    source, notes = create_source(name, options), Counter[str]()
    records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
    for record in records.values():
        validate(source.schema, record)
    return records, Counter({key: count for key, count in notes.items() if count})
