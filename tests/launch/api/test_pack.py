"""`fleximoe.pack`: data frames become what a mapping makes of files, records stay what they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import fleximoe
from data_shards import create_source, open_manifest
from data_shards import pack as pack_source
from data_shards.shards.reader import read_index
from tests.data_shards.build import SCHEMA as RECORD_SCHEMA
from tests.data_shards.build import make_record
from tests.launch.api.ward import STAYS, notes, stays, vitals


def test_a_mapping_is_guessed_from_frames(data):
    assert data.report["source"]["mapping"] == {
        "name": "ward",
        "records": {"file": "records.parquet", "key": "stay"},
        "modalities": {
            "vitals": {
                "kind": "series", "file": "vitals.parquet", "unknown_keys": "skip", "time": "hour", "horizon": 12.0,
                "channel": "what", "value": "value", "channels": ["HR", "SpO2"],
            },
            "notes": {"kind": "text", "file": "notes.parquet", "time": "hour", "horizon": 7.0, "column": "text"},
            "numbers": {"kind": "vector", "columns": ["age"], "empty": "known"},
            "categories": {"kind": "codes", "columns": ["sex"]},
        },
        "tasks": {"died": {"kind": "binary", "column": "died"}},
    }  # fmt: skip
    assert data.report["records"] == STAYS and data.report["observations"] == 4 * STAYS
    assert data.report["source"]["notes"]["rows_of_unknown_records"] == 2
    assert "tasks.died: binary: two classes" in data.guesses
    assert [guess for guess in data.guesses if "2 rows are of records that records.parquet does not have" in guess]
    html = data._repr_html_()
    assert "<td>vitals</td>" in html and "60 records" in html and "<li>tasks.died" in html


def test_frames_are_packed_as_the_same_tables_in_files(data, tmp_path):
    for name, frame in (("stays", stays()), ("vitals", vitals()), ("notes", notes())):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "mapping.yaml").write_text(
        """
name: ward
records: {file: stays.csv, key: stay}
modalities:
  vitals: {kind: series, file: vitals.csv, unknown_keys: skip, time: hour, channel: what, value: value,
           channels: [HR, SpO2]}
  notes: {kind: text, file: notes.csv, time: hour, column: text}
  numbers: {kind: vector, columns: [age], empty: known}
  categories: {kind: codes, columns: [sex]}
