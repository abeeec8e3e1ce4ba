"""One data set in three forms: its mapping file, with categories as codes, and cut into moments."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from benchmarks.sepsis import write
from data_shards import Record, create_source
from data_shards.records.check import validate
from tests.data_shards.sources.build import real_data

MAPPING = {
    "name": "sepsis",
    "records": {"file": "records.parquet", "key": "id"},
    "split": {"columns": {"default": "part"}},
    "modalities": {
        "vitals": {
            "kind": "series", "file": "events.parquet", "time": "t", "time_unit": "hours", "horizon": 12,
            "channel": "what", "value": "value", "channels": ["HR"],
        },
        "static": {
            "kind": "vector", "columns": ["Age", "Gender", "Unit1", "Unit2", "HospAdmTime"], "empty": "known"
        },
    },
    "tasks": {"sepsis": {"kind": "binary", "column": "y", "classes": ["no", "yes"]}},
}  # fmt: skip


def lay_out(folder: Path) -> Path:
    """Three stays: of twelve hours, of seven, and one without a row."""
    folder.mkdir()
    records = {
        "id": ["a", "b", "c"], "part": ["train", "train", "test"], "y": ["no", "yes", "no"], "Age": [60.0, 70.0, None],
        "Gender": [1.0, 0.0, 1.0], "Unit1": [1.0, None, 0.0], "Unit2": [0.0, None, 1.0], "HospAdmTime": [-3.0, -0.5, 0],
    }  # fmt: skip
    events = {
        "id": ["a", "b", "a"],
        "t": pa.array([12, 7, 2], pa.float32()),
        "what": ["HR"] * 3,
        "value": [80.0, 90, 70],
    }
    pa.parquet.write_table(pa.table(records), folder / "records.parquet")
    pa.parquet.write_table(pa.table(events), folder / "events.parquet")
    (folder / "mapping.yaml").write_text(yaml.safe_dump(MAPPING, sort_keys=False))
    return folder


def read(path: Path) -> tuple[dict[str, Record], Counter[str]]:
    source, notes = create_source("tables", {"path": str(path)}), Counter[str]()
    records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
    for record in records.values():
        validate(source.schema, record)
    return records, notes


def test_categories_become_codes_and_hours_become_moments(tmp_path: Path) -> None:
    assert write(lay_out(tmp_path / "data"), tmp_path / "out") == {"moments": 6, "stays": 2}
    records, notes = read(tmp_path / "out" / "codes.yaml")
    assert {key: record.values["who"].codes for key, record in records.items()} == {  # type: ignore[union-attr]
        "a": ["Gender=1.0", "Unit1=1.0"], "b": ["Gender=0.0"], "c": ["Gender=1.0", "Unit1=0.0"],
    }  # fmt: skip
    assert records["b"].values["static"].tolist() == [70, -0.5, 1, 1] and notes["codes_missing.Unit1"] == 1  # type: ignore[union-attr]
    assert [record.targets["sepsis"] for record in records.values()] == [0, 1, 0]
    records, notes = read(tmp_path / "out" / "moments.yaml")
    told = {key: (r.moments, r.targets["sepsis"]) for key, r in records.items() if r.moments is not None}
    assert {key: (times.tolist(), np.asarray(label).tolist()) for key, (times, label) in told.items()} == {
        "a": ([3, 6, 9, 12], [0, 0, 0, 0]), "b": ([3, 6], [1, 1]),
    }  # fmt: skip
    assert notes["records_without_moments"] == 1 and notes["moments"] == 6


@pytest.mark.slow
def test_the_real_stays(tmp_path: Path) -> None:
    made = write(real_data("data/sepsis2019b"), tmp_path)
    assert made == {"moments": 59_908, "stays": 15_312}
    source = create_source("tables", {"path": str(tmp_path / "moments.yaml")})
    notes = Counter[str]()
    moments = [r.moments for unit in source.units() for r in source.read(unit, notes)]
    assert len(moments) == 15_318 and sum(len(own) for own in moments if own is not None) == 59_908
    assert (notes["codes"], notes["codes_missing.Unit1"], notes["observations"]) == (25_977, 4_659, 1_194_288)
