"""Random tables, written as CSV and as Parquet: the same records, as pandas reads the Parquet file, or both refused.

Columns have random types, nulls, zones, quotes and unicode; rows any order; blocks and buffers any size.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards import create_source
from data_shards.records.check import validate
from data_shards.sources.readers import csv_files, spill
from data_shards.sources.tables import source as tables

WORDS = st.sampled_from(
    ["", "NA", "None", "nan", "null", "x", "ä ö", '"q"', "a,b", "two\nlines", "\u2028", " s ", "1", "01"]
)
TEXTS = WORDS | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6)
NUMBERS = (
    st.integers(-1000, 1000)
    | st.floats(-1e4, 1e4, width=32).map(float)
    | st.sampled_from([0.1, 1 / 3, 1e-8, 16777217, 1e9 + 1, 2.5e38, math.nan])
)
ZONES = [None, UTC, timezone(timedelta(hours=-5, minutes=-30))]
START = datetime(2150, 3, 28)


@st.composite
def data(draw):
    """A records' table, a table of events and a table of labels, as lists of rows of Python values."""
    count = draw(st.integers(1, 6))
    keys = draw(st.permutations([f"k{n}" for n in range(count)]))
    zone, other = draw(st.sampled_from(ZONES)), draw(st.sampled_from(ZONES))
    # Mostly the same zone, so that most tables are read
    other = zone if draw(st.integers(0, 3)) else other
    number = st.none() | NUMBERS
    stays = [
        {
            "id": key,
            "adm": START.replace(tzinfo=zone),
            "age": draw(number),
            "flag": draw(st.none() | st.booleans()),
            "note": draw(st.none() | TEXTS),
            "sev": draw(st.none() | st.sampled_from(["NA", "Mild"])),
            "site": draw(st.none() | TEXTS.filter(bool)),
        }
        for key in keys
    ]
    fine = draw(st.booleans())
    events = [
        {
            "id": draw(st.sampled_from(keys)),
            "t": (START + timedelta(microseconds=draw(st.integers(0, 10**6 * 3600)) if fine else 0)
                  + timedelta(minutes=draw(st.integers(0, 2000)))).replace(tzinfo=other),
            "ch": draw(st.sampled_from(["HR", "NA", "None", "other"])),
            "v": draw(number),
        }
        for _ in range(draw(st.integers(1, 25)))
    ]  # fmt: skip
    return stays, events


MAPPING = {
    "name": "p",
    "records": {"file": "r.X", "key": "id", "group": "site"},
    "csv": {"lines": 9},
    "modalities": {
        "age": {"kind": "vector", "columns": ["age", "flag"], "empty": "known"},
        "note": {"kind": "text", "column": "note"},
        "s": {
            **{"kind": "series", "file": "e.X", "time": "t", "origin": "adm", "horizon": 48, "outside": "skip"},
            **{"channel": "ch", "value": "v", "channels": ["HR", "NA"], "other_channels": "skip"},
        },
    },
    "tasks": {"sev": {"kind": "multiclass", "column": "sev", "classes": ["NA", "Mild"]}},
}
TYPES = {
    "age": pa.float64(), "flag": pa.bool_(), "v": pa.float64(),
    **dict.fromkeys(("id", "note", "sev", "site", "ch"), pa.string()),
}  # fmt: skip


def write(folder: Path, name: str, rows: list[dict]) -> None:
    """The rows as Parquet, and as CSV the way Python writes values."""
    columns = {}
    for column in rows[0]:
        values = [row[column] for row in rows]
        kind = TYPES.get(column)
        if kind is None:
            kind = pa.timestamp("us", tz="UTC" if values[0].tzinfo else None)
        columns[column] = pa.array(values, kind)
    pa.parquet.write_table(pa.table(columns), folder / f"{name}.parquet")
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(["" if value is None else str(value) for value in row.values()])


def read(folder: Path, kind: str) -> tuple[dict, dict] | str:
    text = yaml.safe_dump(MAPPING).replace("r.X", f"r.{kind}").replace("e.X", f"e.{kind}")
    (folder / "m.yaml").write_text(text)
    notes: Counter[str] = Counter()
    try:
        source = create_source("tables", {"path": str(folder / "m.yaml")})
        records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
        for record in records.values():
            validate(source.schema, record)
    except ValueError as error:
        return str(error)
    counted = {name: count for name, count in notes.items() if count and not name.startswith("words_read_as_empty")}
    return {key: plain(record) for key, record in records.items()}, counted


def plain(record) -> tuple:
    values = dict(record.values)
    if "age" in values:
        values["age"] = values["age"].tolist()
    if "s" in values:
        s = values["s"]
        values["s"] = sorted(zip(s.times_O.tolist(), s.channels_O.tolist(), s.values_O.tolist(), strict=True))
    return values, record.targets["sev"], record.group