tasks: {died: {kind: binary, column: died}}
"""
    )
    files = fleximoe.pack(tmp_path / "mapping.yaml", tmp_path / "packed")
    # A shard is named by its content.
    assert [s.name for s in open_manifest(files.url).shards] == [s.name for s in open_manifest(data.url).shards]
    assert files.report["source"]["notes"] == data.report["source"]["notes"]


def test_what_is_said_is_not_guessed(tmp_path):
    data = fleximoe.pack(
        records=pa.Table.from_pandas(stays()),
        vitals=vitals(),
        out=tmp_path / "said",
        name="other",
        tasks={"bad": {"kind": "binary", "column": "died", "classes": {"no": [0], "yes": [1]}}},
        modalities={
            "heart": {"kind": "series", "file": "vitals", "time": "hour", "channel": "what", "value": "value",
                      "channels": ["HR"], "other_channels": "skip", "unknown_keys": "skip"},
            "categories": None,
        },
        split={"train": 0.5, "test": 0.5},
    )  # fmt: skip
    manifest = open_manifest(data.url)
    assert manifest.schema.name == "other" and sorted(manifest.schema.modality_names) == ["heart", "numbers"]
    assert manifest.schema.task_names == ("bad",) and data.report["observations"] == 2 * STAYS
    assert set(data.report["splits"]["default"]) == {"train", "test"}


def test_rows_without_a_key_are_numbered_and_a_named_index_is_one(tmp_path):
    plain = stays().drop(columns="stay")
    numbered = fleximoe.pack(records=plain, tasks="died", out=tmp_path / "a")
    assert numbered.report["source"]["mapping"]["records"] == {"file": "records.parquet", "key": "row"}
    assert [g for g in numbered.guesses if "no column names records, so they are numbered" in g]
    index = stays().set_index("stay")
    assert fleximoe.pack(records=index, tasks="died", out=tmp_path / "b").report["source"]["mapping"]["records"] == {
        "file": "records.parquet",
        "key": "stay",
    }


def test_kinds_of_columns_of_a_wide_frame(tmp_path):
    n = np.arange(40)
    frame = pd.DataFrame(
        {
            "id": n,
            "when": pd.Timestamp("2020-01-01") + pd.to_timedelta(n, unit="D"),
            "colour": pd.Categorical(np.array(["red", "green"])[n % 2]),
            "smokes": n % 2 == 0,
            "weight": 50 + n / 4,
            "vector": [np.array([k, k + 1.0, 2.0]) for k in n],
            "remark": [f"a sentence about number {k}, as people write" for k in n],
            "nothing": [None] * 40,
            "grade": np.array(["low", "middle", "high"])[n % 3],
        }
    )
    data = fleximoe.pack(records=frame, tasks=["grade", "weight"], out=tmp_path / "wide")
    mapping = data.report["source"]["mapping"]
    assert mapping["modalities"] == {
        "numbers": {"kind": "vector", "columns": ["smokes"]},
        "categories": {"kind": "codes", "columns": ["colour"]},
        "vector": {"kind": "vector", "column": "vector", "size": 3},
        "remark": {"kind": "text", "column": "remark"},
    }
    assert mapping["tasks"] == {
        "grade": {"kind": "multiclass", "column": "grade", "classes": ["high", "low", "middle"]},
        "weight": {"kind": "regression", "column": "weight"},
    }
    left = [guess for guess in data.guesses if guess.startswith("left out")]
    assert len(left) == 2 and "'when': it holds dates" in left[0] and "'nothing': all of its cells are empty" in left[1]


def records(splits: bool):
    for n in range(20):
        own = {"default": "train" if n < 15 else "test"} if splits else {}
        yield fleximoe.Record(f"r{n}", {"x": np.array([n, 1.0], np.float32)}, {"y": float(n)}, own)


@pytest.mark.parametrize("splits", [True, False])
def test_records_in_memory(tmp_path, splits):
    schema = fleximoe.DatasetSchema(
        "made", (fleximoe.ModalitySpec("x", "vector", shape=(2,)),), (fleximoe.TaskSpec("y", "regression"),)
    )
    data = fleximoe.pack(records(splits), tmp_path / "made", schema=schema)
    parts = data.report["splits"]["default"]
    if splits:
        assert parts == {"train": 15, "test": 5} and data.report["source"]["notes"] == {}
    else:
        assert sum(parts.values()) == 20 and data.report["source"]["notes"] == {"records_divided_by_hash": 20}


def test_a_source_by_name_is_packed_as_by_the_command(tmp_path):
    options = {"records": 30, "modalities": "vector:1"}
    data = fleximoe.pack("synthetic", tmp_path / "a", options=options)
    pack_source(create_source("synthetic", options), str(tmp_path / "b"))
    assert open_manifest(data.url).digest == open_manifest(str(tmp_path / "b")).digest
    assert str(data) == str(tmp_path / "a") and data.guesses == []


def test_records_are_added_as_the_next_version(tmp_path):
    records = [make_record(number) for number in range(40)]
    first = fleximoe.pack(records[:25], tmp_path / "set", schema=RECORD_SCHEMA)
    second = fleximoe.pack(records[25:], tmp_path / "set", schema=RECORD_SCHEMA, append=True)
    assert (first.report["version"], second.report["version"], second.report["records"]) == (1, 2, 40)
    manifest = open_manifest(second.url)
    assert manifest.lineage.parent == first.report["digest"]
    keys = [key for number in range(len(manifest.shards)) for key in read_index(manifest, number).keys]
    assert keys == [record.key for record in records]
    with pytest.raises(fleximoe.InputError, match=r"record key 'r00003' occurs twice"):
        fleximoe.pack(records[:5], tmp_path / "set", schema=RECORD_SCHEMA, append=True)
