"""Random tables, written as CSV and as Parquet: the same records, as pandas reads the Parquet file, or both refused.

Columns have random types, nulls, zones, quotes and unicode; rows any order; blocks and buffers any size.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable
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
from data_shards.records.record import Codes, Objects, Record
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
    **dict.fromkeys(("id", "note", "sev", "site", "ch", "dose"), pa.string()),
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
    found = read_by(text, folder, plain)
    if isinstance(found, str):
        return found
    records, counted = found
    return records, {name: count for name, count in counted.items() if not name.startswith("words_read_as_empty")}


def read_by(mapping: str, folder: Path, plain: Callable[[Record], object]) -> tuple[dict, dict] | str:
    """Records in plain words and what was counted, by a mapping file's text; or the sentence that refuses it."""
    (folder / "m.yaml").write_text(mapping)
    notes: Counter[str] = Counter()
    try:
        source = create_source("tables", {"path": str(folder / "m.yaml")})
        records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
        for record in records.values():
            validate(source.schema, record)
    except ValueError as error:
        return str(error)
    counted = {name: count for name, count in notes.items() if count}
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


@settings(max_examples=75, deadline=None, suppress_health_check=list(HealthCheck))
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
        assert ours == same, (ours, same)
        right, observations = by_pandas(folder)
        assert ours[0] == right and ours[1].get("observations", 0) == observations
        rest = sum(
            ours[1].get(what, 0) for what in ("rows_of_other_channels", "empty_values", "observations_outside_window")
        )
        assert observations + rest == len(events), "every row is an observation or counted"


TIMED = {
    "name": "t",
    "records": {"file": "r.X", "key": "id"},
    "csv": {"lines": 9},
    "modalities": {
        "age": {"kind": "vector", "columns": ["age"], "empty": "absent", "replace": {"-1.0": 7.5, "0.1": None}},
        "who": {"kind": "codes", "columns": ["flag", "site"]},
        "notes": {"kind": "text", "file": "n.X", "column": "note"},
        "drugs": {"kind": "codes", "file": "c.X", "column": "site", "value": "dose", "replace": {"> 89": 90}},
        "labs": {"kind": "vector", "file": "c.X", "columns": ["dose"], "empty": "absent", "replace": {"> 89": 90}},
    },
    "tasks": {
        "sev": {"kind": "multiclass", "file": "l.X", "column": "sev", "classes": {"no": ["NA"], "yes": ["Mild"]}}
    },
}
CLOCK = {"time": "t", "origin": "adm"}


def timed_mapping(at_moments: bool) -> dict:
    mapping = json.loads(json.dumps(TIMED))
    for name in ("notes", "drugs", "labs"):
        mapping["modalities"][name] |= CLOCK | {"horizon": 24, "outside": "skip"}
    if at_moments:
        mapping["tasks"]["sev"] |= CLOCK
    else:
        del mapping["tasks"]
    return mapping


@st.composite
def timed_data(draw):
    """The records' table, one of notes, one of codes with a dose, one of labels at moments."""
    keys = draw(st.permutations([f"k{n}" for n in range(draw(st.integers(1, 5)))]))
    zone = draw(st.sampled_from(ZONES))
    minutes = st.integers(-200, 2000) if draw(st.booleans()) else st.sampled_from([0, 5, 1440])
    word = st.none() | TEXTS
    dose = st.none() | st.just("> 89") | st.integers(-9, 99).map(str) | st.sampled_from(["0.25", "1e3", "NA"])

    def rows(**cells):
        moment = st.builds(lambda m: (START + timedelta(minutes=m)).replace(tzinfo=zone), minutes)
        row = st.fixed_dictionaries({"id": st.sampled_from(keys), "t": moment, **cells})
        drawn = draw(st.lists(row, min_size=1, max_size=12))
        return [{column: own[column] for column in ("id", "t", *cells)} for own in drawn]

    age = st.none() | st.sampled_from([-1.0, 0.1, 3.0, 1e-8]) | st.floats(-1e4, 1e4, width=32).map(float)
    stays = [
        {"id": key, "adm": START.replace(tzinfo=zone), "age": draw(age), "flag": draw(st.none() | st.booleans()),
         "site": draw(word)}
        for key in keys
    ]  # fmt: skip
    labels = rows(sev=st.none() | st.sampled_from(["NA", "Mild"]))
    if draw(st.integers(0, 9)):
        labels = list({(row["id"], row["t"]): row for row in labels}.values())
    return stays, rows(note=word), rows(site=word, dose=dose), labels


