"""Records of a source, checked against its schema, with what was counted; packed records; the measurement data."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_shards import Record, create_source, open_manifest
from data_shards.records.check import validate
from data_shards.records.decoder import Decoder

SHARED = Path(__file__).parents[4] / "shared"


def read(name: str, options: dict[str, Any]) -> tuple[dict[str, Record], Counter[str]]:
    source, notes = create_source(name, options), Counter[str]()
    records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
    for record in records.values():
        validate(source.schema, record)
    return records, Counter({key: count for key, count in notes.items() if count})


def packed_records(folder: Path) -> dict[str, Record]:
    """What lies in the shards, by key."""
    manifest = open_manifest(str(folder))
    vocabularies = {name: manifest.vocabulary(name) for name in manifest.vocabularies}
    decoder, found = Decoder(manifest.schema, vocabularies=vocabularies), dict[str, Record]()
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                record = decoder.record(stream.read())
                found[record.key] = record
    return found


def real_data(place: str) -> Path:
    """A folder of the measurement data, which are not part of this repository; skips the test where it is absent."""
    folder = SHARED / place
    if not folder.exists():
        pytest.skip(f"{folder} is not there: the measurement data are not part of this repository")
    return folder