def by_pandas(folder: Path) -> tuple[dict, int]:
    """Records as pandas reads the Parquet files: an obvious loop over rows; and the number of observations."""
    stays, events = pd.read_parquet(folder / "r.parquet"), pd.read_parquet(folder / "e.parquet")
    found, observations = {}, 0
    for _, row in stays.iterrows():
        known = [not pd.isna(row["age"]), not pd.isna(row["flag"])]
        values: dict = {
            "age": [float(np.float32(row["age"])) if known[0] else 0.0, float(bool(row["flag"])) if known[1] else 0.0]
        }
        values["age"] += [float(k) for k in known]
        if not pd.isna(row["note"]) and row["note"] != "":
            values["note"] = row["note"]
        own = []
        for _, event in events[events["id"] == row["id"]].iterrows():
            hours = (event["t"] - row["adm"]) / pd.Timedelta(hours=1)
            if event["ch"] in ("HR", "NA") and not pd.isna(event["v"]) and 0 <= hours <= 48:
                channel = ["HR", "NA"].index(event["ch"])
                own.append((float(np.float32(hours)), channel, float(np.float32(event["v"]))))
        if own:
            values["s"] = sorted(own)
        observations += len(own)
        label = None if pd.isna(row["sev"]) else float(["NA", "Mild"].index(row["sev"]))
        group = row["id"] if pd.isna(row["site"]) else row["site"]
        found[row["id"]] = (values, label, group)
    return found, observations


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data(), st.sampled_from([1, 2, 500]), st.sampled_from([1, 3, 1 << 20]), st.sampled_from([30, 200, 1 << 23]))
def test_csv_and_parquet_give_the_records_that_pandas_reads(tables_of, unit, buffer, block) -> None:
    stays, events = tables_of
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(tables, "UNIT_RECORDS", unit)
        patch.setattr(spill, "BUFFER_ROWS", buffer)
        patch.setattr(csv_files, "BLOCK_BYTES", block)
        folder = Path(name)
        write(folder, "r", stays)
        write(folder, "e", events)
        ours, same = read(folder, "csv"), read(folder, "parquet")
        if isinstance(ours, str) or isinstance(same, str):
            assert isinstance(ours, str) and isinstance(same, str), (ours, same)
            assert any(words in ours for words in ("float32", "have a zone")), ours
            return
        assert ours == same
        right, observations = by_pandas(folder)
        assert ours[0] == right and ours[1].get("observations", 0) == observations
        rest = sum(
            ours[1].get(what, 0) for what in ("rows_of_other_channels", "empty_values", "observations_outside_window")
        )
        assert observations + rest == len(events), "every row is an observation or counted"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
ROW = st.fixed_dictionaries({}, optional={"id": JSON | st.sampled_from(["a", "b"]), "age": JSON, "y": JSON, "t": JSON})


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ROW, min_size=1, max_size=4), st.binary(max_size=5), st.booleans())
def test_any_json_lines_are_records_or_a_sentence(objects, noise, noisy) -> None:
    """Never a stack trace; as many records as lines that hold something."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = b"".join(json.dumps(one).encode() + b"\n" for one in objects)
        (folder / "r.jsonl").write_bytes(text + (noise if noisy else b""))
        mapping = {
            "name": "j",
            "records": {"file": "r.jsonl", "key": "id", "keys": "escape"},
            "modalities": {
                "age": {"kind": "vector", "columns": ["age"], "empty": "absent"},
                "t": {"kind": "text", "column": "t"},
            },
            "tasks": {"y": {"kind": "binary", "column": "y"}},
        }
        (folder / "m.yaml").write_text(yaml.safe_dump(mapping))
        try:
            source = create_source("tables", {"path": str(folder / "m.yaml")})
            records = list(source.records())
            for record in records:
                validate(source.schema, record)
        except ValueError as error:
            assert "\n" not in str(error).strip() and len(str(error)) < 1000, error
            return
        assert len(records) == sum(1 for line in (folder / "r.jsonl").read_bytes().split(b"\n") if line.strip())


SECTION = st.dictionaries(
    st.sampled_from(
        [
            "file",
            "key",
            "kind",
            "columns",
            "column",
            "time",
            "horizon",
            "csv",
            "classes",
            "channels",
            "value",
            "x",
            None,
        ]
    ),
    st.sampled_from(
        [
            "r.csv",
            "id",
            "vector",
            "series",
            "binary",
            ["age"],
            5,
            -1,
            None,
            True,
            {"null": None},
            {"separator": 3},
            "age",
        ]
    ),
    max_size=5,
)
TREE = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "", None, 5])},
    optional={
        "records": SECTION | st.just({"file": "r.csv", "key": "id"}),
        "split": SECTION | st.just({"shares": {"train": 1.0}}),
        "modalities": st.dictionaries(st.sampled_from(["a", "b c", ""]), SECTION, max_size=2) | SECTION,
        "tasks": st.dictionaries(st.sampled_from(["y", 3]), SECTION, max_size=2),
        "csv": SECTION | st.just({"null": ["-", None]}),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREE | JSON)
def test_any_mapping_is_read_or_refused_by_a_sentence(tree) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "r.csv").write_text("id,age\na,1\nb,\n")
        (folder / "m.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
        try:
            assert len(list(create_source("tables", {"path": str(folder / "m.yaml")}).records())) == 2
        except ValueError as error:
            assert str(error).strip() and len(str(error)) < 1000