def read_timed(folder: Path, kind: str, at_moments: bool) -> tuple[dict, dict] | str:
    return read_by(yaml.safe_dump(timed_mapping(at_moments)).replace(".X", f".{kind}"), folder, plain_times)


def plain_times(record) -> tuple:
    values = {}
    for name, value in record.values.items():
        if isinstance(value, Objects):
            own = [v if isinstance(v, str) else v.tolist() for v in value.values]
            values[name] = list(zip(value.times_N.tolist(), own, strict=True))
        elif isinstance(value, Codes):
            times = [None] * len(value) if value.times_O is None else value.times_O.tolist()
            numbers = [None] * len(value) if value.values_O is None else value.values_O.tolist()
            values[name] = [
                (time, code, None if number is None or math.isnan(number) else number)
                for time, code, number in zip(times, value.codes, numbers, strict=True)
            ]
        else:
            values[name] = value.tolist()
    labels = None
    if record.moments is not None:
        labels = [
            (time, None if math.isnan(label) else label)
            for time, label in zip(record.moments.tolist(), record.targets["sev"].tolist(), strict=True)
        ]
    return values, labels


def dose_of(cell) -> float | None:
    return None if cell in (None, "NA", "") else 90.0 if cell == "> 89" else float(np.float32(float(cell)))


def timed_by_hand(tables: tuple, at_moments: bool) -> dict:
    """What the records hold, by an obvious loop over the rows as Python has them."""
    stays, notes, drugs, labels = tables
    found = {}
    for stay in stays:

        def own(rows, stay=stay):
            for row in rows:
                hours = float(np.float32((row["t"] - stay["adm"]) / timedelta(hours=1)))
                if row["id"] == stay["id"] and (at_moments or 0 <= hours <= 24):
                    yield hours, row

        values: dict = {}
        age = stay["age"]
        if age is not None and age != 0.1:
            values["age"] = [float(np.float32(7.5 if age == -1 else age))]
        who = [(None, f"{c}={stay[c]}", None) for c in ("flag", "site") if stay[c] not in (None, "")]
        texts = [(hours, row["note"]) for hours, row in own(notes) if row["note"] not in (None, "")]
        codes = [
            (hours, row["site"], dose_of(row["dose"])) for hours, row in own(drugs) if row["site"] not in (None, "")
        ]
        labs = [(hours, [dose_of(row["dose"])]) for hours, row in own(drugs) if dose_of(row["dose"]) is not None]
        values |= {k: v for k, v in (("who", who), ("notes", texts), ("drugs", codes), ("labs", labs)) if v}
        moments = (
            sorted((hours, None if row["sev"] is None else float(row["sev"] == "Mild")) for hours, row in own(labels))
            if at_moments
            else []
        )
        found[stay["id"]] = values, moments or None
    return found


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    timed_data(), st.booleans(), st.sampled_from([1, 2, 500]), st.sampled_from([1, 3, 1 << 20]),
    st.sampled_from([30, 200, 1 << 23]),
)  # fmt: skip
def test_texts_codes_vectors_and_labels_with_times(tables_of, at_moments, unit, buffer, block) -> None:
    """CSV, Parquet and a loop by hand agree, in pieces of any size, and every row is somewhere or counted."""
    stays, notes, drugs, labels = tables_of
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(tables, "UNIT_RECORDS", unit)
        patch.setattr(spill, "BUFFER_ROWS", buffer)
        patch.setattr(csv_files, "BLOCK_BYTES", block)
        folder = Path(name)
        for letter, rows in zip("rncl", tables_of, strict=True):
            write(folder, letter, rows)
        ours, same = (read_timed(folder, kind, at_moments) for kind in ("csv", "parquet"))
        twice = len({(row["id"], row["t"]) for row in labels}) < len(labels)
        if at_moments and twice:
            assert "and a moment has one label" in ours and "and a moment has one label" in same
            return
        assert ours == same, (ours, same)
        records, counted = ours
        assert records == timed_by_hand(tables_of, at_moments)
        left_out = counted.get("objects_outside_window", 0) + counted.get("rows_without_object", 0)
        assert counted.get("objects", 0) + left_out == len(notes) + len(drugs)
        categories = sum(cell not in (None, "") for stay in stays for cell in (stay["flag"], stay["site"]))
        missing = counted.get("codes_missing.site", 0) + counted.get("codes_missing.flag", 0)
        assert counted.get("codes", 0) + counted.get("codes_outside_window", 0) + missing == len(drugs) + 2 * len(stays)
        assert (
            counted.get("codes_missing.flag", 0) + counted.get("codes_missing.site", 0) >= 2 * len(stays) - categories
        )
        assert counted.get("moments", 0) == (len(labels) if at_moments else 0)


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
